//! Event sets: they exist and nothing ever happens in them.
#![expect(unsafe_code, reason = "exports a C ABI")]

use std::ffi::{c_uint, c_ulonglong};
use std::time::Duration;

use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlEventData_t, nvmlEventSet_t};

use crate::codes::{Code, INVALID_ARGUMENT, SUCCESS, TIMEOUT};
use crate::out::store;
use crate::session::{about, about_node};

/// `nvmlEventTypeXidCriticalError`.
const XID: c_ulonglong = 8;

/// There is no state in a set, so all sets are one.
const SET: usize = 0x6000;

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlEventSetCreate(set: *mut nvmlEventSet_t) -> Code {
    // SAFETY: nvml.h asks the caller for one handle.
    about_node(|_| unsafe { store(set, std::ptr::without_provenance_mut(SET)) })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlEventSetFree(_set: nvmlEventSet_t) -> Code {
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetSupportedEventTypes(
    device: nvmlDevice_t,
    types: *mut c_ulonglong,
) -> Code {
    about("nvmlDeviceGetSupportedEventTypes", device, |_| {
        // SAFETY: nvml.h asks the caller for one integer.
        unsafe { store(types, XID) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceRegisterEvents(
    device: nvmlDevice_t,
    types: c_ulonglong,
    _set: nvmlEventSet_t,
) -> Code {
    about("nvmlDeviceRegisterEvents", device, |_| {
        if types & !XID == 0 { SUCCESS } else { INVALID_ARGUMENT }
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlEventSetWait_v2(
    _set: nvmlEventSet_t,
    _data: *mut nvmlEventData_t,
    timeout_ms: c_uint,
) -> Code {
    std::thread::sleep(Duration::from_millis(timeout_ms.into()));
    TIMEOUT
}
