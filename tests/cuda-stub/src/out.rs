//! Writing through the caller's pointers: the only place that does.
#![expect(unsafe_code, reason = "the callers are C")]

use crate::codes::{Code, INVALID_VALUE, SUCCESS};

/// Writes one value.
///
/// # Safety
/// `out` is null or valid for one `T`.
pub(crate) unsafe fn store<T>(out: *mut T, value: T) -> Code {
    if out.is_null() {
        return INVALID_VALUE;
    }
    // SAFETY: not null, hence valid by the contract above.
    unsafe { out.write(value) };
    SUCCESS
}

/// Writes what was made, or passes on why it was not.
///
/// # Safety
/// `out` is null or valid for one `T`.
pub(crate) unsafe fn store_made<T>(out: *mut T, make: impl FnOnce() -> Result<T, Code>) -> Code {
    if out.is_null() {
        return INVALID_VALUE;
    }
    match make() {
        // SAFETY: not null, hence valid by the contract above.
        Ok(value) => unsafe { store(out, value) },
        Err(code) => code,
    }
}
