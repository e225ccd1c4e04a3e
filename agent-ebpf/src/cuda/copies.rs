//! Copies whose size is not one of the arguments.

use core::ffi::c_void;

use agent_ebpf::cookie::{Cookie, Op};
use agent_ebpf::{Counter, Loss};
use aya_ebpf::helpers::generated::bpf_probe_read_user;
use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;

use super::{add_sized, cookie};
use crate::{gate, loss, rows};

/// Offsets of `CUDA_MEMCPY2D`.
const PLANE: [u64; 5] = [16, 72, 112, 120, 0];
/// Offsets of `CUDA_MEMCPY3D` and `CUDA_MEMCPY3D_PEER`: of both types of memory, and of the three
/// sizes.
const VOLUME: [u64; 5] = [32, 120, 176, 184, 192];

/// Two and three dimensions: a structure describes the copy.
#[uprobe]
pub(crate) fn cuda_strided(ctx: ProbeContext) -> u32 {
    let cookie = cookie(&ctx);
    if gate::is_closed(cookie) {
        return 0;
    }
    let Some(row) = rows::current(&ctx) else { return 0 };
    let at: u64 = ctx.arg(0).unwrap_or(0);
    let offsets = if cookie.is(Op::Plane) { PLANE } else { VOLUME };
    let mut bytes = word(at + offsets[2]).wrapping_mul(word(at + offsets[3]));
    if !cookie.is(Op::Plane) {
        bytes = bytes.wrapping_mul(word(at + offsets[4]));
    }
    let direction = direction(cookie, half(at + offsets[0]), half(at + offsets[1]));
    add_sized(&ctx, row, direction as usize, bytes);
    0
}

const HOST: u32 = 1;
const DEVICE: u32 = 2;
const ARRAY: u32 = 3;

/// By the types of memory that the caller names; a unified address may be either.
#[inline(always)]
fn direction(cookie: Cookie, from: u32, to: u32) -> Counter {
    if cookie.is(Op::PeerVolume) {
        return Counter::PeerCalls;
    }
    match (from, to) {
        (HOST, DEVICE | ARRAY) => Counter::HostToDeviceCalls,
        (DEVICE | ARRAY, HOST) => Counter::DeviceToHostCalls,
        (DEVICE | ARRAY, DEVICE | ARRAY) => Counter::DeviceToDeviceCalls,
        _ => Counter::UnknownCalls,
    }
}

/// Copies of one batch whose sizes are read: the verifier wants an end.
const MOST: u64 = 1_024;

/// Many copies in one call: `(destinations, sources, sizes, count, ..)`, in both versions.
#[uprobe]
pub(crate) fn cuda_batch(ctx: ProbeContext) -> u32 {
    let cookie = cookie(&ctx);
    if gate::is_closed(cookie) {
        return 0;
    }
    let Some(row) = rows::current(&ctx) else { return 0 };
    let sizes: u64 = ctx.arg(2).unwrap_or(0);
    let count: u64 = ctx.arg(3).unwrap_or(0);
    if count > MOST {
        loss::count(&ctx, Loss::Sizes, rows::current_tgid());
    }
    add_sized(&ctx, row, cookie.counter(), sum(sizes, count));
    0
}

/// Of the sizes at this address. Behind the last there may be nothing to read, so that it is one by
/// one.
#[inline(never)]
fn sum(sizes: u64, count: u64) -> u64 {
    let mut bytes = 0_u64;
    for index in 0..MOST {
        if index >= count {
            break;
        }
        bytes = bytes.wrapping_add(word(sizes.wrapping_add(8 * index)));
    }
    bytes
}

/// 0 where it cannot be read: the helper clears what it does not fill, so that there is no branch,
/// of which the verifier would follow both sides each time.
#[inline(always)]
fn word(at: u64) -> u64 {
    let mut word = 0_u64;
    // SAFETY: the helper writes as many bytes as there are, and checks the address.
    unsafe { bpf_probe_read_user((&raw mut word).cast(), 8, at as *const c_void) };
    word
}

/// As `word`.
#[inline(always)]
fn half(at: u64) -> u32 {
    let mut half = 0_u32;
    // SAFETY: as in `word`.
    unsafe { bpf_probe_read_user((&raw mut half).cast(), 4, at as *const c_void) };
    half
}
