//! Launches: the hottest calls.

use agent_ebpf::cookie::Cookie;
use agent_ebpf::{Event, Row, SILENCE_NS, flag};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::bpf_jiffies64;
use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;

use super::{cookie, now_ns};
use crate::{devices, gate, rows, sight, spans};

/// Adds 1, and remembers when.
#[uprobe]
pub(crate) fn cuda_launch(ctx: ProbeContext) -> u32 {
    let cookie = cookie(&ctx);
    if gate::is_closed(cookie) {
        return 0;
    }
    let Some(row) = rows::current(&ctx) else { return 0 };
    // First of all: who ends a span of pending work sees either this or that it must stay open.
    rows::add(row, cookie.counter(), 1);
    // SAFETY: the helper has no preconditions.
    let tick = unsafe { bpf_jiffies64() };
    // SAFETY: `row` is a map value. Threads may race: each of their times is true.
    if unsafe { (&raw const (*row).last_launch_tick).read_volatile() } != tick {
        launched(&ctx, row, tick);
    }
    if is_special(row, cookie) {
        special(&ctx, row, cookie.0);
    }
    0
}

/// The first launch of a process in this tick, or after a span of pending work was closed.
#[inline(never)]
fn launched<C: EbpfContext>(ctx: &C, row: *mut Row, tick: u64) {
    let now = now_ns();
    // SAFETY: as in `cuda_launch`.
    let last = unsafe { &raw mut (*row).last_launch_ns };
    // SAFETY: as above.
    let before = unsafe { last.read_volatile() };
    // SAFETY: as above.
    unsafe {
        (&raw mut (*row).last_launch_tick).write_volatile(tick);
        last.write_volatile(now);
    }
    sight::check(ctx, row);
    spans::open(row, now);
    if now > before + SILENCE_NS {
        rows::announce(ctx, Event::Awoke, rows::current_tgid());
    }
}

#[inline(always)]
fn is_special(row: *const Row, cookie: Cookie) -> bool {
    rows::has(row, flag::SEVERAL_DEVICES)
        || cookie.is_in_thread_stream() && !rows::has(row, flag::THREAD_STREAMS)
}

/// Of a process with several devices, or the first one into a stream of its thread.
#[inline(never)]
fn special<C: EbpfContext>(ctx: &C, row: *mut Row, cookie: u64) {
    let cookie = Cookie(cookie);
    if cookie.is_in_thread_stream() {
        rows::set(row, flag::THREAD_STREAMS);
    }
    if rows::has(row, flag::SEVERAL_DEVICES) {
        devices::also(ctx, row, cookie.counter() as u64, 1);
    }
}
