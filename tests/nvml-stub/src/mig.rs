//! Calls about MIG: whether it is on, and which instances there are.
#![expect(unsafe_code, reason = "exports a C ABI")]

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings::nvmlDevice_t;

use crate::codes::{Code, INVALID_ARGUMENT, NOT_FOUND, NOT_SUPPORTED, SUCCESS};
use crate::out::store;
use crate::session::{about, about_any, mig_handle};

/// Instances of one device: what the hardware has.
const MOST: c_uint = 7;

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMigMode(
    device: nvmlDevice_t,
    current: *mut c_uint,
    pending: *mut c_uint,
) -> Code {
    about("nvmlDeviceGetMigMode", device, |it| {
        let mode = it.gpu().mig.is_some().into();
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
        let most = if it.gpu().mig.is_some() { MOST } else { 0 };
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
        let Some(instances) = it.gpu().mig.as_ref() else { return NOT_SUPPORTED };
        let slot = usize::try_from(index).unwrap_or(usize::MAX);
        if instances.get(slot).is_none() {
            return NOT_FOUND;
        }
        // SAFETY: nvml.h asks the caller for one handle.
        unsafe { store(mig, mig_handle(it.index, slot)) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetGpuInstanceId(device: nvmlDevice_t, id: *mut c_uint) -> Code {
    about_any("nvmlDeviceGetGpuInstanceId", device, |it| match it.instance() {
        // SAFETY: nvml.h asks the caller for one integer.
        Some(instance) => unsafe { store(id, instance.gpu_instance) },
        None => NOT_SUPPORTED,
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetComputeInstanceId(device: nvmlDevice_t, id: *mut c_uint) -> Code {
    about_any("nvmlDeviceGetComputeInstanceId", device, |it| match it.instance() {
        // SAFETY: nvml.h asks the caller for one integer.
        Some(instance) => unsafe { store(id, instance.compute_instance) },
        None => NOT_SUPPORTED,
    })
}
