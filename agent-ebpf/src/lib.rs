//! Keys, values and numbers that the kernel programs and the agent share.
//!
//! Everything here is plain data with a fixed layout. What the numbers mean to the rest of the agent
//! is decided in `samplers/cuda/decode.rs`; which symbol feeds which counter in
//! `samplers/cuda/hooks.rs`.

#![no_std]

use core::mem::size_of;

/// Names everything that outlives an agent: the layouts here, the maps, what a cookie means and what
/// a counter counts. An agent goes on with the pins of its own number only; programs that a
/// predecessor attached go on as they are, so that a change in what they count needs a new number.
pub const ABI: u32 = 1;

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
    Contexts,
    ContextsDestroyed,
    Streams,
}

/// How many counters a row has.
pub const COUNTERS: usize = Counter::Streams as usize + 1;

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
    /// CLOCK_BOOTTIME ns at which the thread group leader was started: with the tgid, the identity.
    /// 0 in the overflow row, which belongs to many.
    pub start_boottime_ns: u64,
    /// CLOCK_BOOTTIME ns of the newest kernel or graph launch, to within a tick of the kernel's
    /// timer (1 to 10 ms); 0 = none so far.
    pub last_launch_ns: u64,
    /// The timer tick at which `last_launch_ns` was taken: reading the clock costs more than all
    /// the rest of a hit, so it is read once a tick.
    pub last_launch_tick: u64,
    /// CLOCK_BOOTTIME ns of the first launch that is not known to have ended; 0 = there is none.
    pub pending_since_ns: u64,
    /// Device, managed and virtual memory that is allocated now, as far as it was seen.
    pub live_bytes: u64,
    pub peak_bytes: u64,
    /// Pinned host memory that is allocated now, as far as it was seen.
    pub host_bytes: u64,
    /// Of the unified hierarchy, when the process was first seen; 1 is its root, also where the
    /// process is in a group of the old hierarchies only.
    pub cgroup_id: u64,
    /// User at the first call.
    pub uid: u32,
    /// Bits of [`flag`].
    pub flags: u32,
    /// Ordinal, plus 1, of the device of the first context; 0 = not known.
    pub home: u32,
    pub unused: u32,
    pub counts: [u64; COUNTERS],
}

/// Bits of [`Row::flags`].
pub mod flag {
    /// The process has exited and the ring had no room to say so. Only user space removes such a
    /// row, unless the tgid is taken again first.
    pub const DEAD: u32 = 1;
    /// An allocation was not remembered: `live_bytes` and `peak_bytes` are too small.
    pub const UNTRACKED: u32 = 1 << 1;
    /// Contexts on more than one device.
    pub const SEVERAL_DEVICES: u32 = 1 << 2;
}

/// Why a record was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Event {
    /// First CUDA call of a process.
    Appeared = 1,
    /// First launch after [`SILENCE_NS`] without one.
    Awoke = 2,
    /// A known process runs another program now.
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
    /// Calls whose result was not awaited, because `PENDING` is full: counted as successful.
    Results = 2,
    /// Processes whose final counts went to the overflow row: their tgid was taken again before
    /// anyone had read them.
    Processes = 3,
    /// Groups whose path was not kept, because `CGROUPS` is full.
    Cgroups = 4,
}

/// Index into `OWNER`, which only user space writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Ownership {
    /// Names this set of maps; counts in another one started from 0.
    Identity = 0,
    /// Raised by each agent that takes the maps over. Who finds a higher one has been replaced.
    Generation = 1,
}

/// How many entries `OWNER` has.
pub const OWNERSHIPS: usize = 2;

/// How many kinds of loss there are.
pub const LOSSES: usize = 5;

impl Default for Row {
    fn default() -> Self {
        Self {
            start_boottime_ns: 0,
            last_launch_ns: 0,
            last_launch_tick: 0,
            pending_since_ns: 0,
            live_bytes: 0,
            peak_bytes: 0,
            host_bytes: 0,
            cgroup_id: 0,
            uid: 0,
            flags: 0,
            home: 0,
            unused: 0,
            counts: [0; COUNTERS],
        }
    }
}

/// What a hook is told about its symbol, through the attach cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie(pub u64);

impl Cookie {
    /// Adds 1 to `calls`.
    #[must_use]
    pub const fn count(calls: Counter) -> Self {
        Self(calls as u64)
    }

    /// Adds 1 to `calls` and the argument at `position` (from 0) to the counter after it.
    #[must_use]
    pub const fn sum(calls: Counter, position: u8) -> Self {
        Self(calls as u64 | (position as u64) << 8)
    }

