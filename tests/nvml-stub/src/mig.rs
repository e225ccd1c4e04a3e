//! Calls about MIG: whether it is on, and which instances there are.
#![expect(unsafe_code, reason = "exports a C ABI")]

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings::nvmlDevice_t;

use crate::codes::{Code, INVALID_ARGUMENT, NOT_FOUND, NOT_SUPPORTED, SUCCESS};
use crate::out::{store, store_answer};
use crate::recorded::{refusal, said};
use crate::session::{Target, about, about_any, mig_handle};

/// Instances of one device: what the hardware has.
const MOST: c_uint = 7;

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMigMode(
    device: nvmlDevice_t,
    current: *mut c_uint,
    pending: *mut c_uint,
) -> Code {
    about("nvmlDeviceGetMigMode", device, |it| {
        let mode = match it.answer("mig_mode", |it| it.mig_on, |it| Ok(it.gpu().mig.is_some())) {
            Ok(on) => on.into(),
            Err(code) => return code,
        };
        // SAFETY: nvml.h asks the caller for one integer.
        if unsafe { store(current, mode) } != SUCCESS {
            return INVALID_ARGUMENT;
        }
        // SAFETY: as above.
        unsafe { store(pending, mode) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceIsMigDeviceHandle(
    device: nvmlDevice_t,
    is_mig: *mut c_uint,
) -> Code {
    about_any("nvmlDeviceIsMigDeviceHandle", device, |it| {
        // SAFETY: nvml.h asks the caller for one integer.
        unsafe { store(is_mig, it.slot.is_some().into()) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMaxMigDeviceCount(
    device: nvmlDevice_t,
    count: *mut c_uint,
) -> Code {
    about("nvmlDeviceGetMaxMigDeviceCount", device, |it| {
        let recorded = it.recorded().and_then(|it| refusal(it, "mig_devices"));
        if let Some(code) = recorded {
            return code;
        }
        let most = if slots(it).is_some() { MOST } else { 0 };
        // SAFETY: nvml.h asks the caller for one integer.
        unsafe { store(count, most) }
    })
}

/// Slots without an instance are not found.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(
    device: nvmlDevice_t,
    index: c_uint,
    mig: *mut nvmlDevice_t,
) -> Code {
    about("nvmlDeviceGetMigDeviceHandleByIndex", device, |it| {
        let Some(instances) = slots(it) else { return NOT_SUPPORTED };
        let slot = usize::try_from(index).unwrap_or(usize::MAX);
        if slot >= instances {
            return NOT_FOUND;
        }
        // SAFETY: nvml.h asks the caller for one handle.
        unsafe { store(mig, mig_handle(it.index, slot)) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetGpuInstanceId(device: nvmlDevice_t, id: *mut c_uint) -> Code {
    about_any("nvmlDeviceGetGpuInstanceId", device, |it| {
        let recorded = it.recorded_instance().and_then(|it| it.gpu_instance);
        let own = recorded.or_else(|| it.instance().map(|it| it.gpu_instance));
        // SAFETY: nvml.h asks the caller for one integer.
        unsafe { store_answer(id, own.ok_or(NOT_SUPPORTED)) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetComputeInstanceId(device: nvmlDevice_t, id: *mut c_uint) -> Code {
    about_any("nvmlDeviceGetComputeInstanceId", device, |it| {
        let recorded = it.recorded_instance().and_then(|it| it.compute_instance);
        let own = recorded.or_else(|| it.instance().map(|it| it.compute_instance));
        // SAFETY: nvml.h asks the caller for one integer.
        unsafe { store_answer(id, own.ok_or(NOT_SUPPORTED)) }
    })
}

/// How many instances there are; `None` where MIG is off.
fn slots(target: &Target) -> Option<usize> {
    match target.recorded() {
        Some(recorded) => {
            let instances = said(recorded, "mig_devices", recorded.mig.as_ref()).ok();
            instances.filter(|_| recorded.mig_on == Some(true)).map(Vec::len)
        }
        None => target.gpu().mig.as_ref().map(Vec::len),
    }
}
