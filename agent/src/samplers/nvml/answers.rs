//! What a device was asked and what it answered, as plain values.
//!
//! `driver.rs` fills these and `decode.rs` says what they mean. Nothing here judges a value: a
//! percentage may still be 2147483632.

use std::collections::BTreeMap;

use crate::model::readings::{Identity, MigIdentity};
use crate::model::units::BootNs;
use crate::samplers::nvml::figures::Raw;
use crate::samplers::nvml::gpm::Sampled;
use crate::samplers::nvml::probe::Plan;

/// A question to the library. The set is closed, so that it can label a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Call {
    /// Load the library and initialise it.
    Open,
    /// Count the devices and read their UUIDs.
    List,
    Handle,
    MigMode,
    Utilization,
    Memory,
    Power,
    Energy,
    Temperature,
    SmClock,
    MemoryClock,
    ComputeProcesses,
    GraphicsProcesses,
    MpsProcesses,
    /// Of older drivers; from Blackwell on it answers, and says 0.
    ProcessUtilization,
    /// From the 550 branch on.
    ProcessesUtilization,
    MigDevices,
    /// Profiling counters, of the device or of each of its instances.
    Gpm,
    /// `nvmlDeviceGetFieldValues`, for all fields at once.
    Fields,
    Encoder,
    Decoder,
    Jpeg,
    OpticalFlow,
    VideoClock,
    Bar1,
    Fabric,
    AccountingMode,
}

/// Why a call gave no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// A fact, not a fault.
    #[error("the device or the driver does not have it")]
    NotSupported,
    /// A fact, not a fault.
    #[error("the agent may not ask")]
    Denied,
    #[error("there is nothing of this kind, or nothing newer")]
    NotFound,
    #[error("the GPU has fallen off the bus")]
    GpuLost,
    #[error("the GPU needs a reset")]
    ResetRequired,
    #[error("the driver was unloaded")]
    DriverGone,
    #[error("the driver and its library are of different versions")]
    DriverReplaced,
    #[error("the driver gives no reason")]
    Failed,
}

/// What one device said when it was asked once. `None` = it was not asked, or `refused` says why.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Answers {
    pub(crate) mig_on: Option<bool>,
    pub(crate) utilization: Option<Utilization>,
    pub(crate) memory: Option<Memory>,
    pub(crate) power_mw: Option<u32>,
    pub(crate) energy_mj: Option<u64>,
    pub(crate) temperature_celsius: Option<u32>,
    pub(crate) sm_clock_mhz: Option<u32>,
    pub(crate) memory_clock_mhz: Option<u32>,
    pub(crate) compute: Option<Vec<Listed>>,
    pub(crate) graphics: Option<Vec<Listed>>,
    pub(crate) mps: Option<Vec<Listed>>,
    pub(crate) samples: Option<Vec<Sample>>,
    pub(crate) mig: Option<Vec<MigDevice>>,
    pub(crate) gpm: Option<Sampled>,
    /// `None` at ticks that ask for none.
    pub(crate) figures: Option<Raw>,
    /// What `figures` has of fields: what each of those that were asked for said.
    pub(crate) fields: Vec<FieldSaid>,
    pub(crate) refused: BTreeMap<Call, Refusal>,
    /// The driver's own code of each refusal.
    pub(crate) codes: BTreeMap<Call, u32>,
}

/// One field by this driver's number, as the driver says it; or its code.
pub(crate) type FieldSaid = (u32, Result<u64, u32>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Utilization {
    pub(crate) gpu: u32,
    pub(crate) memory: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) total: u64,
    pub(crate) used: u64,
    pub(crate) free: u64,
    /// `None` from the first version of the call, which counts it as used.
    pub(crate) reserved: Option<u64>,
}

/// A row of a process list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) pid: u32,
    /// All bits set where the driver does not know.
    pub(crate) memory: u64,
}

/// A row of the per-process utilisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) pid: u32,
    /// Unix time in microseconds.
    pub(crate) at_us: u64,
    pub(crate) sm: u32,
}

/// One MIG instance of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MigDevice {
    pub(crate) uuid: String,
    pub(crate) identity: MigIdentity,
    pub(crate) memory: Option<Memory>,
    pub(crate) processes: Option<Vec<Listed>>,
}

/// What a device's thread sends back for one request.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    /// The tick that asked.
    pub(crate) at: BootNs,
    /// Time inside the library.
    pub(crate) spent_ns: u64,
    /// Of each call, in nanoseconds.
    pub(crate) durations: Vec<(Call, u64)>,
    /// Unix time in microseconds after the last call.
    pub(crate) now_us: u64,
    /// What was asked.
    pub(crate) plan: Plan,
    pub(crate) answers: Answers,
    /// Where this request was a probe that found the device.
    pub(crate) identity: Option<Identity>,
}