    /// Waits for the result of a call. `slot` tells apart the functions that may be under way in
    /// one thread; it is less than [`SLOTS`].
    #[must_use]
    pub const fn result(calls: Counter, slot: u8) -> Self {
        Self(calls as u64 | (slot as u64) << 8)
    }

    /// Waits for the result of a pitched allocation, whose size is known only then.
    #[must_use]
    pub const fn pitched(slot: u8) -> Self {
        Self(Self::result(Counter::DeviceAllocations, slot).0 | 1 << 16)
    }

    #[inline(always)]
    #[must_use]
    pub const fn is_pitched(self) -> bool {
        self.0 >> 16 & 1 == 1
    }

    /// The same hook behind a gate, which is less than [`GATES`].
    #[must_use]
    pub const fn behind(self, gate: u32) -> Self {
        debug_assert!(gate < GATES, "there are no more gates");
        Self(self.0 | (gate as u64 + 1) << GATE_SHIFT)
    }

    /// `None` = the hook always counts.
    #[inline(always)]
    #[must_use]
    pub const fn gate(self) -> Option<u32> {
        let field = (self.0 >> GATE_SHIFT) as u32;
        if field == 0 { None } else { Some(field - 1) }
    }

    #[inline(always)]
    #[must_use]
    pub const fn counter(self) -> usize {
        (self.0 & 0xff) as usize
    }

    /// The position of an argument, or a slot.
    #[inline(always)]
    #[must_use]
    pub const fn detail(self) -> u64 {
        (self.0 >> 8) & 0xff
    }
}

/// The upper bits of a cookie hold its gate, plus 1.
const GATE_SHIFT: u32 = 48;
/// Gates that there are: one for each governed group of each library file.
pub const GATES: u32 = 1_024;

/// Functions whose result is awaited; bounds what one thread can leave in `PENDING`.
pub const SLOTS: u8 = 8;

/// Key of `PENDING`: a call that has started and not returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct PendingKey {
    /// tgid in the upper, thread id in the lower half.
    pub thread: u64,
    pub slot: u64,
}

/// Value of `PENDING`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Pending {
    /// CLOCK_BOOTTIME ns.
    pub start_ns: u64,
    /// Second argument: the size of an allocation, or the address of its pitch; meaningless for
    /// other calls.
    pub second: u64,
    /// Fourth argument: the rows of a pitched allocation; meaningless for other calls.
    pub fourth: u64,
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
const _: () = assert!(Loss::Cgroups as usize + 1 == LOSSES);
const _: () = assert!(size_of::<Row>() == 80 + 8 * COUNTERS);
const _: () = assert!(size_of::<Record>() == 8 + size_of::<Row>());
const _: () = assert!(size_of::<PendingKey>() == 16);
const _: () = assert!(size_of::<Pending>() == 24);
const _: () = assert!(size_of::<Offsets>() == 40);

// SAFETY: `repr(C)`, only integers, no padding: every bit pattern is a valid value.
#[cfg(not(target_arch = "bpf"))]
unsafe impl aya::Pod for Row {}
// SAFETY: as for `Row`.
#[cfg(not(target_arch = "bpf"))]
unsafe impl aya::Pod for Record {}
// SAFETY: as for `Row`.
#[cfg(not(target_arch = "bpf"))]
unsafe impl aya::Pod for PendingKey {}
// SAFETY: as for `Row`.
#[cfg(not(target_arch = "bpf"))]
unsafe impl aya::Pod for Pending {}
// SAFETY: as for `Row`.
#[cfg(not(target_arch = "bpf"))]
unsafe impl aya::Pod for Cgroup {}
// SAFETY: as for `Row`.
#[cfg(not(target_arch = "bpf"))]
unsafe impl aya::Pod for Offsets {}

#[cfg(test)]
mod tests {
    use super::{Cookie, Counter, GATES};

    #[test]
    fn a_cookie_carries_a_counter_and_a_detail() {
        let cookie = Cookie::sum(Counter::PeerCalls, 4);
        assert_eq!((cookie.counter(), cookie.detail()), (Counter::PeerCalls as usize, 4));
        assert_eq!(Cookie::count(Counter::KernelLaunches).counter(), 0);
        let pitched = Cookie::pitched(7);
        assert!(pitched.is_pitched() && !cookie.is_pitched());
        let behind = cookie.behind(GATES - 1);
        assert_eq!((cookie.gate(), behind.gate()), (None, Some(GATES - 1)));
        assert_eq!((behind.counter(), behind.detail()), (cookie.counter(), cookie.detail()));
        assert_eq!((pitched.counter(), pitched.detail()), (Counter::DeviceAllocations as usize, 7));
    }
}
