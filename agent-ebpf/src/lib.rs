//! Keys, values and numbers that the kernel programs and the agent share.
//!
//! Everything here is plain data with a fixed layout. What the numbers mean to the rest of the agent
//! is decided in `samplers/cuda/decode.rs`; which symbol feeds which counter in
//! `samplers/cuda/hooks/table.rs`.

#![no_std]

pub mod cookie;
pub mod keys;
pub mod layout;

use core::mem::size_of;

/// Names everything that outlives an agent: the layouts here, the maps, what a cookie means and what
/// a counter counts. An agent goes on with maps of its own number only, and puts its own programs in
/// the place of those of another build. [`layout`] has the check that a change gets a number.
pub const ABI: u32 = 8;

/// Index into [`Row::counts`]. What is counted at the entry of a call says *asked*; what waits for its
/// result counts only where that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Counter {
    KernelLaunches,
    CooperativeLaunches,
    GraphLaunches,
    HostFunctions,

    /// Six for each kind of memory, in the order of [`Allocation`].
    DeviceAllocations,
    DeviceAllocatedBytes,
    DeviceFailed,
    DeviceOutOfMemory,
    DeviceFrees,
    DeviceFreedBytes,
    ManagedAllocations,
    ManagedAllocatedBytes,
    ManagedFailed,
    ManagedOutOfMemory,
    ManagedFrees,
    ManagedFreedBytes,
    /// Physical memory of the virtual memory management calls.
    VirtualAllocations,
    VirtualAllocatedBytes,
    VirtualFailed,
    VirtualOutOfMemory,
    VirtualFrees,
    VirtualFreedBytes,
    /// Asked of a pool in stream order: the pool, not the call, takes memory from the device.
    StreamOrderedAllocations,
    StreamOrderedAllocatedBytes,
    StreamOrderedFailed,
    StreamOrderedOutOfMemory,
    StreamOrderedFrees,
    StreamOrderedFreedBytes,
    /// Pinned host memory, allocated or registered.
    HostAllocations,
    HostAllocatedBytes,
    HostFailed,
    HostOutOfMemory,
    HostFrees,
    HostFreedBytes,

    Maps,
    MappedBytes,
    Unmaps,
    UnmappedBytes,
    /// Memory of somebody else that was opened here: not an allocation.
    Imports,

    HostToDeviceCalls,
    HostToDeviceBytes,
    DeviceToHostCalls,
    DeviceToHostBytes,
    DeviceToDeviceCalls,
    DeviceToDeviceBytes,
    UnknownCalls,
    UnknownBytes,
    PeerCalls,
    PeerBytes,
    Memsets,
    MemsetBytes,

    Synchronizations,
    SynchronizeWaitNs,
    /// Time in which the process may have had work on a device: an upper bound.
    BusyUpperNs,

    EventRecords,
    /// Questions whether an event or a stream is done.
    Queries,
    ModuleLoads,
    ModuleLoadNs,
    /// Contexts that were created, and primary ones that were retained, each time.
    Contexts,
    /// Contexts that it destroyed or reset, and primary ones that nobody retained any more.
    ContextsDestroyed,
    Streams,
    /// Calls that make another context the thread's current one, or the one before.
    ContextSwitches,
    /// Handles of physical memory that were asked for again.
    HandleRetains,
    /// Memory that was handed out to other processes.
    Exports,
}

/// How many counters a row has.
pub const COUNTERS: usize = Counter::Exports as usize + 1;

impl Counter {
    /// The counter `steps` after this one.
    #[must_use]
    pub const fn after(self, steps: usize) -> usize {
        self as usize + steps
    }
}

/// Which of the six counters of a kind of memory: added to its first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Allocation {
    Calls = 0,
    Bytes = 1,
    Failed = 2,
    /// Part of `Failed`.
    OutOfMemory = 3,
    Frees = 4,
    FreedBytes = 5,
}

