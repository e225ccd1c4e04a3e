//! Modules and libraries of device code: nothing is compiled.
#![expect(unsafe_code, reason = "answers a C ABI")]

use std::ffi::{CStr, c_char, c_uint, c_void};

use crate::codes::{Code, INVALID_HANDLE, INVALID_VALUE, NOT_FOUND, SUCCESS};
use crate::driver::{enter, enter_device};
use crate::launches::function_for;
use crate::out::store_made;

/// Handles that stand for nothing but themselves.
const MODULE: u64 = 0x5511_0000;
const LIBRARY: u64 = 0x5512_0000;

pub unsafe extern "C" fn load_file(module: *mut u64, name: *const c_char) -> Code {
    // SAFETY: the caller gives one handle.
    unsafe { load("cuModuleLoad", module, name.cast()) }
}

pub unsafe extern "C" fn load_data(module: *mut u64, image: *const c_void) -> Code {
    // SAFETY: the caller gives one handle.
    unsafe { load("cuModuleLoadData", module, image) }
}

pub unsafe extern "C" fn load_data_ex(
    module: *mut u64,
    image: *const c_void,
    _option_count: c_uint,
    _options: *const c_void,
    _option_values: *const c_void,
) -> Code {
    // SAFETY: the caller gives one handle.
    unsafe { load("cuModuleLoadDataEx", module, image) }
}

pub unsafe extern "C" fn load_fat_binary(module: *mut u64, image: *const c_void) -> Code {
    // SAFETY: the caller gives one handle.
    unsafe { load("cuModuleLoadFatBinary", module, image) }
}

pub extern "C" fn unload(module: u64) -> Code {
    drop_handle("cuModuleUnload", module, MODULE)
}

/// Unlike a module, a library belongs to no context.
pub unsafe extern "C" fn load_library(
    library: *mut u64,
    code: *const c_void,
    _jit_options: *const c_void,
    _jit_option_values: *const c_void,
    _jit_option_count: c_uint,
    _options: *const c_void,
    _option_values: *const c_void,
    _option_count: c_uint,
) -> Code {
    if code.is_null() {
        return INVALID_VALUE;
    }
    // SAFETY: the caller gives one handle.
    unsafe { store_made(library, || enter("cuLibraryLoadData").map(|_| LIBRARY)) }
}

pub extern "C" fn unload_library(library: u64) -> Code {
    drop_handle("cuLibraryUnload", library, LIBRARY)
}

/// A kernel named `busy_<N>us` runs for that long; another one as long as the scenario says.
pub unsafe extern "C" fn get_function(
    function: *mut u64,
    module: u64,
    name: *const c_char,
) -> Code {
    if name.is_null() || module != MODULE {
        return INVALID_VALUE;
    }
    // SAFETY: not null, and the caller gives a string.
    let Ok(name) = unsafe { CStr::from_ptr(name) }.to_str() else { return NOT_FOUND };
    // SAFETY: the caller gives one handle.
    unsafe { store_made(function, || enter("cuModuleGetFunction").map(|_| function_for(name))) }
}

/// # Safety
/// `module` is null or valid for one handle.
unsafe fn load(call: &str, module: *mut u64, image: *const c_void) -> Code {
    if image.is_null() {
        return INVALID_VALUE;
    }
    // SAFETY: by the contract above.
    unsafe { store_made(module, || enter_device(call).map(|_| MODULE)) }
}

fn drop_handle(call: &str, handle: u64, expected: u64) -> Code {
    match enter(call) {
        Ok(_) if handle == expected => SUCCESS,
        Ok(_) => INVALID_HANDLE,
        Err(code) => code,
    }
}
