//! Every map: what it holds, its bound, and what happens when the bound is reached.
//!
//! User space lowers or raises the bounds of `COUNTERS` and `TRACKED` when it loads the object
//! (`cuda.max_processes`); the numbers here are the defaults.

use agent_ebpf::{Cgroup, LOSSES, OWNERSHIPS, Offsets, Pending, PendingKey, Row};
use aya_ebpf::Global;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, RingBuf};

/// Counts by tgid. Preallocated, so that a hit never allocates; not LRU, which evicts live
/// entries long before it is full. Full: calls count in `OVERFLOW` and in `LOST`.
#[map]
pub(crate) static COUNTERS: HashMap<u32, Row> = HashMap::with_max_entries(4_096, 0);

/// The one row for calls of processes that found `COUNTERS` full: totals stay exact.
#[map]
pub(crate) static OVERFLOW: Array<Row> = Array::with_max_entries(1, 0);

/// The sum of all rows that have left `COUNTERS`, those that are marked dead included: what an agent
/// that died had read and not kept is then known to be missing.
#[map]
pub(crate) static RETIRED: Array<Row> = Array::with_max_entries(1, 0);

/// Where a new row is put together: it is larger than the stack of a program.
#[map]
pub(crate) static BLANK: PerCpuArray<Row> = PerCpuArray::with_max_entries(1, 0);

/// Processes whose exec and exit user space wants to know although they made no call. Written by
/// user space, which never asks for more than fits; the exit of a process removes it.
#[map]
pub(crate) static TRACKED: HashMap<u32, u8> = HashMap::with_max_entries(4_096, 0);

/// Calls whose result is awaited: at most one per thread and slot. Full: the call counts at once,
/// as if it had succeeded and taken no time, and in `LOST`.
#[map]
pub(crate) static PENDING: HashMap<PendingKey, Pending> = HashMap::with_max_entries(16_384, 0);

/// Records for user space: about 1,800 fit. Full: counted in `LOST`; an exit leaves its row behind,
/// marked dead, and user space finds it at its next reading.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(1024 * 1024, 0);

/// By `Loss`, since the object was loaded.
#[map]
pub(crate) static LOST: Array<u64> = Array::with_max_entries(LOSSES as u32, 0);

/// By `Loss`: CLOCK_BOOTTIME ns of the last message about it, which bounds the messages.
#[map]
pub(crate) static WARNED: Array<u64> = Array::with_max_entries(LOSSES as u32, 0);

/// By `Ownership`: which agent the pinned maps belong to.
#[map]
pub(crate) static OWNER: Array<u64> = Array::with_max_entries(OWNERSHIPS as u32, 0);

/// Paths of the groups that processes were in at their first call, by id. User space takes them at
/// each reading. Full: a process that is gone by then counts for its user; counted in `LOST`.
#[map]
pub(crate) static CGROUPS: HashMap<u64, Cgroup> = HashMap::with_max_entries(512, 0);

/// Where one is put together: it is larger than the stack of a program.
#[map]
pub(crate) static NEW_CGROUP: PerCpuArray<Cgroup> = PerCpuArray::with_max_entries(1, 0);

/// Set by user space from the BTF of the running kernel.
#[unsafe(no_mangle)]
pub(crate) static OFFSETS: Global<Offsets> = Global::new(Offsets {
    task_tgid: 0,
    task_group_leader: 0,
    task_start_boottime: 0,
    task_signal: 0,
    signal_live: 0,
    task_cgroups: 0,
    cgroups_unified: 0,
    cgroup_node: 0,
    node_name: 0,
    node_parent: 0,
});
