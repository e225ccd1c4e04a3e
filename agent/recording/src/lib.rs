//! The file of a recording: what NVML answered on a node over time. Values only; nothing here reads
//! or writes a file.
//!
//! It is TOML: each device with all that it said first, then steps that name what changed and when.
//! `change.rs` makes and takes steps; who replays them answers as the driver did.

pub mod change;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What the node was; the first table of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct About {
    /// Of the program that wrote it.
    pub version: String,
    pub tick_ms: u64,
    /// Devices have their own UUIDs and places, and processes their own PIDs.
    pub with_identities: bool,
    /// The recorder saw the PIDs of the host; where it did not, there are no process lists.
    pub sees_processes: bool,
}

/// A device as it is when it is seen first. Its index is its place in the file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    pub uuid: String,
    /// It answers only after this time: far longer than anybody waits, or 0.
    pub hang_ms: u64,
    /// Errors that the driver reported since the recording began, oldest first.
    pub xids: Vec<u64>,
    pub recorded: Recorded,
}

/// What a device answers. A value that is absent and not refused was not asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recorded {
    /// Codes of `nvml.h` by question; 0 = it is answered again. A single field of
    /// `nvmlDeviceGetFieldValues` is `field-NUMBER`.
    pub refused: BTreeMap<String, u32>,
    pub identity: Identity,
    pub mig_on: Option<bool>,
    /// Percent: of the device and of its memory.
    pub utilization: Option<(u32, u32)>,
    pub memory: Option<Memory>,
    pub power_mw: Option<u32>,
    pub energy_mj: Option<Word>,
    pub temperature_celsius: Option<u32>,
    pub sm_clock_mhz: Option<u32>,
    pub memory_clock_mhz: Option<u32>,
    pub video_clock_mhz: Option<u32>,
    /// PID and bytes of each process.
    pub compute: Option<Vec<(u32, Word)>>,
    pub graphics: Option<Vec<(u32, Word)>>,
    pub mps: Option<Vec<(u32, Word)>>,
    pub mig: Option<Vec<Instance>>,
    /// Values by metric number, by GPU instance; `whole` is a device without MIG.
    pub gpm: Option<BTreeMap<String, BTreeMap<String, f64>>>,
    /// By the number that this driver has for the field.
    pub fields: BTreeMap<String, Word>,
    /// Percent.
    pub encoder: Option<u32>,
    pub decoder: Option<u32>,
    pub jpeg: Option<u32>,
    pub optical_flow: Option<u32>,
    /// Bytes: all, and used.
    pub bar1: Option<(Word, Word)>,
    pub fabric: Option<Fabric>,
    pub accounting_on: Option<bool>,
}

/// What a device is; absent where the driver did not say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Identity {
    pub name: Option<String>,
    pub index: Option<u32>,
    pub pci_bus_id: Option<String>,
    /// `9.0`.
    pub compute_capability: Option<String>,
    pub numa_node: Option<u32>,
    pub power_limit_mw: Option<u64>,
}

/// Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    pub total: Word,
    pub used: Word,
    pub free: Word,
    /// Absent where the driver has only the first version of the call.
    pub reserved: Option<Word>,
}

/// A MIG instance of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Instance {
    pub uuid: String,
    /// `1g.10gb`.
    pub profile: Option<String>,
    pub gpu_instance: Option<u32>,
    pub compute_instance: Option<u32>,
    pub memory: Option<Memory>,
    pub processes: Option<Vec<(u32, Word)>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fabric {
    pub state: u32,
    /// It ended, and not well.
    pub failed: bool,
    pub degraded: Option<bool>,
}

/// What changed at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Step {
    /// Since the recording began.
    pub at_ms: u64,
    /// The code with which the library refused to open; 0 = it opens again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvml_init_fails: Option<u32>,
    /// By index of the device: the keys that have another value than before.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub gpus: BTreeMap<String, toml::Table>,
    /// By index of the device: use by processes that the driver told of for the first time.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub samples: BTreeMap<String, Vec<Sample>>,
}

/// PID, microseconds since the recording began (before it: negative), percent.
pub type Sample = (u32, i64, u32);

/// 64 bits without a sign. TOML has no such number: one that is too large is written as the negative
/// number of the same bits, so that "not known" is -1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "i64", into = "i64")]
pub struct Word(pub u64);

/// GPM's key of a device without MIG.
pub const WHOLE: &str = "whole";

impl From<i64> for Word {
    fn from(bits: i64) -> Self {
        Self(bits.cast_unsigned())
    }
}

impl From<Word> for i64 {
    fn from(word: Word) -> Self {
        word.0.cast_signed()
    }
}

impl Step {
    /// It says nothing but when it is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nvml_init_fails.is_none() && self.gpus.is_empty() && self.samples.is_empty()
    }
}

/// The name of a single field among the questions.
#[must_use]
pub fn field(number: u32) -> String {
    format!("field-{number}")
}

#[cfg(test)]
mod tests {
    use super::{Device, Memory, Recorded, Word};

    #[test]
    fn numbers_of_64_bits_keep_their_bits() {
        let word = |it: u64| Word(it);
        let memory = Memory {
            total: word(u64::MAX),
            used: word(0),
            free: word(1 << 63),
            reserved: Some(word((1 << 63) - 1)),
        };
        let recorded = Recorded { memory: Some(memory), ..Recorded::default() };
        let device = Device { recorded, ..Device::default() };
        let text = toml::to_string(&device).unwrap();
        assert!(text.contains("total = -1"), "{text}");
        assert_eq!(toml::from_str::<Device>(&text).unwrap(), device);
    }
}
