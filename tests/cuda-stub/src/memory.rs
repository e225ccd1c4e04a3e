//! Device memory.
#![expect(unsafe_code, reason = "answers a C ABI")]

use std::ffi::{c_int, c_uint, c_void};

use crate::codes::{Code, INVALID_HANDLE, INVALID_VALUE, OUT_OF_MEMORY, SUCCESS};
use crate::driver::{Driver, enter, enter_device};
use crate::out::{store, store_made};
use crate::system::index_of;
use crate::tables::{Allocation, Kind};

/// Rows of a pitched allocation begin at multiples of this.
const PITCH: usize = 512;

/// The pool that every device has from the start.
const DEFAULT_POOL: u64 = 0x5533_0000;

/// `CUipcMemHandle`: passed by value, on the stack.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct IpcHandle([u8; 64]);

pub unsafe extern "C" fn alloc(pointer: *mut u64, bytes: usize) -> Code {
    // SAFETY: the caller gives one device pointer.
    unsafe { allocate("cuMemAlloc_v2", pointer, bytes, Kind::Device) }
}

pub unsafe extern "C" fn alloc_managed(pointer: *mut u64, bytes: usize, _flags: c_uint) -> Code {
    // SAFETY: the caller gives one device pointer.
    unsafe { allocate("cuMemAllocManaged", pointer, bytes, Kind::Managed) }
}

pub unsafe extern "C" fn alloc_async(pointer: *mut u64, bytes: usize, _stream: u64) -> Code {
    // SAFETY: the caller gives one device pointer.
    unsafe { allocate("cuMemAllocAsync", pointer, bytes, Kind::StreamOrdered) }
}

pub unsafe extern "C" fn alloc_from_pool_async(
    pointer: *mut u64,
    bytes: usize,
    pool: u64,
    _stream: u64,
) -> Code {
    match enter("cuMemAllocFromPoolAsync") {
        Ok(driver) if !is_pool(driver, pool) => return INVALID_VALUE,
        Ok(_) => {}
        Err(code) => return code,
    }
    // SAFETY: the caller gives one device pointer.
    unsafe { allocate("cuMemAllocFromPoolAsync", pointer, bytes, Kind::StreamOrdered) }
}

pub unsafe extern "C" fn alloc_pitch(
    pointer: *mut u64,
    pitch: *mut usize,
    width_bytes: usize,
    height: usize,
    _element_bytes: c_uint,
) -> Code {
    if pitch.is_null() {
        return INVALID_VALUE;
    }
    let Some(row) = pitch_of(width_bytes) else { return OUT_OF_MEMORY };
    let bytes = row.saturating_mul(height);
    // SAFETY: the caller gives one device pointer.
    match unsafe { allocate("cuMemAllocPitch_v2", pointer, bytes, Kind::Device) } {
        // SAFETY: the caller gives one integer.
        SUCCESS => unsafe { store(pitch, row) },
        code => code,
    }
}

/// Freeing nothing succeeds; freeing what was never allocated does not.
pub extern "C" fn free(pointer: u64) -> Code {
    release_as("cuMemFree_v2", pointer, &[Kind::Device, Kind::Managed, Kind::StreamOrdered])
}

pub extern "C" fn free_async(pointer: u64, _stream: u64) -> Code {
    release_as("cuMemFreeAsync", pointer, &[Kind::Device, Kind::StreamOrdered])
}

pub unsafe extern "C" fn default_pool(pool: *mut u64, device: c_int) -> Code {
    let found = || {
        let driver = enter("cuDeviceGetDefaultMemPool")?;
        index_of(driver, device).map(|_| DEFAULT_POOL)
    };
    // SAFETY: the caller gives one handle.
    unsafe { store_made(pool, found) }
}

pub unsafe extern "C" fn pool_create(pool: *mut u64, properties: *const c_void) -> Code {
    if properties.is_null() {
        return INVALID_VALUE;
    }
    let made = || enter("cuMemPoolCreate").map(|it| it.tables().add_handle());
    // SAFETY: the caller gives one handle.
    unsafe { store_made(pool, made) }
}

