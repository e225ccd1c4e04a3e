//! `scenario.toml`: what the simulated node is and what goes wrong on it.
//!
//! The libraries read it again when it changes, so a device can fall off the bus under a running
//! agent. A file that cannot be read or parsed is a node without a driver. What changes by itself is
//! in the file's steps (`timeline.rs`); a recording of a real node is such a file.

use std::collections::BTreeMap;
use std::path::Path;

use recording::{About, Recorded, Step};
use serde::{Deserialize, Serialize};

use crate::timeline;

/// File name in the node's folder.
pub const NAME: &str = "scenario.toml";

/// A return code of NVML by its number; `nvml.h` names them.
pub type NvmlCode = u32;

/// The node. Everything has a default, so a file names only what it is about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scenario {
    /// Where the file is a recording: how it was made.
    pub recording: Option<About>,
    pub driver_version: String,
    /// As `cuDriverGetVersion` counts: 12040 is CUDA 12.4.
    pub cuda_version: i32,
    /// How long the driver keeps the memory of a process that is gone.
    pub release_ms: u64,
    /// Device time of a launch that does not say how long it runs.
    pub kernel_us: u64,
    /// Device memory of a context, before the first allocation.
    pub context_mib: u64,
    /// The period over which `utilization.gpu` is measured; whole tenths of a second.
    pub sample_ms: u64,
    /// `false`: as in a container without the host's PID namespace, the process lists are silently
    /// empty while process utilisation still names host PIDs.
    pub pids_visible: bool,
    /// What `nvmlInit_v2` returns instead of success.
    pub nvml_init_fails: Option<NvmlCode>,
    /// CUDA calls, by exported name, that fail, with the `CUresult` they return.
    pub cuda_fails: BTreeMap<String, i32>,
    pub gpus: Vec<Gpu>,
    /// What changes, and when: milliseconds since a library first opened the node's folder.
    pub steps: Vec<Step>,
}

/// One device. Its index is its place in the list, and must not change while the node runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gpu {
    pub uuid: String,
    /// What a real device answered; then nothing below but `hang_ms` and `xids` counts.
    pub recorded: Option<Recorded>,
    pub name: String,
    pub pci_bus_id: String,
    pub compute_capability: String,
    pub memory_mib: u64,
    /// Kept by the driver for itself.
    pub reserved_mib: u64,
    /// Drawn when no kernel runs.
    pub power_floor_mw: u64,
    /// Drawn when a kernel runs; also the limit.
    pub power_max_mw: u64,
    /// `None`: the driver does not say.
    pub numa_node: Option<u32>,
    pub state: State,
    /// Every NVML call about this device returns only after this time.
    pub hang_ms: u64,
    /// `None`: the driver does not say.
    pub bar1_mib: Option<u64>,
    pub bar1_used_mib: u64,
    /// `None`: the driver does not say.
    pub accounting_on: Option<bool>,
    /// As on Blackwell: the older call for the utilisation of processes answers, and says 0.
    pub legacy_samples_are_zero: bool,
    pub engines: Engines,
    /// `None`: the device is in no NVLink fabric.
    pub fabric: Option<Fabric>,
    /// What `utilization.gpu` says; `None`: what its processes really launched.
    pub busy_percent: Option<u32>,
    /// Memory sizes have all bits set.
    pub memory_is_not_known: bool,
    /// What the energy counter says; `None`: what its power adds up to.
    pub energy_mj: Option<u64>,
    /// Values of GPM by metric number, in thousandths of the metric's unit; `None`: not supported.
    pub gpm: Option<BTreeMap<String, u32>>,
    /// `None`: MIG is off.
    pub mig: Option<Vec<MigInstance>>,
    /// XIDs that were raised, oldest first. Who registers for events hears those that are added later.
    pub xids: Vec<u64>,
    /// Rows of the process lists, beside those of processes that really have a context.
    pub processes: Vec<Row>,
    /// Rows of the utilisation of processes, beside those of processes that really launched.
    pub samples: Vec<SampleRow>,
    /// Values of `nvmlDeviceGetFieldValues` by field number, as the driver of this version counts. A
    /// number that is missing is not supported; one that is 2^32 - 1 or 2^64 - 1 is not known.
    pub fields: BTreeMap<String, u64>,
    /// NVML calls, by exported name, that fail, with the code they return.
    pub nvml_fails: BTreeMap<String, NvmlCode>,
}

