//! Process life: raw tracepoints, which need neither kprobes nor tracefs. Processes that user space
//! does not know cost one or two lookups and cause nothing.

use agent_ebpf::{Event, PendingKey, SLOTS};
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_current_uid_gid};
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;

use crate::maps::{COUNTERS, PENDING, TRACKED};
use crate::{rows, task};

/// A process runs another program: another user, other libraries. Its totals go on, because its
/// identity does.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub(crate) fn process_exec(ctx: RawTracePointContext) -> i32 {
    let tgid = rows::current_tgid();
    if let Some(row) = COUNTERS.get_ptr_mut(tgid) {
        // SAFETY: `row` is a map value.
        unsafe { (&raw mut (*row).uid).write(bpf_get_current_uid_gid() as u32) };
    }
    if is_known(tgid) {
        rows::announce(&ctx, Event::Executed, tgid);
    }
    0
}

/// A new process or thread. Arguments: parent, child.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub(crate) fn process_fork(ctx: RawTracePointContext) -> i32 {
    let child: u64 = ctx.arg(1);
    if let Some(tgid) = task::tgid(child)
        && tgid != rows::current_tgid()
    {
        rows::make_way(&ctx, tgid);
    }
    0
}

/// A thread ends, in its own context. With the last one the process ends.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub(crate) fn process_exit(ctx: RawTracePointContext) -> i32 {
    let thread = bpf_get_current_pid_tgid();
    let tgid = (thread >> 32) as u32;
    if !is_known(tgid) {
        return 0;
    }
    drop_pending(thread);
    if task::current_is_last() {
        rows::retire(&ctx, tgid);
    }
    0
}

#[inline(always)]
fn is_known(tgid: u32) -> bool {
    COUNTERS.get_ptr(tgid).is_some() || TRACKED.get_ptr(tgid).is_some()
}

/// Calls that the thread did not return from. An error means that there was none.
#[inline(always)]
fn drop_pending(thread: u64) {
    for slot in 0..u64::from(SLOTS) {
        let _ = PENDING.remove(PendingKey { thread, slot });
    }
}