pub extern "C" fn pool_destroy(pool: u64) -> Code {
    match enter("cuMemPoolDestroy") {
        Ok(driver) if driver.tables().drop_handle(pool) => SUCCESS,
        Ok(_) => INVALID_VALUE,
        Err(code) => code,
    }
}

/// Memory of another process: no allocation of this one.
pub unsafe extern "C" fn ipc_open(pointer: *mut u64, _handle: IpcHandle, _flags: c_uint) -> Code {
    let opened = || {
        let (driver, device) = enter_device("cuIpcOpenMemHandle_v2")?;
        Ok(driver.tables().add(Allocation { device, bytes: 0, kind: Kind::Opened }))
    };
    // SAFETY: the caller gives one device pointer.
    unsafe { store_made(pointer, opened) }
}

pub extern "C" fn ipc_close(pointer: u64) -> Code {
    match release_as("cuIpcCloseMemHandle", pointer, &[Kind::Opened]) {
        INVALID_VALUE => INVALID_HANDLE,
        code => code,
    }
}

pub unsafe extern "C" fn get_info(free: *mut usize, total: *mut usize) -> Code {
    let (driver, device) = match enter_device("cuMemGetInfo_v2") {
        Ok(it) => it,
        Err(code) => return code,
    };
    let Some(memory) = driver.node.memory(device) else { return INVALID_VALUE };
    let in_words = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    // SAFETY: the caller gives one integer.
    if unsafe { store(free, in_words(memory.free_bytes)) } != SUCCESS {
        return INVALID_VALUE;
    }
    // SAFETY: the caller gives one integer.
    unsafe { store(total, in_words(memory.total_bytes)) }
}

/// Bytes between the beginnings of two rows; `None` when no memory holds one.
pub(crate) fn pitch_of(width_bytes: usize) -> Option<usize> {
    width_bytes.checked_next_multiple_of(PITCH)
}

/// Takes memory from a device and remembers it under an address or handle of its own.
pub(crate) fn take(driver: &Driver, device: usize, bytes: usize, kind: Kind) -> Result<u64, Code> {
    let bytes = charge(driver, device, bytes)?;
    Ok(driver.tables().add(Allocation { device, bytes, kind }))
}

/// Takes memory from a device and forgets it.
pub(crate) fn charge(driver: &Driver, device: usize, bytes: usize) -> Result<u64, Code> {
    let bytes = bytes as u64;
    if bytes == 0 {
        return Err(INVALID_VALUE);
    }
    let taken = driver.node.allocate(driver.seat, device, bytes);
    taken.ok().ok_or(OUT_OF_MEMORY)?;
    Ok(bytes)
}

/// Gives back memory of one of these kinds. Nothing is not an error; what is unknown is.
pub(crate) fn release_as(call: &str, address: u64, kinds: &[Kind]) -> Code {
    let driver = match enter(call) {
        Ok(driver) => driver,
        Err(code) => return code,
    };
    if address == 0 && kinds.contains(&Kind::Device) {
        return SUCCESS;
    }
    let removed = driver.tables().remove(address, kinds);
    let Some(allocation) = removed else { return INVALID_VALUE };
    driver.node.free(driver.seat, allocation.device, allocation.bytes);
    SUCCESS
}

fn is_pool(driver: &Driver, pool: u64) -> bool {
    pool == DEFAULT_POOL || driver.tables().has_handle(pool)
}

/// # Safety
/// `pointer` is null or valid for one device pointer.
unsafe fn allocate(call: &str, pointer: *mut u64, bytes: usize, kind: Kind) -> Code {
    let allocated = || {
        let (driver, device) = enter_device(call)?;
        take(driver, device, bytes, kind)
    };
    // SAFETY: by the contract above.
    unsafe { store_made(pointer, allocated) }
}