/// Percent that each engine is busy; `None`: the device does not have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Engines {
    pub encoder: Option<u32>,
    pub decoder: Option<u32>,
    pub jpeg: Option<u32>,
    pub optical_flow: Option<u32>,
}

/// One MIG instance. What is on it is in the rows of its device's process lists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MigInstance {
    pub uuid: String,
    /// `1g.10gb`.
    pub profile: String,
    pub gpu_instance: u32,
    pub compute_instance: u32,
    pub memory_mib: u64,
    pub used_mib: u64,
    /// As of a device.
    pub gpm: Option<BTreeMap<String, u32>>,
}

/// A row of a process list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Row {
    pub list: List,
    pub pid: u32,
    /// `None`: the driver does not know, and sets all bits.
    pub memory_mib: Option<u64>,
    /// Where MIG is on: the instance that it is on.
    pub gpu_instance: Option<u32>,
    pub compute_instance: Option<u32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum List {
    #[default]
    Compute,
    Graphics,
    Mps,
}

/// A row of the utilisation of processes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleRow {
    pub pid: u32,
    pub sm: u32,
    /// Unix time in microseconds; `None` = the time of the call, so that every call has it anew.
    pub at_us: Option<u64>,
}

/// By the numbers of `nvml.h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fabric {
    pub state: u8,
    pub status: NvmlCode,
    pub health_mask: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    #[default]
    Ok,
    /// Fallen off the bus.
    Lost,
    ResetRequired,
}

/// What an H100 of the 550 branch answers when nothing has ever gone wrong on it.
const H100_FIELDS: [(u32, u64); 34] = [
    (1, 1), // error correction is on, now and after a reset
    (2, 1),
    (3, 0), // errors of memory
    (4, 0),
    (5, 0),
    (6, 0),
    (38, 0), // errors of NVLinks
    (45, 0),
    (52, 0),
    (59, 0),
    (160, 0),
    (74, 0), // time in which clocks were held down
    (76, 0),
    (251, 0),
    (252, 0),
    (253, 0),
    (82, 38), // memory temperature
    (94, 0),  // PCIe
    (95, 0),
    (138, 0), // NVLink traffic
    (139, 0),
    (142, 0), // rows
    (143, 0),
    (144, 0),
    (145, 0),
    (173, 0), // PCIe errors
    (176, 0),
    (178, 0),
    (179, 0),
    (180, 0),
    (181, 0),
    (197, 4_096), // PCIe traffic
    (198, 8_192),
    (230, 0), // recovery action
];

/// Why there is no scenario.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    #[error("cannot read the scenario: {0}")]
    Read(std::io::Error),
    #[error("cannot parse the scenario: {0}")]
    Parse(toml::de::Error),
    #[error("the scenario has {0} devices, expected at most {max}", max = crate::slots::DEVICES)]
    TooManyDevices(usize),
    #[error("a step of the scenario does not fit: {0}")]
    Step(String),
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            recording: None,
            driver_version: "550.163.01".to_owned(),
            cuda_version: 12_040,
            release_ms: 200,
            kernel_us: 1_000,
            context_mib: 400,
            sample_ms: 200,
            pids_visible: true,
            nvml_init_fails: None,
            cuda_fails: BTreeMap::new(),
            gpus: Vec::new(),
            steps: Vec::new(),
        }
    }
}

impl Default for Gpu {
    fn default() -> Self {
        Self::numbered(0)
    }
}

impl Gpu {
    /// The device or an instance of it has profiling counters.
    #[must_use]
    pub fn has_gpm(&self) -> bool {
        if let Some(recorded) = &self.recorded {
            return recorded.gpm.is_some();
        }
        self.gpm.is_some() || self.mig.iter().flatten().any(|it| it.gpm.is_some())
    }

