//! Calls that wait for a device. Some of them end a span of pending work.

use agent_ebpf::cookie::{Cookie, Op};
use agent_ebpf::{Counter, Loss, Row, flag};
use aya_ebpf::macros::{uprobe, uretprobe};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};

use super::{add, cookie, now_ns};
use crate::{atomic, gate, loss, rows, sight, spans, threads};

/// Handles of the default stream that waits for all others: none, and its own name.
const DEFAULT_STREAMS: [u64; 2] = [0, 1];

/// A thread begins to wait: after so many launches, for this stream. Counts now: its hook may be off when
/// it ends.
#[uprobe]
pub(crate) fn cuda_wait(ctx: ProbeContext) -> u32 {
    if gate::is_closed(cookie(&ctx)) {
        return 0;
    }
    let Some(row) = rows::current(&ctx) else { return 0 };
    add(&ctx, row, Counter::Synchronizations as usize, 1);
    let stream: u64 = ctx.arg(0).unwrap_or(0);
    if !threads::begin(&ctx, [stream, spans::launches(row), 0], now_ns()) {
        loss::count(&ctx, Loss::Results, rows::current_tgid());
    }
    0
}

/// It goes on. How long a wait took that began before it was hooked, or at a closed gate, is not known;
/// of one that began at an open gate it is, even if the gate has closed since.
#[uretprobe]
pub(crate) fn cuda_waited(ctx: RetProbeContext) -> u32 {
    let Some(call) = threads::finish(&ctx) else { return 0 };
    let Some(row) = rows::expected(&ctx) else { return 0 };
    let waited_ns = now_ns().saturating_sub(call.start_ns);
    add(&ctx, row, Counter::SynchronizeWaitNs as usize, waited_ns);
    // SAFETY: `row` is a map value.
    unsafe { atomic::add(&raw mut (*row).waits_ended, 1) };
    let [stream, launches, _] = call.kept;
    if ctx.ret::<i32>() == 0 && ends_all_work(row, cookie(&ctx), stream) {
        sight::check(&ctx, row);
        spans::close(row, rows::current_tgid(), launches);
    }
    0
}

/// Whether nothing of the thread's context can still run after such a wait.
#[inline(always)]
fn ends_all_work(row: *const Row, cookie: Cookie, stream: u64) -> bool {
    if cookie.is(Op::WaitForContext) {
        return true;
    }
    cookie.is(Op::WaitForStream)
        && (stream == DEFAULT_STREAMS[0] || stream == DEFAULT_STREAMS[1])
        && !rows::has(row, flag::STREAMS)
        && !rows::has(row, flag::THREAD_STREAMS)
}
