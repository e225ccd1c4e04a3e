//! What leaves the pure half of the agent: classes now, tiles and CUDA activity for the ledger.

use std::collections::BTreeMap;

use crate::model::ids::{DeviceId, Holder, InstanceId, ProcessId};
use crate::model::metering::{Energy, Seen, Slices, SmActivity};
use crate::model::readings::CudaCounts;
use crate::model::units::BootNs;

/// What an instance is doing now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    Unknown,
    Free,
    HeldNoProcess,
    HeldNoContext,
    MemoryHeld,
    Stalled,
    HostBound,
    Active,
    Down,
}

/// Who uses an instance and how it is known; the output of `attribution`.
#[derive(Clone, Debug, PartialEq)]
pub struct InstanceView {
    pub id: InstanceId,
    /// Holders by what the driver lists, in a fixed order. `None` = the driver gave no list.
    pub holders: Option<Vec<HolderView>>,
    /// Processes that the driver lists and nobody could resolve.
    pub unresolved_processes: u32,
}

/// One holder on one instance.
#[derive(Clone, Debug, PartialEq)]
pub struct HolderView {
    pub holder: Holder,
    pub processes: u32,
    pub memory_bytes: Option<u64>,
    /// Sum of the processes' SM samples of this tick; `None` when any of them has none.
    pub sm_weight: Option<u64>,
    /// Launches since the previous tick; `None` when any process is not traced in full.
    pub launches: Option<u64>,
    /// Age of the newest launch; `None` when any process is not traced in full.
    pub last_launch: LastLaunch,
    /// Running totals over this holder's processes; `None` = not traced.
    pub cuda: Option<CudaCounts>,
}

/// The newest launch of a holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastLaunch {
    /// Not traced in full: silence is not evidence.
    Unknown,
    /// Traced in full, and none so far.
    Never,
    At(BootNs),
}

/// An instance's time span `[start, end)`, cut into exclusive shares that sum to it exactly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tile {
    pub id: InstanceId,
    pub start: BootNs,
    pub end: BootNs,
    pub shares: BTreeMap<Share, u64>,
    /// Nanoseconds by class; they sum to the span too.
    pub classes: BTreeMap<Class, u64>,
    /// `None` when the device's counter was not readable at both ends.
    pub energy: Option<Energy>,
    pub memory: Option<MemoryIntegral>,
    pub sm: SmActivity,
    /// `None` where an older agent did not say.
    pub seen: Option<Seen>,
    /// `None` where MIG is off: the instance is the whole device. With MIG, its size is not known.
    pub slices: Option<Slices>,
}

/// One exclusive part of a tile.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Share {
    Active(Holder, Method),
    HeldIdle(Holder),
    HeldUnknown(Holder),
    Free,
    /// Slices of a device with MIG that no instance has: free, and to be configured first.
    Unconfigured,
    Unattributed(Reason),
    Unobserved(Reason),
}

/// How an active share was found, strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    Exclusive,
    Measured,
    LaunchWeighted,
    EqualSplit,
}

/// Why time belongs to nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Between two runs of the agent within one boot.
    AgentDown,
    /// The library did not answer.
    NvmlFailed,
    GpuLost,
    GpuHung,
    ResetRequired,
    /// NVML was let go on request.
    Released,
    /// The driver gave no process list.
    NoProcessList,
    /// Kernels ran and the driver listed no process.
    NoHolder,
    /// The driver listed processes that nobody could resolve.
    UnresolvedProcess,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryIntegral {
    /// Used bytes times nanoseconds.
    pub byte_ns: u128,
    pub peak_bytes: u64,
}

/// CUDA calls of one holder in a span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaActivity {
    pub holder: Holder,
    pub start: BootNs,
    pub end: BootNs,
    /// What the calls were made for; `None` = not known.
    pub device: Option<DeviceId>,
    pub counts: CudaCounts,
    /// How much of the span every hook was on. Equal to the span = the counts are exact.
    pub watched_ns: u64,
    /// The memory calls of every process in it were counted all along: none of them means zero.
    pub memory_known: bool,
}

impl CudaActivity {
    #[must_use]
    pub fn span(&self) -> u64 {
        self.end.since(self.start)
    }

    /// Time for which the counts are scaled or too small.
    #[must_use]
    pub fn sampled_ns(&self) -> u64 {
        self.span().saturating_sub(self.watched_ns)
    }
}

/// What of the kernel's running totals is in records: from there a later agent goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CudaBaseline {
    /// Names the set of maps that counted: totals of another one say nothing.
    pub epoch: u64,
    /// Through when records speak.
    pub at: BootNs,
    pub processes: BTreeMap<ProcessId, Accounted>,
    /// Final counts of programs that have ended, and are not in `processes`.
    pub ended: CudaCounts,
    /// Calls that have no owner.
    pub overflow: CudaCounts,
}

/// What of one process is in records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accounted {
    pub holder: Holder,
    pub counts: CudaCounts,
    /// Parts of `counts` by ordinal of the device, where it uses several.
    pub elsewhere: BTreeMap<Option<u32>, CudaCounts>,
}

/// What goes to the spool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    Tile(Box<Tile>),
    Cuda(Box<CudaActivity>),
}

impl Tile {
    #[must_use]
    pub fn span(&self) -> u64 {
        self.end.since(self.start)
    }

    /// Invariant 2: the shares sum to the span, and so do the classes; the parts of the energy sum to
    /// it, by share and by class.
    #[must_use]
    pub fn conserves(&self) -> bool {
        let sum = |values: &mut dyn Iterator<Item = u64>| -> u128 { values.map(u128::from).sum() };
        let span = u128::from(self.span());
        sum(&mut self.shares.values().copied()) == span
            && sum(&mut self.classes.values().copied()) == span
            && self.energy.as_ref().is_none_or(Energy::conserves)
    }
}

impl Reason {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AgentDown => "agent_down",
            Self::NvmlFailed => "nvml_failed",
            Self::GpuLost => "gpu_lost",
            Self::GpuHung => "gpu_hung",
            Self::ResetRequired => "reset_required",
            Self::Released => "released",
            Self::NoProcessList => "no_process_list",
            Self::NoHolder => "no_holder",
            Self::UnresolvedProcess => "unresolved_process",
        }
    }
}

impl Method {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exclusive => "exclusive",
            Self::Measured => "measured",
            Self::LaunchWeighted => "launch_weighted",
            Self::EqualSplit => "equal_split",
        }
    }
}

impl Class {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Free => "free",
            Self::HeldNoProcess => "held_no_process",
            Self::HeldNoContext => "held_no_context",
            Self::MemoryHeld => "memory_held",
            Self::Stalled => "stalled",
            Self::HostBound => "host_bound",
            Self::Active => "active",
            Self::Down => "down",
        }
    }
}
