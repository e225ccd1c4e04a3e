//! Launches: each queues device time and returns.
#![expect(unsafe_code, reason = "answers a C ABI")]

use std::ffi::{c_uint, c_void};
use std::time::Duration;

use crate::codes::{Code, INVALID_VALUE, SUCCESS};
use crate::driver::{Scene, enter_device, enter_scene, queue_host_function};

/// Marks a value as a kernel that says how long it runs; the microseconds are the low half.
const TIMED_KERNEL: u64 = 0x55f0_0001_0000_0000;

/// A kernel that runs as long as the scenario says.
const KERNEL: u64 = 0x55f0_0000_0000_0000;

/// `CUhostFn`.
pub type HostFunction = unsafe extern "C" fn(*mut c_void);

/// The same arguments as the driver's function: an observer reads them from registers and stack.
pub extern "C" fn kernel(
    function: u64,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    _shared_bytes: c_uint,
    _stream: u64,
    _parameters: *const c_void,
    _extra: *const c_void,
) -> Code {
    let shape = [grid_x, grid_y, grid_z, block_x, block_y, block_z];
    if shape.contains(&0) {
        return INVALID_VALUE;
    }
    launch("cuLaunchKernel", function)
}

pub unsafe extern "C" fn kernel_ex(
    config: *const c_void,
    function: u64,
    _parameters: *const c_void,
    _extra: *const c_void,
) -> Code {
    if config.is_null() {
        return INVALID_VALUE;
    }
    launch("cuLaunchKernelEx", function)
}

pub extern "C" fn cooperative(
    function: u64,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    _shared_bytes: c_uint,
    _stream: u64,
    _parameters: *const c_void,
) -> Code {
    let shape = [grid_x, grid_y, grid_z, block_x, block_y, block_z];
    if shape.contains(&0) {
        return INVALID_VALUE;
    }
    launch("cuLaunchCooperativeKernel", function)
}

/// A graph's executable is a kernel's handle here: it runs as long as that would.
pub extern "C" fn graph(executable: u64, _stream: u64) -> Code {
    launch("cuGraphLaunch", executable)
}

/// The handle of the kernel with this name.
pub(crate) fn function_for(name: &str) -> u64 {
    let microseconds = name.strip_prefix("busy_").and_then(|it| it.strip_suffix("us"));
    match microseconds.and_then(|it| it.parse::<u32>().ok()) {
        Some(microseconds) => TIMED_KERNEL | u64::from(microseconds),
        None => KERNEL,
    }
}

/// Runs in the same thread when it next waits, in the middle of that call.
pub extern "C" fn host_function(
    _stream: u64,
    function: Option<HostFunction>,
    data: *mut c_void,
) -> Code {
    let Some(function) = function else { return INVALID_VALUE };
    match enter_device("cuLaunchHostFunc") {
        Ok(_) => {
            queue_host_function(function, data);
            SUCCESS
        }
        Err(code) => code,
    }
}

fn launch(call: &str, function: u64) -> Code {
    let Scene { driver, device, scenario } = match enter_scene(call) {
        Ok(it) => it,
        Err(code) => return code,
    };
    let microseconds = if function & !0xffff_ffff == TIMED_KERNEL {
        function & 0xffff_ffff
    } else {
        scenario.kernel_us
    };
    driver.node.launch(driver.seat, device, Duration::from_micros(microseconds));
    SUCCESS
}
