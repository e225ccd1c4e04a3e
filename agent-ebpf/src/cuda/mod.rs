//! Hooks on the CUDA driver, one module per family of calls. Each program serves many symbols; the
//! attach cookie tells them apart.
//!
//! The trap costs ten times what a program does, so that the programs need only not be foolish: on
//! the hot path one lookup, one to three atomic adds, no record except where a silence ends. What is
//! rare is in functions of its own.

mod contexts;
mod copies;
mod launches;
mod memory;
mod virtual_memory;
mod waits;

use core::ptr::read_volatile;

use agent_ebpf::cookie::Cookie;
use agent_ebpf::{Row, flag};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use aya_ebpf::helpers::generated::bpf_get_attach_cookie;
use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;

use crate::{devices, gate, rows};

/// A `CUresult`.
const OUT_OF_MEMORY: i32 = 2;

/// cuInit: makes the process known before it does anything.
#[uprobe]
pub(crate) fn cuda_init(ctx: ProbeContext) -> u32 {
    rows::current(&ctx);
    0
}

/// Calls that are counted and nothing else.
#[uprobe]
pub(crate) fn cuda_count(ctx: ProbeContext) -> u32 {
    let cookie = cookie(&ctx);
    if gate::is_closed(cookie) {
        return 0;
    }
    let Some(row) = rows::current(&ctx) else { return 0 };
    add(&ctx, row, cookie.counter(), 1);
    0
}

/// Calls that are counted with a size among their arguments.
#[uprobe]
pub(crate) fn cuda_sum(ctx: ProbeContext) -> u32 {
    let cookie = cookie(&ctx);
    if gate::is_closed(cookie) {
        return 0;
    }
    let Some(row) = rows::current(&ctx) else { return 0 };
    let amount = argument(&ctx, cookie);
    let bytes = if cookie.is_narrow() { amount & 0xffff_ffff } else { amount };
    add_sized(&ctx, row, cookie.counter(), bytes << cookie.shift());
    0
}

/// Adds to a counter of the calling process, and apart where it uses several devices.
#[inline(always)]
fn add<C: EbpfContext>(ctx: &C, row: *mut Row, counter: usize, amount: u64) {
    rows::add(row, counter, amount);
    if rows::has(row, flag::SEVERAL_DEVICES) {
        devices::also(ctx, row, counter as u64, amount);
    }
}

/// Adds 1 to a counter and the bytes to the one after it.
#[inline(always)]
fn add_sized<C: EbpfContext>(ctx: &C, row: *mut Row, counter: usize, bytes: u64) {
    rows::add(row, counter, 1);
    rows::add(row, counter + 1, bytes);
    if rows::has(row, flag::SEVERAL_DEVICES) {
        devices::also(ctx, row, counter as u64, 1);
        devices::also(ctx, row, counter as u64 + 1, bytes);
    }
}

/// The argument at the cookie's position, from the second to the fifth. All are read, because the
/// verifier wants the offset of each read to be a constant.
#[inline(always)]
fn argument(ctx: &ProbeContext, cookie: Cookie) -> u64 {
    let second = ctx.arg::<u64>(1).unwrap_or(0);
    let third = ctx.arg::<u64>(2).unwrap_or(0);
    let fourth = ctx.arg::<u64>(3).unwrap_or(0);
    let fifth = ctx.arg::<u64>(4).unwrap_or(0);
    // SAFETY: all are locals.
    let (second, third, fourth, fifth) = unsafe {
        (
            read_volatile(&second),
            read_volatile(&third),
            read_volatile(&fourth),
            read_volatile(&fifth),
        )
    };
    match cookie.position() {
        1 => second,
        2 => third,
        3 => fourth,
        _ => fifth,
    }
}

#[inline(always)]
fn cookie<C: EbpfContext>(ctx: &C) -> Cookie {
    // SAFETY: the context is the one that the kernel gave the program.
    Cookie(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) })
}

#[inline(always)]
fn now_ns() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_boot_ns() }
}
