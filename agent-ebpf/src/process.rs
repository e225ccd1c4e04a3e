//! Process life: raw tracepoints, which need neither kprobes nor tracefs. Processes that user space
//! does not know cost one or two lookups and cause nothing.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;

use crate::maps::{COUNTERS, TRACKED};
use crate::{rows, task, threads};

/// A process runs another program: another user, other libraries, other contexts. Arguments: the
/// task, the thread id that the caller had, the program.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub(crate) fn process_exec(ctx: RawTracePointContext) -> i32 {
    let thread = bpf_get_current_pid_tgid();
    let before = ctx.arg::<u32>(1);
    threads::forget(thread);
    threads::forget(thread & TGID | u64::from(before));
    let tgid = (thread >> 32) as u32;
    if is_known(tgid) {
        rows::replace(&ctx, tgid);
    }
    0
}

const TGID: u64 = 0xffff_ffff_0000_0000;

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
    // Also of processes that found no row.
    threads::forget(thread);
    if is_known(tgid) && task::current_is_last() {
        rows::retire(&ctx, tgid);
    }
    0
}

#[inline(always)]
fn is_known(tgid: u32) -> bool {
    COUNTERS.get_ptr(tgid).is_some() || TRACKED.get_ptr(tgid).is_some()
}
