//! Allocation and release. What was asked for counts where the driver gave it.

use agent_ebpf::cookie::{Cookie, Op};
use agent_ebpf::keys::Live;
use agent_ebpf::{Allocation, Counter, Loss, Row, flag};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_probe_read_user;
use aya_ebpf::macros::{uprobe, uretprobe};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};

use super::{OUT_OF_MEMORY, add, cookie, now_ns};
use crate::devices::{self, Account};
use crate::{gate, live, loss, rows, threads};

/// A call whose result matters begins.
#[uprobe]
pub(crate) fn cuda_enter(ctx: ProbeContext) -> u32 {
    let cookie = cookie(&ctx);
    if gate::is_closed(cookie) {
        return 0;
    }
    let kept = if cookie.is(Op::Free) { taken(&ctx, cookie) } else { arguments(&ctx, cookie) };
    if !threads::begin(&ctx, kept, clock(cookie)) {
        loss::count(&ctx, Loss::Results, rows::current_tgid());
        let outcome = Outcome { result: 0, waited_ns: 0, is_known: false };
        settle(&ctx, cookie, kept, outcome);
    }
    0
}

/// It returns. One that began before it was hooked is not counted.
#[uretprobe]
pub(crate) fn cuda_return(ctx: RetProbeContext) -> u32 {
    let cookie = cookie(&ctx);
    let Some(call) = threads::finish(&ctx) else { return 0 };
    let waited_ns = clock(cookie).saturating_sub(call.start_ns);
    let outcome = Outcome { result: ctx.ret::<i32>(), waited_ns, is_known: true };
    settle(&ctx, cookie, call.kept, outcome);
    0
}

/// Reading the clock costs as much as a lookup: only where the time counts.
#[inline(always)]
fn clock(cookie: Cookie) -> u64 {
    if cookie.is(Op::Timed) { now_ns() } else { 0 }
}

/// In stream order: nothing is awaited. Only memory that was allocated otherwise is known.
#[uprobe]
pub(crate) fn cuda_free_later(ctx: ProbeContext) -> u32 {
    let cookie = cookie(&ctx);
    let kept = taken(&ctx, cookie);
    let Some(row) = rows::current(&ctx) else { return 0 };
    freed(&ctx, row, cookie, kept);
    0
}

/// How a call ended.
#[derive(Clone, Copy)]
struct Outcome {
    /// A `CUresult`: 0 is success.
    result: i32,
    waited_ns: u64,
    /// The call has returned; otherwise its success is assumed.
    is_known: bool,
}

/// The first argument, the size or where it will be, and what else tells the size or the place.
#[inline(always)]
fn arguments(ctx: &ProbeContext, cookie: Cookie) -> [u64; 3] {
    let first: u64 = ctx.arg(0).unwrap_or(0);
    let second: u64 = ctx.arg(1).unwrap_or(0);
    let third: u64 = ctx.arg(2).unwrap_or(0);
    let fourth: u64 = ctx.arg(3).unwrap_or(0);
    if cookie.is(Op::AllocatePitched) {
        return [first, second, if cookie.is_narrow() { fourth & 0xffff_ffff } else { fourth }];
    }
    [first, if cookie.is_narrow() { second & 0xffff_ffff } else { second }, third]
}

/// What a free gives back: address, bytes, and the kind of memory plus 1, or 0 where it is not known.
#[inline(always)]
fn taken(ctx: &ProbeContext, cookie: Cookie) -> [u64; 3] {
    let first: u64 = ctx.arg(0).unwrap_or(0);
    let address = if cookie.is_narrow() { first & 0xffff_ffff } else { first };
    let Some(row) = rows::expected(ctx) else { return [address, 0, 0] };
    match live::take(row, &live::key(row, cookie.counter() as u64, address)) {
        Some(live) => [address, live.bytes, live.kind + 1],
        None => [address, 0, 0],
    }
}

