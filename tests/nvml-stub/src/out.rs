//! Writing through the caller's pointers: the only place that does.
#![expect(unsafe_code, reason = "the callers are C")]

use std::ffi::{CStr, c_char, c_uint};

use crate::codes::{Code, INSUFFICIENT_SIZE, INVALID_ARGUMENT, SUCCESS};

/// Writes one value.
///
/// # Safety
/// `out` is null or valid for one `T`.
pub(crate) unsafe fn store<T>(out: *mut T, value: T) -> Code {
    if out.is_null() {
        return INVALID_ARGUMENT;
    }
    // SAFETY: not null, hence valid by the contract above.
    unsafe { out.write(value) };
    SUCCESS
}

/// Writes an answer, where there is one.
///
/// # Safety
/// As for [`store`].
pub(crate) unsafe fn store_answer<T>(out: *mut T, answer: Result<T, Code>) -> Code {
    match answer {
        // SAFETY: by the contract above.
        Ok(value) => unsafe { store(out, value) },
        Err(code) => code,
    }
}

/// Writes a string with its terminating zero.
///
/// # Safety
/// `out` is null or valid for `length` bytes.
pub(crate) unsafe fn store_text(out: *mut c_char, length: c_uint, text: &str) -> Code {
    let room = usize::try_from(length).unwrap_or(0);
    if out.is_null() {
        return INVALID_ARGUMENT;
    }
    if room <= text.len() {
        return INSUFFICIENT_SIZE;
    }
    // SAFETY: the contract gives `length` bytes.
    let bytes = unsafe { std::slice::from_raw_parts_mut(out.cast::<u8>(), room) };
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    bytes[text.len()] = 0;
    SUCCESS
}

/// Writes a list as NVML does: a call with too little room is told how much there must be.
///
/// # Safety
/// `count` is null or valid; `out` is null or valid for as many `T` as `count` says.
pub(crate) unsafe fn store_list<T>(count: *mut c_uint, out: *mut T, items: &[T]) -> Code {
    if count.is_null() {
        return INVALID_ARGUMENT;
    }
    // SAFETY: not null, hence valid by the contract above.
    let room = usize::try_from(unsafe { count.read() }).unwrap_or(0);
    // SAFETY: as above.
    unsafe { count.write(c_uint::try_from(items.len()).unwrap_or(c_uint::MAX)) };
    if items.is_empty() {
        return SUCCESS;
    }
    if room < items.len() || out.is_null() {
        return INSUFFICIENT_SIZE;
    }
    // SAFETY: the caller has room for at least this many items.
    unsafe { out.copy_from_nonoverlapping(items.as_ptr(), items.len()) };
    SUCCESS
}

/// A string argument; `None` for null and for what is not UTF-8.
///
/// # Safety
/// `text` is null or a string that ends with a zero.
pub(crate) unsafe fn argument<'a>(text: *const c_char) -> Option<&'a str> {
    if text.is_null() {
        return None;
    }
    // SAFETY: not null, hence a string by the contract above.
    unsafe { CStr::from_ptr(text) }.to_str().ok()
}
