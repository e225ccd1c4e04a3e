//! Functions of the first version, as programs of CUDA 3.1 and older call them: sizes and device
//! addresses have 32 bits. Those whose signature has not changed are where their successors are.
#![expect(unsafe_code, reason = "answers a C ABI")]

use std::ffi::{c_int, c_uint, c_void};

use crate::codes::{Code, INVALID_VALUE, OUT_OF_MEMORY, SUCCESS};
use crate::copies::{queue, wait};
use crate::driver::enter_device;
use crate::host::pin;
use crate::memory::{charge, get_info as get_info_v2, pitch_of, release_as};
use crate::out::{store, store_made};
use crate::system::device_total_mem as device_total_mem_v2;
use crate::tables::{Allocation, Kind};

pub unsafe extern "C" fn alloc(pointer: *mut u32, bytes: c_uint) -> Code {
    // SAFETY: the caller gives one device pointer of 32 bits.
    unsafe { store_made(pointer, || take("cuMemAlloc", bytes as usize)) }
}

pub unsafe extern "C" fn alloc_pitch(
    pointer: *mut u32,
    pitch: *mut c_uint,
    width_bytes: c_uint,
    height: c_uint,
    _element_bytes: c_uint,
) -> Code {
    if pitch.is_null() {
        return INVALID_VALUE;
    }
    let Some(row) = pitch_of(width_bytes as usize) else { return OUT_OF_MEMORY };
    let bytes = row.saturating_mul(height as usize);
    // SAFETY: the caller gives one device pointer of 32 bits.
    match unsafe { store_made(pointer, || take("cuMemAllocPitch", bytes)) } {
        // SAFETY: the caller gives one integer of 32 bits.
        SUCCESS => unsafe { store(pitch, c_uint::try_from(row).unwrap_or(c_uint::MAX)) },
        code => code,
    }
}

pub extern "C" fn free(pointer: u32) -> Code {
    release_as("cuMemFree", pointer.into(), &[Kind::Device])
}

pub unsafe extern "C" fn get_info(free: *mut c_uint, total: *mut c_uint) -> Code {
    let (mut free_bytes, mut total_bytes) = (0, 0);
    // SAFETY: both are locals.
    match unsafe { get_info_v2(&raw mut free_bytes, &raw mut total_bytes) } {
        SUCCESS => {}
        code => return code,
    }
    // SAFETY: the caller gives one integer of 32 bits.
    if unsafe { store(free, in_32_bits(free_bytes)) } != SUCCESS {
        return INVALID_VALUE;
    }
    // SAFETY: the caller gives one integer of 32 bits.
    unsafe { store(total, in_32_bits(total_bytes)) }
}

pub unsafe extern "C" fn device_total_mem(bytes: *mut c_uint, device: c_int) -> Code {
    let mut total_bytes = 0;
    // SAFETY: a local.
    match unsafe { device_total_mem_v2(&raw mut total_bytes, device) } {
        // SAFETY: the caller gives one integer of 32 bits.
        SUCCESS => unsafe { store(bytes, in_32_bits(total_bytes)) },
        code => code,
    }
}

pub unsafe extern "C" fn alloc_host(pointer: *mut *mut c_void, bytes: c_uint) -> Code {
    // SAFETY: the caller gives one pointer.
    unsafe { store_made(pointer, || pin("cuMemAllocHost", bytes as usize)) }
}

pub extern "C" fn host_to_device(_to: u32, _from: *const c_void, _bytes: c_uint) -> Code {
    wait("cuMemcpyHtoD")
}

pub extern "C" fn device_to_host(_to: *mut c_void, _from: u32, _bytes: c_uint) -> Code {
    wait("cuMemcpyDtoH")
}

pub extern "C" fn device_to_device(_to: u32, _from: u32, _bytes: c_uint) -> Code {
    wait("cuMemcpyDtoD")
}

pub extern "C" fn host_to_device_async(
    _to: u32,
    _from: *const c_void,
    _bytes: c_uint,
    _stream: u64,
) -> Code {
    queue("cuMemcpyHtoDAsync")
}

pub extern "C" fn device_to_host_async(
    _to: *mut c_void,
    _from: u32,
    _bytes: c_uint,
    _stream: u64,
) -> Code {
    queue("cuMemcpyDtoHAsync")
}

pub extern "C" fn device_to_device_async(
    _to: u32,
    _from: u32,
    _bytes: c_uint,
    _stream: u64,
) -> Code {
    queue("cuMemcpyDtoDAsync")
}

/// `CUDA_MEMCPY2D_v1` is not looked into, here and below.
pub extern "C" fn plane(copy: *const c_void) -> Code {
    if copy.is_null() { INVALID_VALUE } else { wait("cuMemcpy2D") }
}

pub extern "C" fn plane_unaligned(copy: *const c_void) -> Code {
    if copy.is_null() { INVALID_VALUE } else { wait("cuMemcpy2DUnaligned") }
}

pub extern "C" fn plane_async(copy: *const c_void, _stream: u64) -> Code {
    if copy.is_null() { INVALID_VALUE } else { queue("cuMemcpy2DAsync") }
}

pub extern "C" fn volume(copy: *const c_void) -> Code {
    if copy.is_null() { INVALID_VALUE } else { wait("cuMemcpy3D") }
}

pub extern "C" fn volume_async(copy: *const c_void, _stream: u64) -> Code {
    if copy.is_null() { INVALID_VALUE } else { queue("cuMemcpy3DAsync") }
}

pub extern "C" fn set_d8(_at: u32, _value: u8, _count: c_uint) -> Code {
    queue("cuMemsetD8")
}

pub extern "C" fn set_d16(_at: u32, _value: u16, _count: c_uint) -> Code {
    queue("cuMemsetD16")
}

pub extern "C" fn set_d32(_at: u32, _value: u32, _count: c_uint) -> Code {
    queue("cuMemsetD32")
}

fn take(call: &str, bytes: usize) -> Result<u32, Code> {
    let (driver, device) = enter_device(call)?;
    let bytes = charge(driver, device, bytes)?;
    let added = driver.tables().add_low(Allocation { device, bytes, kind: Kind::Device });
    added.ok_or_else(|| {
        driver.node.free(driver.seat, device, bytes);
        OUT_OF_MEMORY
    })
}

fn in_32_bits(bytes: usize) -> c_uint {
    c_uint::try_from(bytes).unwrap_or(c_uint::MAX)
}
