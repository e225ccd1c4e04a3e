//! Streams and events. All streams are one queue here, so that an event is done when everything is.
#![expect(unsafe_code, reason = "answers a C ABI")]

use std::ffi::{c_int, c_uint};

use crate::codes::{Code, INVALID_HANDLE, NOT_READY, SUCCESS};
use crate::driver::{Driver, enter, enter_device};
use crate::out::store_made;

pub unsafe extern "C" fn create(stream: *mut u64, _flags: c_uint) -> Code {
    // SAFETY: the caller gives one handle.
    unsafe { store_made(stream, || made("cuStreamCreate")) }
}

pub unsafe extern "C" fn create_with_priority(
    stream: *mut u64,
    _flags: c_uint,
    _priority: c_int,
) -> Code {
    // SAFETY: the caller gives one handle.
    unsafe { store_made(stream, || made("cuStreamCreateWithPriority")) }
}

pub extern "C" fn destroy(stream: u64) -> Code {
    with_handle("cuStreamDestroy_v2", stream, |driver| driver.tables().drop_handle(stream))
}

pub extern "C" fn query(_stream: u64) -> Code {
    readiness("cuStreamQuery")
}

pub unsafe extern "C" fn event_create(event: *mut u64, _flags: c_uint) -> Code {
    // SAFETY: the caller gives one handle.
    unsafe { store_made(event, || made("cuEventCreate")) }
}

pub extern "C" fn event_destroy(event: u64) -> Code {
    with_handle("cuEventDestroy_v2", event, |driver| driver.tables().drop_handle(event))
}

pub extern "C" fn event_record(event: u64, _stream: u64) -> Code {
    recorded("cuEventRecord", event)
}

pub extern "C" fn event_record_with_flags(event: u64, _stream: u64, _flags: c_uint) -> Code {
    recorded("cuEventRecordWithFlags", event)
}

pub extern "C" fn event_query(event: u64) -> Code {
    match with_handle("cuEventQuery", event, |driver| driver.tables().has_handle(event)) {
        SUCCESS => readiness("cuEventQuery"),
        code => code,
    }
}

fn made(call: &str) -> Result<u64, Code> {
    enter_device(call).map(|(driver, _)| driver.tables().add_handle())
}

fn recorded(call: &str, event: u64) -> Code {
    match enter_device(call) {
        Ok((driver, _)) if driver.tables().has_handle(event) => SUCCESS,
        Ok(_) => INVALID_HANDLE,
        Err(code) => code,
    }
}

fn with_handle(call: &str, handle: u64, then: impl FnOnce(&Driver) -> bool) -> Code {
    match enter(call) {
        Ok(driver) if handle != 0 && then(driver) => SUCCESS,
        Ok(_) => INVALID_HANDLE,
        Err(code) => code,
    }
}

fn readiness(call: &str) -> Code {
    match enter_device(call) {
        Ok((driver, device)) if driver.node.is_idle(driver.seat, device) => SUCCESS,
        Ok(_) => NOT_READY,
        Err(code) => code,
    }
}
