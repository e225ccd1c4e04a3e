//! Calls about a device's engines, mapped memory, fabric and accounts.
#![expect(unsafe_code, reason = "exports a C ABI")]

use std::ffi::c_uint;

use gpu_state::scenario::Engines;
use nvml_wrapper_sys::bindings::{
    nvmlBAR1Memory_t, nvmlDevice_t, nvmlEnableState_t, nvmlGpuFabricInfo_v2_t, nvmlGpuFabricInfoV_t,
};

use crate::codes::{Code, INVALID_ARGUMENT, NOT_SUPPORTED, SUCCESS, VERSION_MISMATCH};
use crate::out::store;
use crate::session::about;

/// As the driver samples engines.
const PERIOD_US: c_uint = 167_000;

/// As `NVML_STRUCT_VERSION(GpuFabricInfo, 2)` puts them into one word.
const FABRIC_V2: usize = size_of::<nvmlGpuFabricInfo_v2_t>() | (2 << 24);

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetEncoderUtilization(
    device: nvmlDevice_t,
    percent: *mut c_uint,
    period_us: *mut c_uint,
) -> Code {
    let out = (percent, period_us);
    // SAFETY: nvml.h asks the caller for two integers.
    unsafe { engine("nvmlDeviceGetEncoderUtilization", device, |it| it.encoder, out) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetDecoderUtilization(
    device: nvmlDevice_t,
    percent: *mut c_uint,
    period_us: *mut c_uint,
) -> Code {
    let out = (percent, period_us);
    // SAFETY: nvml.h asks the caller for two integers.
    unsafe { engine("nvmlDeviceGetDecoderUtilization", device, |it| it.decoder, out) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetJpgUtilization(
    device: nvmlDevice_t,
    percent: *mut c_uint,
    period_us: *mut c_uint,
) -> Code {
    let out = (percent, period_us);
    // SAFETY: nvml.h asks the caller for two integers.
    unsafe { engine("nvmlDeviceGetJpgUtilization", device, |it| it.jpeg, out) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetOfaUtilization(
    device: nvmlDevice_t,
    percent: *mut c_uint,
    period_us: *mut c_uint,
) -> Code {
    let out = (percent, period_us);
    // SAFETY: nvml.h asks the caller for two integers.
    unsafe { engine("nvmlDeviceGetOfaUtilization", device, |it| it.optical_flow, out) }
}

/// # Safety
/// Each pointer of `out` is null or valid for one integer.
unsafe fn engine(
    call: &str,
    device: nvmlDevice_t,
    percent: fn(&Engines) -> Option<u32>,
    out: (*mut c_uint, *mut c_uint),
) -> Code {
    about(call, device, |it| {
        let Some(busy) = percent(&it.gpu().engines) else { return NOT_SUPPORTED };
        // SAFETY: by the contract above.
        if unsafe { store(out.0, busy) } != SUCCESS {
            return INVALID_ARGUMENT;
        }
        // SAFETY: by the contract above.
        unsafe { store(out.1, PERIOD_US) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetBAR1MemoryInfo(
    device: nvmlDevice_t,
    memory: *mut nvmlBAR1Memory_t,
) -> Code {
    about("nvmlDeviceGetBAR1MemoryInfo", device, |it| {
        let gpu = it.gpu();
        let Some(total) = gpu.bar1_mib else { return NOT_SUPPORTED };
        let answer = nvmlBAR1Memory_t {
            bar1Total: total << 20,
            bar1Free: total.saturating_sub(gpu.bar1_used_mib) << 20,
            bar1Used: gpu.bar1_used_mib << 20,
        };
        // SAFETY: nvml.h asks the caller for one structure.
        unsafe { store(memory, answer) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetAccountingMode(
    device: nvmlDevice_t,
    mode: *mut nvmlEnableState_t,
) -> Code {
    about("nvmlDeviceGetAccountingMode", device, |it| match it.gpu().accounting_on {
        // SAFETY: nvml.h asks the caller for one integer.
        Some(on) => unsafe { store(mode, on.into()) },
        None => NOT_SUPPORTED,
    })
}

/// Knows the second version of the structure, as a driver of the 550 branch does.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetGpuFabricInfoV(
    device: nvmlDevice_t,
    info: *mut nvmlGpuFabricInfoV_t,
) -> Code {
    about("nvmlDeviceGetGpuFabricInfoV", device, |it| {
        let info = info.cast::<nvmlGpuFabricInfo_v2_t>();
        if info.is_null() {
            return INVALID_ARGUMENT;
        }
        // SAFETY: not null, and nvml.h asks the caller for one structure with its version filled in.
        let version = unsafe { (*info).version };
        if usize::try_from(version) != Ok(FABRIC_V2) {
            return VERSION_MISMATCH;
        }
        let fabric = it.gpu().fabric.unwrap_or_default();
        let answer = nvmlGpuFabricInfo_v2_t {
            version,
            clusterUuid: [0; 16],
            status: fabric.status,
            cliqueId: 0,
            state: fabric.state,
            healthMask: fabric.health_mask,
        };
        // SAFETY: as above.
        unsafe { store(info, answer) }
    })
}
