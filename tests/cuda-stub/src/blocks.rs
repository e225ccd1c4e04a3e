//! Copies of planes, volumes and batches: their sizes are in structures and arrays.
#![expect(unsafe_code, reason = "answers a C ABI")]

use std::ffi::c_void;

use crate::codes::{Code, INVALID_VALUE};
use crate::copies::{queue, wait};

/// `CUDA_MEMCPY2D`, as far as it is read: sizes at the end, and where the memory is.
#[derive(Debug)]
#[repr(C)]
pub struct Plane {
    _source: [u64; 7],
    _destination: [u64; 7],
    width_bytes: usize,
    height: usize,
}

/// `CUDA_MEMCPY3D`, and `CUDA_MEMCPY3D_PEER`, which differs in words that are not read.
#[derive(Debug)]
#[repr(C)]
pub struct Volume {
    _source: [u64; 11],
    _destination: [u64; 11],
    width_bytes: usize,
    height: usize,
    depth: usize,
}

const _: () = assert!(std::mem::offset_of!(Plane, width_bytes) == 112);
const _: () = assert!(std::mem::offset_of!(Volume, width_bytes) == 176);

pub unsafe extern "C" fn plane(copy: *const Plane) -> Code {
    // SAFETY: the caller gives one structure.
    if unsafe { is_plane(copy) } { wait("cuMemcpy2D_v2") } else { INVALID_VALUE }
}

pub unsafe extern "C" fn plane_unaligned(copy: *const Plane) -> Code {
    // SAFETY: the caller gives one structure.
    if unsafe { is_plane(copy) } { wait("cuMemcpy2DUnaligned_v2") } else { INVALID_VALUE }
}

pub unsafe extern "C" fn plane_async(copy: *const Plane, _stream: u64) -> Code {
    // SAFETY: the caller gives one structure.
    if unsafe { is_plane(copy) } { queue("cuMemcpy2DAsync_v2") } else { INVALID_VALUE }
}

pub unsafe extern "C" fn volume(copy: *const Volume) -> Code {
    // SAFETY: the caller gives one structure.
    if unsafe { is_volume(copy) } { wait("cuMemcpy3D_v2") } else { INVALID_VALUE }
}

pub unsafe extern "C" fn volume_async(copy: *const Volume, _stream: u64) -> Code {
    // SAFETY: the caller gives one structure.
    if unsafe { is_volume(copy) } { queue("cuMemcpy3DAsync_v2") } else { INVALID_VALUE }
}

pub unsafe extern "C" fn volume_peer(copy: *const Volume) -> Code {
    // SAFETY: the caller gives one structure.
    if unsafe { is_volume(copy) } { wait("cuMemcpy3DPeer") } else { INVALID_VALUE }
}

pub unsafe extern "C" fn volume_peer_async(copy: *const Volume, _stream: u64) -> Code {
    // SAFETY: the caller gives one structure.
    if unsafe { is_volume(copy) } { queue("cuMemcpy3DPeerAsync") } else { INVALID_VALUE }
}

/// As CUDA 12.8 has it.
pub unsafe extern "C" fn batch(
    to: *const u64,
    from: *const u64,
    sizes: *const usize,
    count: usize,
    _attributes: *const c_void,
    _attribute_indices: *const usize,
    _attribute_count: usize,
    failed_index: *mut usize,
    _stream: u64,
) -> Code {
    if is_batch(to, from, sizes, count) {
        return queue("cuMemcpyBatchAsync");
    }
    if !failed_index.is_null() {
        // SAFETY: not null, and the caller gives one integer. SIZE_MAX: no single copy is at fault.
        unsafe { failed_index.write(usize::MAX) };
    }
    INVALID_VALUE
}

/// As CUDA 13.0 has it.
pub unsafe extern "C" fn batch_v2(
    to: *const u64,
    from: *const u64,
    sizes: *const usize,
    count: usize,
    _attributes: *const c_void,
    _attribute_indices: *const usize,
    _attribute_count: usize,
    _stream: u64,
) -> Code {
    if is_batch(to, from, sizes, count) { queue("cuMemcpyBatchAsync_v2") } else { INVALID_VALUE }
}

fn is_batch(to: *const u64, from: *const u64, sizes: *const usize, count: usize) -> bool {
    count > 0 && !to.is_null() && !from.is_null() && !sizes.is_null()
}

/// # Safety
/// `copy` is null or valid for one structure.
unsafe fn is_plane(copy: *const Plane) -> bool {
    // SAFETY: by the contract above.
    unsafe { copy.as_ref() }.is_some_and(|it| it.width_bytes > 0 && it.height > 0)
}

/// # Safety
/// `copy` is null or valid for one structure.
unsafe fn is_volume(copy: *const Volume) -> bool {
    // SAFETY: by the contract above.
    unsafe { copy.as_ref() }.is_some_and(|it| it.width_bytes > 0 && it.height > 0 && it.depth > 0)
}
