//! What the sources said at one tick. `None` where a source said nothing: never zero.

use std::collections::BTreeMap;
use std::ops::{Index, IndexMut};
use std::sync::Arc;

pub use agent_ebpf::{COUNTERS, Counter};

use crate::model::figures::Figures;
use crate::model::ids::{DeviceId, Holder, InstanceId, ProcessId};
use crate::model::units::{BootNs, Percent};

/// Everything that one tick knows. One field per sampler.
#[derive(Clone, Debug)]
pub struct Readings {
    pub at: BootNs,
    pub nvml: NvmlReadings,
    pub cuda: CudaReadings,
    /// Who holds what, for every process that the other sources name. A process that is missing
    /// here could not be resolved (it was gone, or `/proc` was not readable).
    pub holders: BTreeMap<ProcessId, Holder>,
}

// === NVML ===

/// Whether the library answers at all, and what each device said.
#[derive(Clone, Debug, PartialEq)]
pub struct NvmlReadings {
    pub state: NvmlState,
    /// The driver's process lists mean something here: it leaves out processes that this agent's PID
    /// namespace does not have.
    pub sees_processes: bool,
    /// Every device that was ever listed since the agent started, so that a lost one stays visible.
    pub devices: BTreeMap<DeviceId, DeviceReading>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NvmlState {
    Ok,
    /// No driver or no library; the text says which and what it costs. A state, not a crash.
    Absent(String),
    /// The library is there and fails.
    Failed(String),
    /// The kernel has another version of the driver than the library: an upgrade is not finished.
    Replaced(String),
    /// Let go on request; the text says until when, and what of ours is still inside.
    Released(String),
}

impl NvmlState {
    /// Why there is nothing to read; empty where there is.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Ok => "",
            Self::Absent(text)
            | Self::Failed(text)
            | Self::Replaced(text)
            | Self::Released(text) => text,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Health {
    Ok,
    Degraded,
    /// A call has not returned by its deadline.
    Hung,
    Lost,
    ResetRequired,
    /// Not asked, because somebody on the node asked for that.
    Released,
}

/// One device at one tick.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceReading {
    pub at: BootNs,
    pub health: Health,
    /// When the call began that it is in; `None` = it owes no answer.
    pub inside_since: Option<BootNs>,
    pub identity: Identity,
    pub counters: Counters,
    /// As of the newest reading of them, which is not of every tick.
    pub figures: Figures,
    /// Errors that the driver reported since the agent started, by code. A code that is not here was
    /// not heard of, which means something only while `hears_xids`.
    pub xids: Vec<Xid>,
    /// The driver would tell of an error now.
    pub hears_xids: bool,
    /// What is read of it and whether that works. A source that is missing is not offered, or nobody
    /// asks for it now.
    pub sources: BTreeMap<Source, SourceState>,
    /// One entry where MIG is off.
    pub instances: Vec<InstanceReading>,
}

/// One thing that is read of a device, whatever it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    Utilization,
    Memory,
    Power,
    Energy,
    /// Every list of processes that it has.
    Processes,
    ProcessUtilization,
    /// MIG instances.
    Instances,
    Gpm,
    /// Not read at every tick.
    Fields,
    /// Errors, as they happen.
    Events,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceState {
    /// The newest attempt gave a value.
    pub success: bool,
    /// Unix time in microseconds of the newest value; `None` = none since the agent started.
    pub last_us: Option<u64>,
}

/// An error that the driver reports by number, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Xid {
    /// 999 = the driver did not know which.
    pub code: u64,
    pub count: u64,
    /// CLOCK_REALTIME when the agent heard of the newest one.
    pub last_real_ns: i64,
}

/// What does not change while the driver runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub index: Option<u32>,
    pub pci_bus_id: Option<Arc<str>>,
    pub model: Option<Arc<str>>,
    pub driver_version: Option<Arc<str>>,
    /// The newest CUDA that the driver runs, `13.0`.
    pub cuda_version: Option<Arc<str>>,
    /// `9.0` for Hopper.
    pub compute_capability: Option<Arc<str>>,
    pub mig_on: Option<bool>,
    /// Compute slices into which MIG can cut the device; `None` where MIG is off.
    pub mig_slices: Option<u32>,
    pub numa_node: Option<u32>,
    pub memory_total_bytes: Option<u64>,
    pub power_limit_mw: Option<u64>,
}

/// Counters and gauges of the whole device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// `utilization.gpu`: the part of the driver's last sample period in which a kernel ran. `None`
    /// with MIG on, where it says nothing.
    pub busy: Option<Percent>,
    pub memory_busy: Option<Percent>,
    pub memory_used_bytes: Option<u64>,
    pub memory_reserved_bytes: Option<u64>,
    pub memory_free_bytes: Option<u64>,
    pub power_mw: Option<u64>,
    /// Since the driver was loaded: it resets.
    pub energy_mj: Option<u64>,
    pub temperature_celsius: Option<i32>,
    pub sm_clock_mhz: Option<u32>,
    pub memory_clock_mhz: Option<u32>,
}

