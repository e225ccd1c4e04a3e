//! Contexts.
#![expect(unsafe_code, reason = "answers a C ABI")]

use std::ffi::{c_int, c_uint, c_void};

use crate::codes::{Code, INVALID_CONTEXT, INVALID_DEVICE, OUT_OF_MEMORY, SUCCESS};
use crate::driver::{Driver, current, enter, enter_device, pop_current, push_current, set_current};
use crate::out::{store, store_made};
use crate::system::index_of;
use crate::tables::{Release, device_of};

pub unsafe extern "C" fn create(context: *mut u64, _flags: c_uint, device: c_int) -> Code {
    // SAFETY: the caller gives one handle.
    unsafe { make("cuCtxCreate", context, device) }
}

pub unsafe extern "C" fn create_v2(context: *mut u64, _flags: c_uint, device: c_int) -> Code {
    // SAFETY: the caller gives one handle.
    unsafe { make("cuCtxCreate_v2", context, device) }
}

pub unsafe extern "C" fn create_v3(
    context: *mut u64,
    _affinity: *const c_void,
    _affinities: c_int,
    _flags: c_uint,
    device: c_int,
) -> Code {
    // SAFETY: the caller gives one handle.
    unsafe { make("cuCtxCreate_v3", context, device) }
}

pub unsafe extern "C" fn create_v4(
    context: *mut u64,
    _parameters: *const c_void,
    _flags: c_uint,
    device: c_int,
) -> Code {
    // SAFETY: the caller gives one handle.
    unsafe { make("cuCtxCreate_v4", context, device) }
}

pub extern "C" fn destroy(context: u64) -> Code {
    let driver = match enter("cuCtxDestroy_v2") {
        Ok(driver) => driver,
        Err(code) => return code,
    };
    let Some(device) = driver.tables().remove_context(context) else { return INVALID_CONTEXT };
    driver.node.close_context(driver.seat, device);
    if current() == Some(context) {
        set_current(0);
    }
    SUCCESS
}

pub unsafe extern "C" fn primary_retain(context: *mut u64, device: c_int) -> Code {
    let retained = || {
        let driver = enter("cuDevicePrimaryCtxRetain")?;
        let index = index_of(driver, device)?;
        let mut tables = driver.tables();
        if let Some(context) = tables.retain_primary(index) {
            return Ok(context);
        }
        open_context(driver, index)?;
        Ok(tables.add_primary(index))
    };
    // SAFETY: the caller gives one handle.
    unsafe { store_made(context, retained) }
}

pub extern "C" fn primary_release(device: c_int) -> Code {
    with_device("cuDevicePrimaryCtxRelease_v2", device, |driver, index| {
        let mut tables = driver.tables();
        match tables.release_primary(index) {
            Release::NotRetained => INVALID_CONTEXT,
            Release::StillUsed => SUCCESS,
            Release::Last => {
                tables.drop_primary(index);
                driver.node.close_context(driver.seat, index);
                SUCCESS
            }
        }
    })
}

pub extern "C" fn primary_reset(device: c_int) -> Code {
    with_device("cuDevicePrimaryCtxReset_v2", device, |driver, index| {
        if driver.tables().drop_primary(index) {
            driver.node.close_context(driver.seat, index);
        }
        SUCCESS
    })
}

pub extern "C" fn set(context: u64) -> Code {
    match enter("cuCtxSetCurrent") {
        Ok(_) if context == 0 || device_of(context).is_some() => {
            set_current(context);
            SUCCESS
        }
        Ok(_) => INVALID_CONTEXT,
        Err(code) => code,
    }
}

pub unsafe extern "C" fn get(context: *mut u64) -> Code {
    // SAFETY: the caller gives one handle.
    unsafe { store_made(context, || enter("cuCtxGetCurrent").map(|_| current().unwrap_or(0))) }
}

pub unsafe extern "C" fn get_device(device: *mut c_int) -> Code {
    let ordinal = || {
        let (driver, index) = enter_device("cuCtxGetDevice")?;
        let ordinal = driver.visible.iter().position(|it| *it == index).ok_or(INVALID_DEVICE)?;
        c_int::try_from(ordinal).ok().ok_or(INVALID_DEVICE)
    };
    // SAFETY: the caller gives one integer.
    unsafe { store_made(device, ordinal) }
}

pub extern "C" fn push(context: u64) -> Code {
    match enter("cuCtxPushCurrent_v2") {
        Ok(_) if device_of(context).is_some() => {
            push_current(context);
            SUCCESS
        }
        Ok(_) => INVALID_CONTEXT,
        Err(code) => code,
    }
}

pub unsafe extern "C" fn pop(context: *mut u64) -> Code {
    if let Err(code) = enter("cuCtxPopCurrent_v2") {
        return code;
    }
    match pop_current() {
        // SAFETY: the caller gives one handle, or null when it does not want it.
        Some(popped) if !context.is_null() => unsafe { store(context, popped) },
        Some(_) => SUCCESS,
        None => INVALID_CONTEXT,
    }
}

/// # Safety
/// `context` is null or valid for one handle.
unsafe fn make(call: &str, context: *mut u64, device: c_int) -> Code {
    let created = || {
        let driver = enter(call)?;
        let index = index_of(driver, device)?;
        open_context(driver, index)?;
        let context = driver.tables().add_context(index);
        push_current(context);
        Ok(context)
    };
    // SAFETY: by the contract above.
    unsafe { store_made(context, created) }
}

fn open_context(driver: &Driver, index: usize) -> Result<(), Code> {
    let opened = driver.node.open_context(driver.seat, index);
    opened.ok().ok_or(OUT_OF_MEMORY)
}

fn with_device(call: &str, device: c_int, then: impl FnOnce(&Driver, usize) -> Code) -> Code {
    let found = enter(call).and_then(|driver| Ok((driver, index_of(driver, device)?)));
    match found {
        Ok((driver, index)) => then(driver, index),
        Err(code) => code,
    }
}