#[inline(always)]
fn settle<C: EbpfContext>(ctx: &C, cookie: Cookie, kept: [u64; 3], outcome: Outcome) {
    let Some(row) = rows::current(ctx) else { return };
    if cookie.is(Op::Free) {
        if outcome.result == 0 {
            freed(ctx, row, cookie, kept);
        } else if kept[2] != 0 {
            let live = Live { bytes: kept[1], kind: kept[2] - 1, holds: 0 };
            live::put_back(ctx, row, &live::key(row, cookie.counter() as u64, kept[0]), &live);
        }
    } else if cookie.is(Op::Plain) || cookie.is(Op::Timed) {
        if outcome.result == 0 {
            add(ctx, row, cookie.counter(), 1);
            if cookie.is(Op::Timed) {
                add(ctx, row, cookie.counter() + 1, outcome.waited_ns);
            }
        }
    } else {
        allocated(ctx, row, cookie, kept, outcome);
    }
}

/// Counts for the kind of memory that it was; for that of the call where it was not known.
#[inline(always)]
fn freed<C: EbpfContext>(ctx: &C, row: *mut Row, cookie: Cookie, kept: [u64; 3]) {
    let is_known = kept[2] != 0;
    let kind = if is_known { kept[2] - 1 } else { cookie.counter() as u64 };
    let account = Account::current(ctx, row);
    account.add(ctx, kind as usize + Allocation::Frees as usize, 1);
    if is_known {
        account.add(ctx, kind as usize + Allocation::FreedBytes as usize, kept[1]);
        live::subtract(row, kind, kept[1]);
    }
}

#[inline(always)]
fn allocated<C: EbpfContext>(
    ctx: &C,
    row: *mut Row,
    cookie: Cookie,
    kept: [u64; 3],
    outcome: Outcome,
) {
    let kind = cookie.counter();
    let account = Account::current(ctx, row);
    if outcome.result != 0 {
        account.add(ctx, kind + Allocation::Failed as usize, 1);
        if outcome.result == OUT_OF_MEMORY {
            account.add(ctx, kind + Allocation::OutOfMemory as usize, 1);
        }
        return;
    }
    if rows::has(row, flag::SEVERAL_CONTEXTS) {
        devices::take_memory(ctx, row);
    }
    let bytes = size(cookie, kept, outcome);
    account.add(ctx, kind + Allocation::Calls as usize, 1);
    account.add(ctx, kind + Allocation::Bytes as usize, bytes);
    let address = if outcome.is_known { address(cookie, kept) } else { None };
    match address {
        Some(address) => {
            let live = Live { bytes, kind: kind as u64, holds: 0 };
            live::remember(ctx, row, &live::key(row, kind as u64, address), &live);
        }
        None => live::lost(ctx, row),
    }
}

/// The driver has written the pitch to where the caller asked for it.
#[inline(always)]
fn size(cookie: Cookie, kept: [u64; 3], outcome: Outcome) -> u64 {
    if !cookie.is(Op::AllocatePitched) {
        return kept[1];
    }
    if !outcome.is_known {
        return 0;
    }
    pointed(kept[1], cookie.is_narrow()).unwrap_or(0).wrapping_mul(kept[2])
}

/// The driver has written the address or handle to where the caller asked for it.
#[inline(always)]
fn address(cookie: Cookie, kept: [u64; 3]) -> Option<u64> {
    if cookie.is(Op::Register) {
        return Some(kept[0]);
    }
    // Host memory has addresses of 64 bits in every version.
    let is_host = cookie.counter() == Counter::HostAllocations as usize;
    pointed(kept[0], cookie.is_narrow() && !is_host)
}

#[inline(always)]
fn pointed(at: u64, is_narrow: bool) -> Option<u64> {
    if is_narrow {
        // SAFETY: the helper checks the address and fails where it cannot be read.
        return unsafe { bpf_probe_read_user(at as *const u32) }.ok().map(u64::from);
    }
    // SAFETY: as above.
    unsafe { bpf_probe_read_user(at as *const u64) }.ok()
}
