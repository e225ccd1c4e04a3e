//! What the kernel's own structs say about a task. Offsets come from user space, because the layout
//! differs from kernel to kernel.

use aya_ebpf::helpers::{bpf_get_current_task, bpf_probe_read_kernel};

use crate::maps::OFFSETS;

/// Identity of the calling process: when its thread group leader was started, in CLOCK_BOOTTIME ns.
/// 0 when the kernel did not let us read it, which no process has.
#[inline(always)]
pub(crate) fn current_start_ns() -> u64 {
    let offsets = OFFSETS.load();
    let leader: u64 = read(current(), offsets.task_group_leader).unwrap_or(0);
    read(leader, offsets.task_start_boottime).unwrap_or(0)
}

/// Identity of the program that the calling process runs: its start and how many programs it ran
/// before. Two programs of one process differ in it by less than a clock could tell, but they do.
#[inline(always)]
pub(crate) fn current_program() -> u64 {
    let execs: u64 = read(current(), OFFSETS.load().task_self_exec_id).unwrap_or(0);
    current_start_ns().wrapping_add(execs)
}

/// Whether the calling thread, which is exiting, is the last of its process: the kernel has taken
/// it off the count of live threads by then.
#[inline(always)]
pub(crate) fn current_is_last() -> bool {
    let offsets = OFFSETS.load();
    let signal: u64 = read(current(), offsets.task_signal).unwrap_or(0);
    read::<i32>(signal, offsets.signal_live) == Some(0)
}

/// The process that a task belongs to.
#[inline(always)]
pub(crate) fn tgid(task: u64) -> Option<u32> {
    read(task, OFFSETS.load().task_tgid)
}

/// The node of the calling process's group in the unified hierarchy; 0 where that is not known.
#[inline(always)]
pub(crate) fn current_cgroup() -> u64 {
    let offsets = OFFSETS.load();
    if offsets.task_cgroups == 0 {
        return 0;
    }
    let groups: u64 = read(current(), offsets.task_cgroups).unwrap_or(0);
    let group: u64 = read(groups, offsets.cgroups_unified).unwrap_or(0);
    read(group, offsets.cgroup_node).unwrap_or(0)
}

#[inline(always)]
fn current() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_current_task() }
}

#[inline(always)]
pub(crate) fn read<T>(base: u64, offset: u32) -> Option<T> {
    let address = (base + u64::from(offset)) as *const T;
    // SAFETY: the helper checks the address and fails where it cannot be read.
    unsafe { bpf_probe_read_kernel(address) }.ok()
}
