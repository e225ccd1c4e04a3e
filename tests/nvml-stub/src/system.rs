//! Calls about the library and the node.
#![expect(unsafe_code, reason = "exports a C ABI")]

use std::ffi::{c_char, c_int, c_uint};

use nvml_wrapper_sys::bindings::nvmlDevice_t;

use crate::codes::{self, Code};
use crate::out::{argument, store, store_text};
use crate::session::{about_node, handle, init, shutdown};

#[unsafe(no_mangle)]
extern "C" fn nvmlInit_v2() -> Code {
    init()
}

#[unsafe(no_mangle)]
extern "C" fn nvmlInitWithFlags(_flags: c_uint) -> Code {
    init()
}

#[unsafe(no_mangle)]
extern "C" fn nvmlShutdown() -> Code {
    shutdown()
}

#[unsafe(no_mangle)]
extern "C" fn nvmlErrorString(code: Code) -> *const c_char {
    let text = match code {
        codes::SUCCESS => c"The operation was successful",
        codes::UNINITIALIZED => c"Uninitialized",
        codes::INVALID_ARGUMENT => c"Invalid Argument",
        codes::NOT_SUPPORTED => c"Not Supported",
        codes::NOT_FOUND => c"Not Found",
        codes::INSUFFICIENT_SIZE => c"Insufficient Size",
        codes::DRIVER_NOT_LOADED => c"Driver Not Loaded",
        codes::TIMEOUT => c"Timeout",
        codes::GPU_IS_LOST => c"GPU is lost",
        codes::RESET_REQUIRED => c"GPU requires reset",
        codes::VERSION_MISMATCH => c"Argument version mismatch",
        _ => c"Unknown Error",
    };
    text.as_ptr()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlSystemGetDriverVersion(version: *mut c_char, length: c_uint) -> Code {
    // SAFETY: nvml.h asks the caller for `length` bytes.
    about_node(|it| unsafe { store_text(version, length, &it.driver_version) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlSystemGetNVMLVersion(version: *mut c_char, length: c_uint) -> Code {
    // SAFETY: nvml.h asks the caller for `length` bytes.
    about_node(|it| unsafe { store_text(version, length, &format!("12.{}", it.driver_version)) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlSystemGetCudaDriverVersion_v2(version: *mut c_int) -> Code {
    // SAFETY: nvml.h asks the caller for one integer.
    about_node(|it| unsafe { store(version, it.cuda_version) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> Code {
    about_node(|it| {
        let devices = c_uint::try_from(it.gpus.len()).unwrap_or(0);
        // SAFETY: nvml.h asks the caller for one integer.
        unsafe { store(count, devices) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, out: *mut nvmlDevice_t) -> Code {
    let wanted = usize::try_from(index).unwrap_or(usize::MAX);
    let found = handle("nvmlDeviceGetHandleByIndex_v2", |_, index| index == wanted);
    // SAFETY: nvml.h asks the caller for one handle.
    unsafe { store_handle(found.map_err(|code| refused(code, codes::INVALID_ARGUMENT)), out) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetHandleByUUID(
    uuid: *const c_char,
    out: *mut nvmlDevice_t,
) -> Code {
    // SAFETY: nvml.h asks the caller for a string.
    let Some(uuid) = (unsafe { argument(uuid) }) else { return codes::INVALID_ARGUMENT };
    let found = handle("nvmlDeviceGetHandleByUUID", |gpu, _| gpu.uuid == uuid);
    // SAFETY: nvml.h asks the caller for one handle.
    unsafe { store_handle(found, out) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetHandleByPciBusId_v2(
    bus_id: *const c_char,
    out: *mut nvmlDevice_t,
) -> Code {
    // SAFETY: nvml.h asks the caller for a string.
    let Some(bus_id) = (unsafe { argument(bus_id) }) else { return codes::INVALID_ARGUMENT };
    let same = |gpu: &str| gpu.to_lowercase().ends_with(&bus_id.to_lowercase());
    let found = handle("nvmlDeviceGetHandleByPciBusId_v2", |gpu, _| same(&gpu.pci_bus_id));
    // SAFETY: nvml.h asks the caller for one handle.
    unsafe { store_handle(found, out) }
}

/// # Safety
/// `out` is null or valid for one handle.
unsafe fn store_handle(found: Result<nvmlDevice_t, Code>, out: *mut nvmlDevice_t) -> Code {
    match found {
        // SAFETY: by the contract above.
        Ok(device) => unsafe { store(out, device) },
        Err(code) => code,
    }
}

/// An index that does not exist is an invalid argument; a name that does not exist is not found.
fn refused(code: Code, missing: Code) -> Code {
    if code == codes::NOT_FOUND { missing } else { code }
}
