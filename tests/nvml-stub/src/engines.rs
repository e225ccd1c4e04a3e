//! Calls about a device's engines, mapped memory, fabric and accounts.
#![expect(unsafe_code, reason = "exports a C ABI")]

use std::ffi::c_uint;

use gpu_state::scenario::{Engines, Fabric};
use nvml_wrapper_sys::bindings::{
    NVML_GPU_FABRIC_HEALTH_MASK_DEGRADED_BW_FALSE, NVML_GPU_FABRIC_HEALTH_MASK_DEGRADED_BW_TRUE,
    nvmlBAR1Memory_t, nvmlDevice_t, nvmlEnableState_t, nvmlGpuFabricInfo_v2_t,
    nvmlGpuFabricInfoV_t,
};
use recording::Recorded;

use crate::codes::{Code, INVALID_ARGUMENT, NOT_SUPPORTED, SUCCESS, UNKNOWN, VERSION_MISMATCH};
use crate::out::{store, store_answer};
use crate::recorded::said;
use crate::session::{Target, about};

/// As the driver samples engines.
const PERIOD_US: c_uint = 167_000;

/// The recorder's name of an engine, and how busy it was and is simulated to be.
type Engine = (&'static str, fn(&Recorded) -> Option<u32>, fn(&Engines) -> Option<u32>);

const ENCODER: Engine = ("encoder", |it| it.encoder, |it| it.encoder);
const DECODER: Engine = ("decoder", |it| it.decoder, |it| it.decoder);
const JPEG: Engine = ("jpeg", |it| it.jpeg, |it| it.jpeg);
const OPTICAL_FLOW: Engine = ("optical_flow", |it| it.optical_flow, |it| it.optical_flow);

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
    unsafe { engine("nvmlDeviceGetEncoderUtilization", device, ENCODER, out) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetDecoderUtilization(
    device: nvmlDevice_t,
    percent: *mut c_uint,
    period_us: *mut c_uint,
) -> Code {
    let out = (percent, period_us);
    // SAFETY: nvml.h asks the caller for two integers.
    unsafe { engine("nvmlDeviceGetDecoderUtilization", device, DECODER, out) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetJpgUtilization(
    device: nvmlDevice_t,
    percent: *mut c_uint,
    period_us: *mut c_uint,
) -> Code {
    let out = (percent, period_us);
    // SAFETY: nvml.h asks the caller for two integers.
    unsafe { engine("nvmlDeviceGetJpgUtilization", device, JPEG, out) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetOfaUtilization(
    device: nvmlDevice_t,
    percent: *mut c_uint,
    period_us: *mut c_uint,
) -> Code {
    let out = (percent, period_us);
    // SAFETY: nvml.h asks the caller for two integers.
    unsafe { engine("nvmlDeviceGetOfaUtilization", device, OPTICAL_FLOW, out) }
}

/// # Safety
/// Each pointer of `out` is null or valid for one integer.
unsafe fn engine(
    call: &str,
    device: nvmlDevice_t,
    (question, recorded, simulated): Engine,
    out: (*mut c_uint, *mut c_uint),
) -> Code {
    about(call, device, |it| {
        let simulated = |it: &Target| simulated(&it.gpu().engines).ok_or(NOT_SUPPORTED);
        // SAFETY: by the contract above.
        let code = unsafe { store_answer(out.0, it.answer(question, recorded, simulated)) };
        if code != SUCCESS {
            return code;
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
        let simulated = |it: &Target| {
            let gpu = it.gpu();
            gpu.bar1_mib.map(|it| (it << 20, gpu.bar1_used_mib << 20)).ok_or(NOT_SUPPORTED)
        };
        let recorded = |it: &Recorded| it.bar1.map(|(total, used)| (total.0, used.0));
        let answer = it.answer("bar1", recorded, simulated).map(|(total, used)| nvmlBAR1Memory_t {
            bar1Total: total,
            bar1Free: total.saturating_sub(used),
            bar1Used: used,
        });
        // SAFETY: nvml.h asks the caller for one structure.
        unsafe { store_answer(memory, answer) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetAccountingMode(
    device: nvmlDevice_t,
    mode: *mut nvmlEnableState_t,
) -> Code {
    about("nvmlDeviceGetAccountingMode", device, |it| {
        let simulated = |it: &Target| it.gpu().accounting_on.ok_or(NOT_SUPPORTED);
        let on = it.answer("accounting_mode", |it| it.accounting_on, simulated);
        // SAFETY: nvml.h asks the caller for one integer.
        unsafe { store_answer(mode, on.map(nvmlEnableState_t::from)) }
    })
}

/// A recorded fabric has what the agent makes of the structure: enough to make it again.
fn fabric_of(target: &Target) -> Result<Fabric, Code> {
    let Some(recorded) = target.recorded() else {
        return Ok(target.gpu().fabric.unwrap_or_default());
    };
    let fabric = said(recorded, "fabric", recorded.fabric)?;
    let health_mask = match fabric.degraded {
        Some(true) => NVML_GPU_FABRIC_HEALTH_MASK_DEGRADED_BW_TRUE,
        Some(false) => NVML_GPU_FABRIC_HEALTH_MASK_DEGRADED_BW_FALSE,
        None => 0,
    };
    let status = if fabric.failed { UNKNOWN } else { SUCCESS };
    Ok(Fabric { state: u8::try_from(fabric.state).unwrap_or(u8::MAX), status, health_mask })
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
        let fabric = match fabric_of(it) {
            Ok(fabric) => fabric,
            Err(code) => return code,
        };
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
