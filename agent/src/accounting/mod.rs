//! From what was seen at two ticks to the time between them, cut into exclusive shares.
//!
//! Every nanosecond of an instance ends in exactly one share (`Tile::conserves`). Rules, in short:
//! the device's own busy percentage says how much of a span is active; `shares.rs` says whose; what
//! nobody could watch is `Unobserved` and never free. `tiles.rs` joins slices into tiles, `cuda.rs`
//! turns call counts into activities, with the device that `devices.rs` finds. No I/O, no clock.

pub mod cuda;
mod devices;
pub mod shares;
pub mod tiles;
mod totals;

use std::collections::BTreeMap;

use crate::classify::Verdict;
use crate::model::ids::InstanceId;
use crate::model::readings::{
    DeviceReading, Health, InstanceReading, NvmlState, ProcessReading, Readings,
};
use crate::model::units::BootNs;
use crate::model::usage::{Class, InstanceView, MemoryIntegral, Reason, Share, Tile};

/// The longest time between two readings that still counts as watched. Beyond it the host slept or
/// the agent was stopped, and one sample says nothing about the span. Three of the longest ticks.
const WATCHED_NS: u64 = 15_000_000_000;

/// One tick, and what the pure half made of it.
#[derive(Clone, Debug)]
pub struct Observation {
    pub readings: Readings,
    pub views: BTreeMap<InstanceId, InstanceView>,
    pub verdicts: BTreeMap<InstanceId, Verdict>,
}

/// One tile per instance of `previous`, for `[previous.at, next.at)`. An instance that only `next`
/// names begins there. A holder that was present keeps an entry although its share may be 0: the
/// holder set of a slice is who held it, not who was busy.
#[must_use]
pub fn slice(previous: &Observation, next: &Observation) -> Vec<Tile> {
    let (start, end) = (previous.readings.at, next.readings.at);
    if start >= end {
        return Vec::new();
    }
    previous
        .readings
        .nvml
        .devices
        .values()
        .flat_map(|device| &device.instances)
        .map(|instance| match Span::watched(&instance.id, &previous.readings, &next.readings) {
            Ok(span) => span.tile(class_of(previous, &instance.id)),
            Err(reason) => unobserved(&instance.id, start, end, reason),
        })
        .collect()
}

/// Time that nobody watched.
#[must_use]
pub fn unobserved(id: &InstanceId, start: BootNs, end: BootNs, reason: Reason) -> Tile {
    let class = match reason {
        Reason::GpuLost | Reason::GpuHung | Reason::ResetRequired => Class::Down,
        _ => Class::Unknown,
    };
    let span = end.since(start);
    Tile {
        id: id.clone(),
        start,
        end,
        shares: BTreeMap::from([(Share::Unobserved(reason), span)]),
        classes: BTreeMap::from([(class, span)]),
        energy_mj: None,
        memory: None,
    }
}

fn class_of(observation: &Observation, id: &InstanceId) -> Class {
    observation.verdicts.get(id).map_or(Class::Unknown, |it| it.class)
}

/// What an instance said at one tick.
#[derive(Clone, Copy, Debug)]
struct End<'a> {
    readings: &'a Readings,
    device: &'a DeviceReading,
    instance: &'a InstanceReading,
    processes: &'a [ProcessReading],
}

/// An instance between two ticks that could both be read.
#[derive(Clone, Copy, Debug)]
struct Span<'a> {
    previous: End<'a>,
    next: End<'a>,
}

// === impl End ===

impl<'a> End<'a> {
    fn find(readings: &'a Readings, id: &InstanceId) -> Result<Self, Reason> {
        if readings.nvml.state != NvmlState::Ok {
            return Err(Reason::NvmlFailed);
        }
        let device = readings.nvml.devices.get(&id.device).ok_or(Reason::GpuLost)?;
        match device.health {
            Health::Ok | Health::Degraded => {}
            Health::Hung => return Err(Reason::GpuHung),
            Health::Lost => return Err(Reason::GpuLost),
            Health::ResetRequired => return Err(Reason::ResetRequired),
        }
        let instance = device.instances.iter().find(|it| it.id == *id).ok_or(Reason::GpuLost)?;
        let processes = instance.processes.as_deref().ok_or(Reason::NoProcessList)?;
        Ok(Self { readings, device, instance, processes })
    }
}

// === impl Span ===

impl<'a> Span<'a> {
    fn watched(
        id: &InstanceId,
        previous: &'a Readings,
        next: &'a Readings,
    ) -> Result<Self, Reason> {
        let span = Self { previous: End::find(previous, id)?, next: End::find(next, id)? };
        if span.length() > WATCHED_NS { Err(Reason::AgentDown) } else { Ok(span) }
    }

    fn length(&self) -> u64 {
        self.next.readings.at.since(self.previous.readings.at)
    }

    fn tile(&self, class: Class) -> Tile {
        Tile {
            id: self.previous.instance.id.clone(),
            start: self.previous.readings.at,
            end: self.next.readings.at,
            shares: shares::of(self),
            classes: BTreeMap::from([(class, self.length())]),
            energy_mj: self.energy_mj(),
            memory: self.memory(),
        }
    }

    /// `None` on MIG, where the device's energy belongs to no single instance, and when the counter
    /// went back because the driver was loaded anew.
    fn energy_mj(&self) -> Option<u64> {
        if self.previous.instance.id.mig.is_some() {
            return None;
        }
        let energy = |it: &End<'_>| it.device.counters.energy_mj;
        energy(&self.next)?.checked_sub(energy(&self.previous)?)
    }

    /// The left rule, as for holders and class: what was used at the start counts until the end.
    fn memory(&self) -> Option<MemoryIntegral> {
        let used = self.previous.instance.memory_used_bytes?;
        let at_end = self.next.instance.memory_used_bytes.unwrap_or(used);
        Some(MemoryIntegral {
            byte_ns: u128::from(used) * u128::from(self.length()),
            peak_bytes: used.max(at_end),
        })
    }
}

#[cfg(test)]
mod tests;