/// One MIG instance, or the device itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceReading {
    pub id: InstanceId,
    /// Part of the time in which a kernel ran here; `None` = not measurable.
    pub busy: Option<Percent>,
    pub memory_total_bytes: Option<u64>,
    pub memory_used_bytes: Option<u64>,
    /// What the driver keeps for itself with no process on the instance.
    pub memory_reserved_bytes: Option<u64>,
    /// `None` = the driver did not give a list, which is not the same as an empty one.
    pub processes: Option<Vec<ProcessReading>>,
    /// How much of it worked since the tick before, where it has counters of its own.
    pub figures: Figures,
    pub mig: Option<MigIdentity>,
}

/// Which part of its device a MIG instance is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MigIdentity {
    /// `1g.10gb`.
    pub profile: Option<Arc<str>>,
    pub gpu_instance: Option<u32>,
    pub compute_instance: Option<u32>,
}

/// A process that the driver lists on an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessReading {
    /// `None` when the process was gone before its start time could be read.
    pub process: Option<ProcessId>,
    pub tgid: u32,
    pub memory_bytes: Option<u64>,
    /// Sum over the driver's per-process SM samples that are newer than the previous tick, each
    /// in percent: a weight among the processes of one device, not a ratio. `Some(0)` = the driver
    /// has samples and none names this process; `None` = no answer.
    pub sm_weight: Option<u64>,
    /// Mean of the same samples.
    pub sm: Option<Percent>,
}

// === CUDA ===

/// What the kernel programs counted, and how much of it can be trusted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CudaReadings {
    pub tracing: Tracing,
    /// Running totals by process. A process that exited appears once more with its final counts, and
    /// then no longer.
    pub processes: BTreeMap<ProcessId, CudaProcess>,
    /// Programs that a process left by exec since the last reading: final counts, oldest first.
    pub replaced: Vec<(ProcessId, CudaProcess)>,
    /// Paths of groups of the unified hierarchy by id, as far as they were learned since the last
    /// reading.
    pub cgroups: BTreeMap<u64, Arc<str>>,
    /// Calls that have no owner: of processes beyond `cuda.max_processes`, and of those whose end
    /// no agent has lived to record. With `processes` they make the node's exact total. Of a program
    /// whose end could not be told it has all, also what earlier readings gave to its process.
    pub overflow: CudaCounts,
    pub lineage: Lineage,
}

/// Where running totals come from, so that over a restart of the agent each call counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lineage {
    /// Names the set of maps that counts: totals of another one say nothing. 0 = nothing counts.
    pub epoch: u64,
    /// Counting began before this agent did, and nothing says what of it is in records.
    pub unknown: bool,
    /// Final counts of programs that ended before this agent read anything, without those that had
    /// no owner.
    pub ended: CudaCounts,
    /// The part of `overflow` that records have given to processes already.
    pub abandoned: CudaCounts,
}

/// Whether silence of a process is evidence.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tracing {
    pub on: bool,
    /// Why not, when it is not on.
    pub reason: String,
    pub hooks_attached: u32,
    pub hooks_wanted: u32,
    /// Hooks whose entry had to be taken although the kernel must single-step it.
    pub hooks_slow: u32,
    /// Counts or records whose attribution was lost since the agent started, by cause.
    pub lost: BTreeMap<&'static str, u64>,
    /// `None` = every hit counts. Else that of the most sampled file.
    pub sampling: Option<Sampling>,
    /// For how long hooks were off since the agent started, and nothing stands for what they missed;
    /// the sum over library files.
    pub unwatched_ns: u64,
    /// Library files whose memory calls are not counted, and why, for people.
    pub memory_held_back: Vec<String>,
    /// Why hooks and counts end with the agent; `None` = they outlive it until the next one.
    pub unpinned: Option<String>,
    /// Why the kernel does not hold as much as is configured.
    pub kept_bounds: Option<String>,
    /// What this kernel does not offer, and what that costs, for people.
    pub kernel_lacks: Option<&'static str>,
    /// What a hit costs the process that makes it; `None` where nothing is traced.
    pub hit_costs: Option<HitCosts>,
}

/// What one hit on a hook costs here, in nanoseconds, by what the kernel has to do for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HitCosts {
    /// At an instruction that the kernel emulates.
    pub entry_ns: u64,
    /// The same, and the return of the function.
    pub pair_ns: u64,
    /// At an instruction that it must single-step.
    pub slow_ns: u64,
    /// Measured on this machine, or assumed.
    pub measured: bool,
}

/// Hooks are on for a part of the time only; counts are scaled by what that part was.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 1 / share of the time, as last applied.
    pub factor: f64,
    pub reason: String,
}

