//! Device memory and pinned host memory.
#![expect(unsafe_code, reason = "answers a C ABI")]

use std::ffi::{c_int, c_uint, c_ulonglong, c_void};

use crate::codes::{Code, INVALID_VALUE, OUT_OF_MEMORY, SUCCESS};
use crate::driver::{Driver, enter, enter_device};
use crate::out::{store, store_made};
use crate::system::index_of;
use crate::tables::Allocation;

/// Rows of a pitched allocation begin at multiples of this.
const PITCH: usize = 512;

/// `CUmemAllocationProp`, as far as it is read: the device is in `location`.
#[derive(Debug)]
#[repr(C)]
pub struct AllocationProperties {
    kind: c_uint,
    handle_types: c_uint,
    location_kind: c_uint,
    location_id: c_int,
}

/// `CUipcMemHandle`: passed by value, on the stack.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct IpcHandle([u8; 64]);

pub unsafe extern "C" fn alloc(pointer: *mut u64, bytes: usize) -> Code {
    // SAFETY: the caller gives one device pointer.
    unsafe { allocate("cuMemAlloc_v2", pointer, bytes) }
}

pub unsafe extern "C" fn alloc_managed(pointer: *mut u64, bytes: usize, _flags: c_uint) -> Code {
    // SAFETY: the caller gives one device pointer.
    unsafe { allocate("cuMemAllocManaged", pointer, bytes) }
}

pub unsafe extern "C" fn alloc_async(pointer: *mut u64, bytes: usize, _stream: u64) -> Code {
    // SAFETY: the caller gives one device pointer.
    unsafe { allocate("cuMemAllocAsync", pointer, bytes) }
}

pub unsafe extern "C" fn alloc_from_pool_async(
    pointer: *mut u64,
    bytes: usize,
    _pool: u64,
    _stream: u64,
) -> Code {
    // SAFETY: the caller gives one device pointer.
    unsafe { allocate("cuMemAllocFromPoolAsync", pointer, bytes) }
}

pub unsafe extern "C" fn alloc_pitch(
    pointer: *mut u64,
    pitch: *mut usize,
    width_bytes: usize,
    height: usize,
    _element_bytes: c_uint,
) -> Code {
    let row = width_bytes.next_multiple_of(PITCH);
    // SAFETY: the caller gives one device pointer.
    let code = unsafe { allocate("cuMemAllocPitch_v2", pointer, row.saturating_mul(height)) };
    if code != SUCCESS {
        return code;
    }
    // SAFETY: the caller gives one integer.
    unsafe { store(pitch, row) }
}

/// Freeing nothing succeeds; freeing what was never allocated does not.
pub extern "C" fn free(pointer: u64) -> Code {
    release("cuMemFree_v2", pointer)
}

pub extern "C" fn free_async(pointer: u64, _stream: u64) -> Code {
    release("cuMemFreeAsync", pointer)
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
        take(driver, index_of(driver, ordinal)?, bytes)
    };
    // SAFETY: the caller gives one handle.
    unsafe { store_made(handle, created) }
}

pub extern "C" fn release_handle(handle: u64) -> Code {
    release("cuMemRelease", handle)
}

pub extern "C" fn map(_at: u64, _bytes: usize, _offset: usize, _handle: u64, _flags: u64) -> Code {
    enter("cuMemMap").map_or_else(|code| code, |_| SUCCESS)
}

pub extern "C" fn unmap(_at: u64, _bytes: usize) -> Code {
    enter("cuMemUnmap").map_or_else(|code| code, |_| SUCCESS)
}

/// Memory of another process: no allocation of this one.
pub unsafe extern "C" fn ipc_open(pointer: *mut u64, _handle: IpcHandle, _flags: c_uint) -> Code {
    let opened = || enter_device("cuIpcOpenMemHandle_v2").map(|(it, _)| it.tables().address(1));
    // SAFETY: the caller gives one device pointer.
    unsafe { store_made(pointer, opened) }
}

/// As above.
pub unsafe extern "C" fn import(
    handle: *mut u64,
    _os_handle: *const c_void,
    _kind: c_uint,
) -> Code {
    let imported = || enter("cuMemImportFromShareableHandle").map(|it| it.tables().address(1));
    // SAFETY: the caller gives one handle.
    unsafe { store_made(handle, imported) }
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
    if !driver.tables().host.remove(&pointer.addr()) {
        return INVALID_VALUE;
    }
    // SAFETY: `pin` got it from malloc, and it was removed from the table just now.
    unsafe { libc::free(pointer) };
    SUCCESS
}

pub extern "C" fn host_register(_pointer: *const c_void, _bytes: usize, _flags: c_uint) -> Code {
    enter("cuMemHostRegister_v2").map_or_else(|code| code, |_| SUCCESS)
}

/// # Safety
/// `pointer` is null or valid for one device pointer.
unsafe fn allocate(call: &str, pointer: *mut u64, bytes: usize) -> Code {
    let allocated = || {
        let (driver, device) = enter_device(call)?;
        take(driver, device, bytes)
    };
    // SAFETY: by the contract above.
    unsafe { store_made(pointer, allocated) }
}

fn take(driver: &Driver, device: usize, bytes: usize) -> Result<u64, Code> {
    let bytes = u64::try_from(bytes).ok().ok_or(INVALID_VALUE)?;
    if bytes == 0 {
        return Err(INVALID_VALUE);
    }
    let taken = driver.node.allocate(driver.seat, device, bytes);
    taken.ok().ok_or(OUT_OF_MEMORY)?;
    Ok(driver.tables().add(Allocation { device, bytes }))
}

fn release(call: &str, address: u64) -> Code {
    let driver = match enter(call) {
        Ok(driver) => driver,
        Err(code) => return code,
    };
    if address == 0 {
        return SUCCESS;
    }
    let Some(allocation) = driver.tables().remove(address) else { return INVALID_VALUE };
    driver.node.free(driver.seat, allocation.device, allocation.bytes);
    SUCCESS
}

fn pin(call: &str, bytes: usize) -> Result<*mut c_void, Code> {
    let driver = enter(call)?;
    // SAFETY: malloc takes any size.
    let memory = unsafe { libc::malloc(bytes.max(1)) };
    if memory.is_null() {
        return Err(OUT_OF_MEMORY);
    }
    driver.tables().host.insert(memory.addr());
    Ok(memory)
}
