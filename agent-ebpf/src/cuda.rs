//! Hooks on the CUDA driver. Each program serves many symbols; the attach cookie tells them apart.
//!
//! The trap costs ten times what a program does, so that the programs need only not be foolish: one
//! lookup, one to three atomic adds, no record except where a silence ends.

use core::ptr::read_volatile;

use agent_ebpf::{Cookie, Counter, Event, Loss, Pending, PendingKey, Row, SILENCE_NS};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::{bpf_get_attach_cookie, bpf_jiffies64};
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_boot_ns, bpf_probe_read_user};
use aya_ebpf::macros::{uprobe, uretprobe};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};

use crate::maps::PENDING;
use crate::{gate, loss, rows};

/// cuInit: makes the process known before it does anything.
#[uprobe]
pub(crate) fn cuda_init(ctx: ProbeContext) -> u32 {
    rows::current(&ctx);
    0
}

/// Launches: adds 1, and remembers when.
#[uprobe]
pub(crate) fn cuda_launch(ctx: ProbeContext) -> u32 {
    let cookie = cookie(&ctx);
    if gate::is_closed(cookie) {
        return 0;
    }
    let Some(row) = rows::current(&ctx) else { return 0 };
    rows::add(row, cookie.counter(), 1);
    // SAFETY: the helper has no preconditions.
    let tick = unsafe { bpf_jiffies64() };
    // SAFETY: `row` is a map value. Threads may race: each of their times is true.
    let last = unsafe { &raw mut (*row).last_launch_tick };
    // SAFETY: as above.
    if unsafe { last.read_volatile() } != tick {
        // SAFETY: as above.
        unsafe { last.write_volatile(tick) };
        launched(&ctx, row);
    }
    0
}

/// The first launch of a process in this tick.
#[inline(always)]
fn launched<C: EbpfContext>(ctx: &C, row: *mut Row) {
    let now = now_ns();
    // SAFETY: as in `cuda_launch`.
    let last = unsafe { &raw mut (*row).last_launch_ns };
    // SAFETY: as above.
    let before = unsafe { last.read_volatile() };
    // SAFETY: as above.
    unsafe { last.write_volatile(now) };
    if now > before + SILENCE_NS {
        rows::announce(ctx, Event::Awoke, rows::current_tgid());
    }
}

/// Copies: adds 1, and the size to the counter after it.
#[uprobe]
pub(crate) fn cuda_copy(ctx: ProbeContext) -> u32 {
    let cookie = cookie(&ctx);
    if gate::is_closed(cookie) {
        return 0;
    }
    let Some(row) = rows::current(&ctx) else { return 0 };
    rows::add(row, cookie.counter(), 1);
    rows::add(row, cookie.counter() + 1, size_argument(&ctx, cookie));
    0
}

/// A call whose result matters begins.
#[uprobe]
pub(crate) fn cuda_enter(ctx: ProbeContext) -> u32 {
    let cookie = cookie(&ctx);
    if gate::is_closed(cookie) {
        return 0;
    }
    let pending = Pending {
        start_ns: now_ns(),
        second: ctx.arg(1).unwrap_or(0),
        fourth: ctx.arg(3).unwrap_or(0),
    };
    if PENDING.insert(pending_key(cookie), pending, 0).is_err() {
        loss::count(&ctx, Loss::Results, rows::current_tgid());
        let bytes = if cookie.is_pitched() { 0 } else { pending.second };
        settle(&ctx, cookie, Outcome { result: 0, bytes, waited_ns: 0 });
    }
    0
}

/// It returns. One that began before it was hooked, or at a closed gate, is not counted; one that
/// began at an open gate is, even if the gate has closed since.
#[uretprobe]
pub(crate) fn cuda_return(ctx: RetProbeContext) -> u32 {
    let cookie = cookie(&ctx);
    let key = pending_key(cookie);
    // SAFETY: only this thread reads and writes the entry.
    let Some(&pending) = (unsafe { PENDING.get(key) }) else { return 0 };
    let _ = PENDING.remove(key);
    let result = ctx.ret::<i32>();
    let bytes = if cookie.is_pitched() { pitched_bytes(&pending) } else { pending.second };
    let waited_ns = now_ns().saturating_sub(pending.start_ns);
    settle(&ctx, cookie, Outcome { result, bytes, waited_ns });
    0
}

/// How a call ended.
#[derive(Clone, Copy)]
struct Outcome {
    /// A `CUresult`: 0 is success.
    result: i32,
    /// What was allocated; meaningless for other calls.
    bytes: u64,
    waited_ns: u64,
}

#[inline(always)]
fn settle<C: EbpfContext>(ctx: &C, cookie: Cookie, outcome: Outcome) {
    let Some(row) = rows::current(ctx) else { return };
    if cookie.counter() == Counter::Synchronizations as usize {
        rows::add_one(row, Counter::Synchronizations);
        rows::add(row, Counter::SynchronizeWaitNs as usize, outcome.waited_ns);
    } else if cookie.counter() == Counter::DeviceFrees as usize {
        if outcome.result == 0 {
            rows::add_one(row, Counter::DeviceFrees);
        }
    } else if outcome.result == 0 {
        rows::add_one(row, Counter::DeviceAllocations);
        rows::add(row, Counter::DeviceAllocatedBytes as usize, outcome.bytes);
    } else {
        rows::add_one(row, Counter::DeviceFailed);
    }
}

/// The driver has written the pitch to where the caller asked for it.
#[inline(always)]
fn pitched_bytes(pending: &Pending) -> u64 {
    // SAFETY: the helper checks the address and fails where it cannot be read.
    let pitch = unsafe { bpf_probe_read_user(pending.second as *const u64) };
    pitch.unwrap_or(0).wrapping_mul(pending.fourth)
}

/// Third argument, or the fifth where the cookie says so. Both are read, because the verifier
/// wants the offset of each read to be a constant.
#[inline(always)]
fn size_argument(ctx: &ProbeContext, cookie: Cookie) -> u64 {
    let third = ctx.arg::<u64>(2).unwrap_or(0);
    let fifth = ctx.arg::<u64>(4).unwrap_or(0);
    // SAFETY: both are locals.
    let (third, fifth) = unsafe { (read_volatile(&third), read_volatile(&fifth)) };
    if cookie.detail() == 4 { fifth } else { third }
}

#[inline(always)]
fn pending_key(cookie: Cookie) -> PendingKey {
    PendingKey { thread: bpf_get_current_pid_tgid(), slot: cookie.detail() }
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