/// What one program of a process did; the value of `COUNTERS`, whose key is the tgid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Row {
    /// CLOCK_BOOTTIME ns at which the thread group leader was started: with the tgid, the identity
    /// of the process. 0 in the overflow row, which belongs to many, and in a row that is being made.
    pub start_boottime_ns: u64,
    /// `start_boottime_ns` and the programs that this process ran before: with the tgid, the identity
    /// of the program.
    pub program: u64,
    /// Device, managed and virtual memory that is allocated now, as far as it was seen.
    pub live_bytes: u64,
    pub peak_bytes: u64,
    /// Pinned host memory that is allocated now, as far as it was seen.
    pub host_bytes: u64,
    /// Of the unified hierarchy, when the process was first seen; 1 is its root, also where the
    /// process is in a group of the old hierarchies only.
    pub cgroup_id: u64,
    /// Contexts that are known and not destroyed.
    pub contexts: u64,
    /// Handle of the only context; meaningless where there are none or several.
    pub context: u64,
    /// User at the first call.
    pub uid: u32,
    /// Device of the first context: its ordinal plus 1, [`NO_DEVICE`] or [`UNKNOWN_DEVICE`].
    pub home: u32,
    /// How often the process lost all of its memory at once.
    pub resets: u32,
    /// Not 0: some of its allocations found no slot, and are in `LIVE`.
    pub spilled: u32,
    /// 0 or 1 for each [`flag`]. A byte each, so that setting one needs no atomic operation.
    pub flags: [u8; FLAGS],
    /// CLOCK_BOOTTIME ns of the first launch that is not known to have ended; 0 = there is none.
    pub pending_since_ns: u64,
    /// CLOCK_BOOTTIME ns of the newest kernel or graph launch, to within a tick of the kernel's
    /// timer (1 to 10 ms); 0 = none so far.
    pub last_launch_ns: u64,
    /// The timer tick at which `last_launch_ns` was taken, 0 where `pending_since_ns` must be looked
    /// at: reading the clock costs more than all the rest of a hit, so it is read once a tick.
    pub last_launch_tick: u64,
    /// Waits whose end was seen: one that outlasts its hook has none.
    pub waits_ended: u64,
    pub counts: [u64; COUNTERS],
}

/// [`Row::home`] before the first context.
pub const NO_DEVICE: u32 = 0;
/// A context whose device nobody has told.
pub const UNKNOWN_DEVICE: u32 = u32::MAX;

/// How many bytes there are for flags.
pub const FLAGS: usize = 16;

/// Indices into [`Row::flags`].
pub mod flag {
    /// The process has exited and the ring had no room to say so. Only user space removes such a
    /// row, unless the tgid is taken again first.
    pub const DEAD: usize = 0;
    /// An allocation was not remembered: `live_bytes` and `peak_bytes` are too small.
    pub const UNTRACKED: usize = 1;
    /// Contexts on more than one device, or on one that is not known besides a known one.
    pub const SEVERAL_DEVICES: usize = 2;
    /// More than one context at one time.
    pub const SEVERAL_CONTEXTS: usize = 3;
    /// It made streams: waiting for the default one does not end all work.
    pub const STREAMS: usize = 4;
    /// It launches into streams of its threads.
    pub const THREAD_STREAMS: usize = 5;
    /// The overflow row: it belongs to many, so that only its counts mean anything.
    pub const SHARED: usize = 6;
    /// The counts are in the overflow row, or soon will be: they have no owner any more. Set before
    /// they get there.
    pub const ABANDONED: usize = 7;
    /// Not all of its work was seen: what streams and contexts it has is not known, so that no wait
    /// ends all work.
    pub const UNSEEN: usize = 8;
    /// Memory went with a context, and how much is not known: `live_bytes` may be too large.
    pub const UNCLEAR_MEMORY: usize = 9;
    /// Memory was allocated in one of several contexts, and which one is not known.
    pub const SCATTERED_MEMORY: usize = 10;
}

/// Why a record was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Event {
    /// First CUDA call of a process.
    Appeared = 1,
    /// First launch after [`SILENCE_NS`] without one.
    Awoke = 2,
    /// A known process runs another program now; `row` is the final one of the program that it left,
    /// and no longer in the kernel.
    Executed = 3,
    /// The last thread is gone; `row` is final and no longer in the kernel.
    Exited = 4,
}

/// A process is silent when it has launched nothing for this long. Also the bound on records: a
/// process causes at most one [`Event::Awoke`] in this time.
pub const SILENCE_NS: u64 = 1_000_000_000;

/// What goes through the ring. Never one per CUDA call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Record {
    /// An [`Event`].
    pub event: u32,
    pub tgid: u32,
    /// As it was when the record was written. All counts are 0 for a process that made no call.
    pub row: Row,
}