/// What the library lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Listing {
    pub(crate) uuids: Vec<String>,
    /// Of each call that it took, in nanoseconds.
    pub(crate) durations: Vec<(Call, u64)>,
    /// Devices that are counted and cannot be named: no permission, hung or lost before their UUID
    /// was read, or beyond the bound.
    pub(crate) unlisted: u32,
}

// === impl Call ===

impl Call {
    pub const ALL: [Self; 27] = [
        Self::Open,
        Self::List,
        Self::Handle,
        Self::MigMode,
        Self::Utilization,
        Self::Memory,
        Self::Power,
        Self::Energy,
        Self::Temperature,
        Self::SmClock,
        Self::MemoryClock,
        Self::ComputeProcesses,
        Self::GraphicsProcesses,
        Self::MpsProcesses,
        Self::ProcessUtilization,
        Self::ProcessesUtilization,
        Self::MigDevices,
        Self::Gpm,
        Self::Fields,
        Self::Encoder,
        Self::Decoder,
        Self::Jpeg,
        Self::OpticalFlow,
        Self::VideoClock,
        Self::Bar1,
        Self::Fabric,
        Self::AccountingMode,
    ];

    /// What a device can be asked.
    pub(crate) fn of_a_device() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|it| !matches!(it, Self::Open | Self::List))
    }

    /// Not asked at each tick: it decides about nobody's time, and is slow or changes rarely.
    pub(crate) fn is_slow(self) -> bool {
        matches!(
            self,
            Self::Fields
                | Self::Encoder
                | Self::Decoder
                | Self::Jpeg
                | Self::OpticalFlow
                | Self::VideoClock
                | Self::Bar1
                | Self::Fabric
                | Self::AccountingMode
        )
    }

    /// The value of the `call` label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::List => "list",
            Self::Handle => "handle",
            Self::MigMode => "mig_mode",
            Self::Utilization => "utilization",
            Self::Memory => "memory",
            Self::Power => "power",
            Self::Energy => "energy",
            Self::Temperature => "temperature",
            Self::SmClock => "sm_clock",
            Self::MemoryClock => "memory_clock",
            Self::ComputeProcesses => "compute_processes",
            Self::GraphicsProcesses => "graphics_processes",
            Self::MpsProcesses => "mps_processes",
            Self::ProcessUtilization => "process_utilization",
            Self::ProcessesUtilization => "processes_utilization",
            Self::MigDevices => "mig_devices",
            Self::Gpm => "gpm",
            Self::Fields => "fields",
            Self::Encoder => "encoder",
            Self::Decoder => "decoder",
            Self::Jpeg => "jpeg",
            Self::OpticalFlow => "optical_flow",
            Self::VideoClock => "video_clock",
            Self::Bar1 => "bar1",
            Self::Fabric => "fabric",
            Self::AccountingMode => "accounting_mode",
        }
    }
}

// === impl Answers ===

impl Answers {
    /// Nothing was asked, because this was refused first.
    pub(crate) fn refused(call: Call, refusal: Refusal) -> Self {
        Self { refused: BTreeMap::from([(call, refusal)]), ..Self::default() }
    }

    /// The driver has no sample that is newer than the cursor: of whichever call it was asked with.
    pub(crate) fn nobody_was_active(&self) -> bool {
        let calls = [Call::ProcessesUtilization, Call::ProcessUtilization];
        calls.iter().any(|it| self.refused.get(it) == Some(&Refusal::NotFound))
    }

    /// The device or the driver was found to be gone.
    pub(crate) fn ended(&self) -> bool {
        self.refused.values().any(|it| it.ends_the_visit())
    }
}

// === impl Refusal ===

impl Refusal {
    /// After this the device is not asked again for a while: calls to a lost GPU can block for
    /// most of a minute.
    pub(crate) fn ends_the_visit(self) -> bool {
        matches!(self, Self::GpuLost | Self::ResetRequired) || self.is_about_the_driver()
    }

    /// No device answers any more.
    pub(crate) fn is_about_the_driver(self) -> bool {
        matches!(self, Self::DriverGone | Self::DriverReplaced)
    }

    /// A property of this device, driver or privilege.
    pub(crate) fn is_a_fact(self) -> bool {
        matches!(self, Self::NotSupported | Self::Denied)
    }

    /// Nothing went wrong.
    pub(crate) fn is_ordinary(self) -> bool {
        self.is_a_fact() || self == Self::NotFound
    }
}
