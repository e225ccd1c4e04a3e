//! Virtual memory management: physical memory, addresses, and which is mapped where.
#![expect(unsafe_code, reason = "answers a C ABI")]

use std::ffi::{c_int, c_uint, c_ulonglong, c_void};

use crate::codes::{Code, INVALID_VALUE, SUCCESS};
use crate::driver::{Driver, enter};
use crate::memory::take;
use crate::out::store_made;
use crate::system::index_of;
use crate::tables::{Allocation, Kind};

/// `CUmemAllocationProp`, as far as it is read: the device is in `location`.
#[derive(Debug)]
#[repr(C)]
pub struct AllocationProperties {
    kind: c_uint,
    handle_types: c_uint,
    location_kind: c_uint,
    location_id: c_int,
}

pub unsafe extern "C" fn create(
    handle: *mut u64,
    bytes: usize,
    properties: *const AllocationProperties,
    _flags: c_ulonglong,
) -> Code {
    if properties.is_null() {
        return INVALID_VALUE;
    }
    // SAFETY: not null, and the caller gives one structure.
    let ordinal = unsafe { (*properties).location_id };
    let created = || {
        let driver = enter("cuMemCreate")?;
        take(driver, index_of(driver, ordinal)?, bytes, Kind::Physical)
    };
    // SAFETY: the caller gives one handle.
    unsafe { store_made(handle, created) }
}

/// Memory of another process: no allocation of this one.
pub unsafe extern "C" fn import(
    handle: *mut u64,
    _os_handle: *const c_void,
    _handle_type: c_uint,
) -> Code {
    let imported = || {
        let driver = enter("cuMemImportFromShareableHandle")?;
        let foreign = Allocation { device: 0, bytes: 0, kind: Kind::Imported };
        Ok(driver.tables().add(foreign))
    };
    // SAFETY: the caller gives one handle.
    unsafe { store_made(handle, imported) }
}

/// The handle of what is mapped at an address, once more.
pub unsafe extern "C" fn retain(handle: *mut u64, address: u64) -> Code {
    let retained = || {
        let driver = enter("cuMemRetainAllocationHandle")?;
        driver.tables().retain_mapped(address).ok_or(INVALID_VALUE)
    };
    // SAFETY: the caller gives one handle.
    unsafe { store_made(handle, retained) }
}

/// A file descriptor for others: nobody opens it.
pub unsafe extern "C" fn export(
    os_handle: *mut c_int,
    handle: u64,
    _handle_type: c_uint,
    _flags: c_ulonglong,
) -> Code {
    let exported = || {
        let driver = enter("cuMemExportToShareableHandle")?;
        if driver.tables().has_physical(handle) { Ok(-1) } else { Err(INVALID_VALUE) }
    };
    // SAFETY: the caller gives one integer.
    unsafe { store_made(os_handle, exported) }
}

/// Memory lives until its last handle is released and its last mapping is gone.
pub extern "C" fn release(handle: u64) -> Code {
    let driver = match enter("cuMemRelease") {
        Ok(driver) => driver,
        Err(code) => return code,
    };
    let released = driver.tables().release_handle(handle);
    let Some(gone) = released else { return INVALID_VALUE };
    give_back(driver, gone.as_slice());
    SUCCESS
}

/// There are no arrays here.
pub extern "C" fn map_arrays(_list: *const c_void, _count: c_uint, _stream: u64) -> Code {
    match enter("cuMemMapArrayAsync") {
        Ok(_) => INVALID_VALUE,
        Err(code) => code,
    }
}

pub unsafe extern "C" fn reserve(
    pointer: *mut u64,
    bytes: usize,
    _alignment: usize,
    _wanted: u64,
    _flags: c_ulonglong,
) -> Code {
    let reserved = || {
        let driver = enter("cuMemAddressReserve")?;
        match bytes as u64 {
            0 => Err(INVALID_VALUE),
            bytes => Ok(driver.tables().reserve(bytes)),
        }
    };
    // SAFETY: the caller gives one device pointer.
    unsafe { store_made(pointer, reserved) }
}

pub extern "C" fn free_address(pointer: u64, bytes: usize) -> Code {
    checked("cuMemAddressFree", |it| it.tables().free_reserved(pointer, bytes as u64))
}

pub extern "C" fn map(
    at: u64,
    bytes: usize,
    _offset: usize,
    handle: u64,
    _flags: c_ulonglong,
) -> Code {
    checked("cuMemMap", |it| it.tables().map(at, bytes as u64, handle))
}

pub extern "C" fn set_access(
    at: u64,
    bytes: usize,
    _descriptions: *const c_void,
    _count: usize,
) -> Code {
    checked("cuMemSetAccess", |it| it.tables().is_mapped(at, bytes as u64))
}

pub extern "C" fn unmap(at: u64, bytes: usize) -> Code {
    let driver = match enter("cuMemUnmap") {
        Ok(driver) => driver,
        Err(code) => return code,
    };
    let unmapped = driver.tables().unmap(at, bytes as u64);
    let Some(gone) = unmapped else { return INVALID_VALUE };
    give_back(driver, &gone);
    SUCCESS
}

fn give_back(driver: &Driver, gone: &[Allocation]) {
    for it in gone {
        driver.node.free(driver.seat, it.device, it.bytes);
    }
}

fn checked(call: &str, is_right: impl FnOnce(&Driver) -> bool) -> Code {
    match enter(call) {
        Ok(driver) if is_right(driver) => SUCCESS,
        Ok(_) => INVALID_VALUE,
        Err(code) => code,
    }
}