/// Index into `LOST`: what could not be attributed, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Loss {
    /// Calls that count in the overflow row, because `COUNTERS` is full.
    Calls = 0,
    /// Records that found the ring full. An exit among them is found later by its `dead` row.
    Records = 1,
    /// Calls whose result was not awaited, because `THREADS` or the thread's own room is full:
    /// counted as successful.
    Results = 2,
    /// Programs whose final counts went to the overflow row: their row was needed again before
    /// anyone had read them.
    Processes = 3,
    /// Groups whose path was not kept, because `CGROUPS` is full.
    Cgroups = 4,
    /// Allocations that were not remembered, because `LIVE` is full.
    Allocations = 5,
    /// Contexts, and calls on a second device, whose device is not known or not counted apart,
    /// because `CONTEXTS`, `THREADS`, `DEVICES` or `UUIDS` is full.
    Contexts = 6,
    /// Batches of copies of which only the first copies' bytes are counted.
    Sizes = 7,
}

/// Index into `OWNER`, which only user space writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Ownership {
    /// Names this set of maps; counts in another one started from 0.
    Identity = 0,
    /// Raised by each agent that takes the maps over. Who finds a higher one has been replaced.
    Generation = 1,
    /// [`layout::LAYOUT`] of the agent that made them.
    Layout = 2,
    /// Not 0: records of these counts may be in a spool.
    Recorded = 3,
}

/// How many entries `OWNER` has.
pub const OWNERSHIPS: usize = 4;

/// How many kinds of loss there are.
pub const LOSSES: usize = 8;

impl Default for Row {
    fn default() -> Self {
        Self {
            start_boottime_ns: 0,
            program: 0,
            live_bytes: 0,
            peak_bytes: 0,
            host_bytes: 0,
            cgroup_id: 0,
            contexts: 0,
            context: 0,
            uid: 0,
            home: NO_DEVICE,
            resets: 0,
            spilled: 0,
            flags: [0; FLAGS],
            pending_since_ns: 0,
            last_launch_ns: 0,
            last_launch_tick: 0,
            waits_ended: 0,
            counts: [0; COUNTERS],
        }
    }
}

/// Levels of a group's path below the root; a job step of Slurm has six.
pub const CGROUP_LEVELS: usize = 9;
/// Bytes of the name of one level, with a zero byte at its end.
pub const CGROUP_NAME: usize = 128;

/// Value of `CGROUPS`: the path of a control group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Cgroup {
    /// How many names there are.
    pub levels: u64,
    /// Its own name first, then those above it. Each ends at its first zero byte.
    pub names: [[u8; CGROUP_NAME]; CGROUP_LEVELS],
}

/// Where the running kernel keeps what the programs read, in bytes from the start of the struct.
/// Found in its BTF when the object is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Offsets {
    pub task_tgid: u32,
    pub task_group_leader: u32,
    pub task_start_boottime: u32,
    pub task_self_exec_id: u32,
    pub task_signal: u32,
    pub signal_live: u32,
    /// 0 = not known, as the four below: groups then have no names.
    pub task_cgroups: u32,
    pub cgroups_unified: u32,
    pub cgroup_node: u32,
    pub node_name: u32,
    pub node_parent: u32,
}

const _: () = assert!(Counter::HostFreedBytes as usize + 1 == Counter::Maps as usize);
const _: () = assert!(Loss::Sizes as usize + 1 == LOSSES);
const _: () = assert!(size_of::<Row>() == 128 + 8 * COUNTERS);
const _: () = assert!(size_of::<Record>() == 8 + size_of::<Row>());
const _: () = assert!(size_of::<Offsets>() == 44);

// SAFETY: `repr(C)`, only integers, no padding: every bit pattern is a valid value.
#[cfg(not(target_arch = "bpf"))]
unsafe impl aya::Pod for Row {}
// SAFETY: as for `Row`.
#[cfg(not(target_arch = "bpf"))]
unsafe impl aya::Pod for Record {}
// SAFETY: as for `Row`.
#[cfg(not(target_arch = "bpf"))]
unsafe impl aya::Pod for Cgroup {}
// SAFETY: as for `Row`.
#[cfg(not(target_arch = "bpf"))]
unsafe impl aya::Pod for Offsets {}
