//! Pinned host memory: allocated here, or registered by the program.
#![expect(unsafe_code, reason = "answers a C ABI")]

use std::ffi::{c_uint, c_void};

use crate::codes::{
    Code, HOST_MEMORY_ALREADY_REGISTERED, HOST_MEMORY_NOT_REGISTERED, INVALID_VALUE, OUT_OF_MEMORY,
    SUCCESS,
};
use crate::driver::{enter, enter_device};
use crate::out::store_made;
use crate::tables::Pinned;

pub unsafe extern "C" fn alloc_host(pointer: *mut *mut c_void, bytes: usize) -> Code {
    // SAFETY: the caller gives one pointer.
    unsafe { store_made(pointer, || pin("cuMemAllocHost_v2", bytes)) }
}

pub unsafe extern "C" fn host_alloc(
    pointer: *mut *mut c_void,
    bytes: usize,
    _flags: c_uint,
) -> Code {
    // SAFETY: the caller gives one pointer.
    unsafe { store_made(pointer, || pin("cuMemHostAlloc", bytes)) }
}

pub unsafe extern "C" fn free_host(pointer: *mut c_void) -> Code {
    let driver = match enter("cuMemFreeHost") {
        Ok(driver) => driver,
        Err(code) => return code,
    };
    if !driver.tables().unpin(pointer.addr(), Pinned::Allocated) {
        return INVALID_VALUE;
    }
    // SAFETY: `pin` got it from malloc, and it was removed from the table just now.
    unsafe { libc::free(pointer) };
    SUCCESS
}

pub extern "C" fn register(pointer: *mut c_void, bytes: usize, _flags: c_uint) -> Code {
    match enter_device("cuMemHostRegister_v2") {
        Ok(_) if pointer.is_null() || bytes == 0 => INVALID_VALUE,
        Ok((driver, _)) if driver.tables().pin(pointer.addr(), Pinned::Registered) => SUCCESS,
        Ok(_) => HOST_MEMORY_ALREADY_REGISTERED,
        Err(code) => code,
    }
}

pub extern "C" fn unregister(pointer: *mut c_void) -> Code {
    match enter_device("cuMemHostUnregister") {
        Ok((driver, _)) if driver.tables().unpin(pointer.addr(), Pinned::Registered) => SUCCESS,
        Ok(_) => HOST_MEMORY_NOT_REGISTERED,
        Err(code) => code,
    }
}

pub(crate) fn pin(call: &str, bytes: usize) -> Result<*mut c_void, Code> {
    let (driver, _) = enter_device(call)?;
    if bytes == 0 {
        return Err(INVALID_VALUE);
    }
    // SAFETY: malloc takes any size.
    let memory = unsafe { libc::malloc(bytes) };
    if memory.is_null() {
        return Err(OUT_OF_MEMORY);
    }
    driver.tables().pin(memory.addr(), Pinned::Allocated);
    Ok(memory)
}
