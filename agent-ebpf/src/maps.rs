//! Every map: what it holds, its bound, and what happens when the bound is reached.
//!
//! User space sets the bounds when it loads the object, from `cuda.max_processes` and
//! `cuda.max_allocations`; the numbers here are the defaults. All hash maps are preallocated: a hit
//! never allocates, and kernels before 6.1 complain about programs that might.

use agent_ebpf::cookie::FILES;
use agent_ebpf::keys::{
    self, Context, ContextKey, DeviceKey, Live, LiveKey, Part, Seat, Sight, Slot, Thread,
};
use agent_ebpf::{Cgroup, LOSSES, OWNERSHIPS, Offsets, Row};
use aya_ebpf::Global;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, RingBuf};

/// Counts by tgid. Not LRU, which evicts live entries long before it is full. Full: calls count in
/// `OVERFLOW` and in `LOST`.
#[map]
pub(crate) static COUNTERS: HashMap<u32, Row> = HashMap::with_max_entries(4_096, 0);

/// The one row for calls of processes that found `COUNTERS` full: totals stay exact.
#[map]
pub(crate) static OVERFLOW: Array<Row> = Array::with_max_entries(1, 0);

/// The sum of all rows that were handed to user space for good and are not in `OVERFLOW`: what of it
/// user space has not seen was lost on the way.
#[map]
pub(crate) static RETIRED: Array<Row> = Array::with_max_entries(1, 0);

/// What new rows and parts are made of, because they are larger than the stack of a program. Never
/// written.
#[map]
pub(crate) static ZERO: Array<Row> = Array::with_max_entries(1, 0);

/// What new threads are made of. Never written.
#[map]
pub(crate) static ZERO_THREAD: Array<Thread> = Array::with_max_entries(1, 0);

/// Processes whose exec and exit user space wants to know although they made no call. Written by
/// user space, which never asks for more than fits; the exit of a process removes it.
#[map]
pub(crate) static TRACKED: HashMap<u32, u8> = HashMap::with_max_entries(4_096, 0);

/// Calls under way and contexts of threads that made a call whose result is awaited, for as many as find
/// a place at once: an array costs less than a hash map. The exit of the thread frees it. Taken by
/// another one: `THREADS` has room.
#[map]
pub(crate) static SEATS: Array<Seat> = Array::with_max_entries(keys::SEATS, 0);

/// The same for threads that found no seat; the exit of the thread removes it. Full: such a call counts
/// at once, as if it had succeeded and taken no time, and in `LOST`; which device the thread uses is not
/// known.
#[map]
pub(crate) static THREADS: HashMap<u64, Thread> = HashMap::with_max_entries(16_384, 0);

/// Allocations that were not freed, for as many as find a place at once: an array costs less than a hash
/// map. What is in a slot counts while `NAMES` has its name. User space removes those of ended programs.
/// Full: `LIVE` has room.
#[map]
pub(crate) static SLOTS: Array<Slot> = Array::with_max_entries(keys::SLOTS, 0);

/// By slot: the name of the allocation in it; 0 = it is free. Apart from `SLOTS`, so that user space can
/// free a slot: while it writes a zero byte by byte, no program takes the slot for free before the last
/// one.
#[map]
pub(crate) static NAMES: Array<u64> = Array::with_max_entries(keys::SLOTS, 0);

/// Allocations that were not freed and found no slot, physical memory, and where that is mapped. User space
/// removes those of ended programs. Full: live memory is too small, the row says so, and `LOST` counts it.
#[map]
pub(crate) static LIVE: HashMap<LiveKey, Live> = HashMap::with_max_entries(65_536, 0);

/// Devices of contexts, and how often primary ones are retained. User space removes those of ended
/// programs. Full: the device of the context, or when it ends, is not known, which counts in `LOST`.
#[map]
pub(crate) static CONTEXTS: HashMap<ContextKey, Context> = HashMap::with_max_entries(16_384, 0);

/// What programs with several devices did elsewhere than on their first. User space removes what
/// belongs to ended programs. Full: it counts as done on the first one, and in `LOST`.
#[map]
pub(crate) static DEVICES: HashMap<DeviceKey, Part> = HashMap::with_max_entries(4_096, 0);

/// UUIDs of devices that programs asked for. User space removes those of ended programs. Full: the
/// device has no name but its ordinal, which counts in `LOST`.
#[map]
pub(crate) static UUIDS: HashMap<DeviceKey, [u8; 16]> = HashMap::with_max_entries(32_768, 0);

/// Processes of which a thread is ending the span of pending work, or the last thread the account.
/// Full: the span goes on, which keeps the bound true; an account is ended all the same.
#[map]
pub(crate) static CLOSING: HashMap<u32, u8> = HashMap::with_max_entries(1_024, 0);

/// By library file: since when all work of its processes is seen. Written by user space.
#[map]
pub(crate) static SIGHTS: Array<Sight> = Array::with_max_entries(FILES, 0);

/// Records for user space: about 1,700 fit. Full: counted in `LOST`; an exit leaves its row behind,
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

/// What is put there before the names are read: it is larger than the stack of a program, and a program
/// may be preempted, so that nothing can be put together elsewhere. Never written.
#[map]
pub(crate) static NO_CGROUP: Array<Cgroup> = Array::with_max_entries(1, 0);

/// Set by user space from the BTF of the running kernel.
#[unsafe(no_mangle)]
pub(crate) static OFFSETS: Global<Offsets> = Global::new(Offsets {
    task_tgid: 0,
    task_group_leader: 0,
    task_start_boottime: 0,
    task_self_exec_id: 0,
    task_signal: 0,
    signal_live: 0,
    task_cgroups: 0,
    cgroups_unified: 0,
    cgroup_node: 0,
    node_name: 0,
    node_parent: 0,
});