    /// A device that differs from the others of its node in what must differ.
    #[must_use]
    pub fn numbered(index: u32) -> Self {
        Self {
            recorded: None,
            uuid: format!("GPU-00000000-0000-4000-8000-{index:012x}"),
            name: "NVIDIA H100 80GB HBM3".to_owned(),
            pci_bus_id: format!("00000000:{:02X}:00.0", 0x10 + index),
            compute_capability: "9.0".to_owned(),
            memory_mib: 81_559,
            reserved_mib: 551,
            power_floor_mw: 70_000,
            power_max_mw: 700_000,
            numa_node: Some(0),
            state: State::Ok,
            hang_ms: 0,
            bar1_mib: Some(131_072),
            bar1_used_mib: 1,
            accounting_on: Some(false),
            legacy_samples_are_zero: false,
            engines: Engines {
                encoder: None,
                decoder: Some(0),
                jpeg: Some(0),
                optical_flow: Some(0),
            },
            fabric: None,
            busy_percent: None,
            memory_is_not_known: false,
            energy_mj: None,
            gpm: None,
            mig: None,
            xids: Vec::new(),
            processes: Vec::new(),
            samples: Vec::new(),
            fields: H100_FIELDS.map(|(id, value)| (id.to_string(), value)).into(),
            nvml_fails: BTreeMap::new(),
        }
    }
}

impl Scenario {
    /// A healthy node with this many devices.
    #[must_use]
    pub fn with_gpus(count: u32) -> Self {
        Self { gpus: (0..count).map(Gpu::numbered).collect(), ..Self::default() }
    }

    pub fn read(folder: &Path) -> Result<Self, ScenarioError> {
        let text = std::fs::read_to_string(folder.join(NAME)).map_err(ScenarioError::Read)?;
        let scenario: Self = toml::from_str(&text).map_err(ScenarioError::Parse)?;
        match scenario.gpus.len() {
            count if count > crate::slots::DEVICES => Err(ScenarioError::TooManyDevices(count)),
            _ => timeline::at(&scenario, u64::MAX).map(|_| scenario),
        }
    }

    /// Replaces the file as a whole, so that no library reads half of it.
    pub fn write(&self, folder: &Path) -> std::io::Result<()> {
        let text = toml::to_string(self).map_err(std::io::Error::other)?;
        let next = folder.join("scenario.toml.next");
        std::fs::write(&next, text)?;
        std::fs::rename(next, folder.join(NAME))
    }
}

#[cfg(test)]
mod tests {
    use super::{Gpu, Scenario, State};

    #[test]
    fn a_file_names_only_what_it_is_about() {
        let text = "release_ms = 5\n[[gpus]]\nuuid = \"GPU-a\"\nstate = \"lost\"\n\
                    nvml_fails = { nvmlDeviceGetPowerUsage = 3 }";
        let scenario: Scenario = toml::from_str(text).unwrap();
        assert_eq!(scenario.release_ms, 5);
        assert_eq!(scenario.gpus[0].state, State::Lost);
        assert_eq!(scenario.gpus[0].nvml_fails["nvmlDeviceGetPowerUsage"], 3);
        assert_eq!(scenario.gpus[0].memory_mib, Gpu::default().memory_mib);
    }

    #[test]
    fn what_is_written_is_read() {
        let mut scenario = Scenario::with_gpus(3);
        scenario.gpus[1].hang_ms = 70;
        scenario.nvml_init_fails = Some(9);
        let text = toml::to_string(&scenario).unwrap();
        assert_eq!(toml::from_str::<Scenario>(&text).unwrap(), scenario);
    }

    #[test]
    fn a_wrong_key_is_refused() {
        let error = toml::from_str::<Scenario>("relase_ms = 5").unwrap_err().to_string();
        assert!(error.contains("relase_ms"), "{error}");
    }
}