/// What one program of a process asked of its devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaProcess {
    pub uid: u32,
    /// Tells it from other programs of the process; `None` = nothing of it is in the kernel.
    pub program: Option<u64>,
    /// Of the unified hierarchy, when the process was first seen. `None` = it was in none of its
    /// groups but the root, as on nodes that use the old hierarchies.
    pub cgroup_id: Option<u64>,
    /// Totals of this program, on all devices.
    pub counts: CudaCounts,
    /// The part of `counts` that was not seen but estimated, because hooks were off.
    pub estimated: CudaCounts,
    /// Parts of `counts` on devices other than `home`, where it uses several.
    pub elsewhere: Vec<(CudaDevice, CudaCounts)>,
    /// The device of its first context; `None` = not known.
    pub home: Option<CudaDevice>,
    /// `None` = not known: the memory calls of its library were not counted all along.
    pub memory: Option<CudaMemory>,
    /// Or when hooks that had been off went on again, if that was later: it may have launched until then.
    pub last_launch: Option<BootNs>,
    /// Every libcuda that the process maps is hooked: its silence is evidence.
    pub fully_hooked: bool,
    /// The last thread has exited; `counts` are final.
    pub exited: bool,
}

/// A device as a process names it: the ordinal means something inside that process only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct CudaDevice {
    pub ordinal: Option<u32>,
    /// Of the device or of a MIG instance, where the process asked for it.
    pub uuid: Option<[u8; 16]>,
}

/// Memory that a process has allocated now, as far as its calls were seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CudaMemory {
    pub live_bytes: u64,
    pub peak_bytes: u64,
    /// Pinned host memory.
    pub host_bytes: u64,
    /// An allocation was not remembered: there may be more.
    pub at_least: bool,
}

/// What the kernel told between two readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A process appeared, became another program or exited.
    Life,
    /// A process launched after a silence.
    Wake,
}

impl CudaMemory {
    /// Of two processes together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            live_bytes: self.live_bytes.saturating_add(other.live_bytes),
            peak_bytes: self.peak_bytes.saturating_add(other.peak_bytes),
            host_bytes: self.host_bytes.saturating_add(other.host_bytes),
            at_least: self.at_least || other.at_least,
        }
    }
}

impl Tracing {
    /// Of every cause together.
    #[must_use]
    pub fn losses(&self) -> u64 {
        self.lost.values().fold(0, |sum, it| sum.saturating_add(*it))
    }
}

/// CUDA driver calls: one count for each [`Counter`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CudaCounts([u64; COUNTERS]);

impl CudaCounts {
    /// In the order of [`Counter`].
    #[must_use]
    pub fn as_array(&self) -> &[u64; COUNTERS] {
        &self.0
    }

    /// What was added since `earlier`. Totals of one process never go back.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        self.combine(earlier, u64::saturating_sub)
    }

    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        self.combine(other, u64::saturating_add)
    }

    /// Of each count the smaller.
    #[must_use]
    pub fn at_most(&self, other: &Self) -> Self {
        self.combine(other, u64::min)
    }

    /// Of each count the larger.
    #[must_use]
    pub fn at_least(&self, other: &Self) -> Self {
        self.combine(other, u64::max)
    }

    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    /// Whether every count is at least that of `other`. Time is none: of an open span it is read a
    /// little lower or higher each time.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let mut missing = other.since(self);
        missing[Counter::BusyUpperNs] = 0;
        missing.is_zero()
    }

    /// The smaller of both, count by count.
    #[must_use]
    pub fn least(&self, other: &Self) -> Self {
        self.combine(other, u64::min)
    }

    /// By [`Counter`].
    #[must_use]
    pub fn all(&self) -> &[u64; COUNTERS] {
        &self.0
    }

    /// Launches of every kind that put work on a device.
    #[must_use]
    pub fn launches(&self) -> u64 {
        [Counter::KernelLaunches, Counter::CooperativeLaunches, Counter::GraphLaunches]
            .into_iter()
            .fold(0, |sum, it| sum.saturating_add(self[it]))
    }

    fn combine(&self, other: &Self, op: impl Fn(u64, u64) -> u64) -> Self {
        Self(std::array::from_fn(|index| op(self.0[index], other.0[index])))
    }
}

impl Default for CudaCounts {
    fn default() -> Self {
        Self([0; COUNTERS])
    }
}

impl From<[u64; COUNTERS]> for CudaCounts {
    fn from(counts: [u64; COUNTERS]) -> Self {
        Self(counts)
    }
}

impl Index<Counter> for CudaCounts {
    type Output = u64;

    fn index(&self, counter: Counter) -> &u64 {
        &self.0[counter as usize]
    }
}

impl IndexMut<Counter> for CudaCounts {
    fn index_mut(&mut self, counter: Counter) -> &mut u64 {
        &mut self.0[counter as usize]
    }
}
