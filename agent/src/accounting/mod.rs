//! From what was seen at two ticks to the time between them, cut into exclusive shares.
//!
//! Every nanosecond of an instance ends in exactly one share, and every millijoule that its device
//! counted in one part of one (`Tile::conserves`). Rules, in short: the device's own busy percentage
//! says how much of a span is active; `shares.rs` says whose, and `energy.rs` whose the energy is, with
//! the floor that `floor.rs` measures; what nobody could watch is `Unobserved` and never free.
//! `layout.rs` knows how large MIG instances are, `tiles.rs` joins slices into tiles, `cuda.rs` turns
//! call counts into activities, with the device that `devices.rs` finds. No I/O, no clock.

pub mod cuda;
mod devices;
mod energy;
mod floor;
mod layout;
pub mod shares;
pub mod tiles;
mod totals;

use std::collections::BTreeMap;

use proto::names::UNCONFIGURED;

use crate::accounting::floor::Floors;
use crate::accounting::layout::{Layouts, Part};
use crate::accounting::shares::Cut;
use crate::classify::Verdict;
use crate::model::figures::Figure;
use crate::model::ids::{DeviceId, InstanceId};
use crate::model::metering::{Seen, SmActivity};
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

/// Cuts time and energy; remembers of devices what a single span does not say.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    floors: Floors,
    layouts: Layouts,
}

// === impl Meter ===

impl Meter {
    /// One tile per instance of `previous`, for `[previous.at, next.at)`, and one for the slices of a
    /// device that no instance has. An instance that only `next` names begins there. A holder that
    /// was present keeps an entry although its share may be 0: the holder set of a slice is who held
    /// it, not who was busy.
    #[must_use]
    pub fn slice(&self, previous: &Observation, next: &Observation) -> Vec<Tile> {
        let (before, after) = (&previous.readings, &next.readings);
        if before.at >= after.at {
            return Vec::new();
        }
        let mut tiles = Vec::new();
        for (id, device) in &before.nvml.devices {
            let parts = self.layouts.parts(id, device);
            let energies = energy::by_part(energy::between(id, before, after), &parts);
            for (part, mj) in parts.iter().zip(energies) {
                let account = Account::of(part, previous, next);
                let policy = energy::Policy { floor: self.floors.of(id), slices: part.slices };
                tiles.push(account.tile(part, (before.at, after.at), mj.map(|it| (it, policy))));
            }
        }
        tiles
    }

    /// To be called after `slice`: a reading is evidence for what follows it.
    pub fn learn(&mut self, previous: Option<&Readings>, next: &Readings) {
        self.layouts.learn(next);
        if let Some(previous) = previous {
            self.floors.learn(previous, next);
        }
    }

    /// Time before the newest reading, from `start` on, that nobody watched: for every instance that
    /// the reading has and `start_of` knows.
    #[must_use]
    pub fn gaps(
        &self,
        next: &Readings,
        mut start_of: impl FnMut(&InstanceId) -> Option<BootNs>,
    ) -> Vec<Tile> {
        let devices = &next.nvml.devices;
        let parts = devices.iter().flat_map(|(id, device)| self.layouts.parts(id, device));
        let gap = |part: Part| {
            let start = start_of(&part.id)?;
            Some(unobserved(&part, start, next.at, Reason::AgentDown))
        };
        parts.filter_map(gap).collect()
    }
}

fn unobserved(part: &Part, start: BootNs, end: BootNs, reason: Reason) -> Tile {
    Account::unobserved(end.since(start), reason).tile(part, (start, end), None)
}

/// What is known of a part of a device between two ticks.
#[derive(Clone, Debug)]
struct Account {
    times: Cut,
    class: Class,
    memory: Option<MemoryIntegral>,
    sm: SmActivity,
    seen: Seen,
}

// === impl Account ===

impl Account {
    fn of(part: &Part, previous: &Observation, next: &Observation) -> Self {
        let (before, after) = (&previous.readings, &next.readings);
        let account = if part.id.mig.as_deref() == Some(UNCONFIGURED) {
            Self::unconfigured(&part.id.device, before, after)
        } else {
            Span::watched(&part.id, before, after).map(|span| {
                let verdict = previous.verdicts.get(&part.id);
                span.account(verdict.map_or(Class::Unknown, |it| it.class))
            })
        };
        account.unwrap_or_else(|reason| Self::unobserved(after.at.since(before.at), reason))
    }

    fn unobserved(span_ns: u64, reason: Reason) -> Self {
        let class = match reason {
            Reason::GpuLost | Reason::GpuHung | Reason::ResetRequired => Class::Down,
            _ => Class::Unknown,
        };
        Self::idle(span_ns, Share::Unobserved(reason), class)
    }

    fn unconfigured(id: &DeviceId, before: &Readings, after: &Readings) -> Result<Self, Reason> {
        let ends = [answering(before, id)?, answering(after, id)?];
        let span_ns = watched(before, after)?;
        let account = Self::idle(span_ns, Share::Unconfigured, Class::Free);
        Ok(Self { seen: Seen { process_ns: 0, healthy_ns: healthy(ends, span_ns) }, ..account })
    }

    fn idle(span_ns: u64, share: Share, class: Class) -> Self {
        Self {
            times: Cut { active: BTreeMap::new(), held: BTreeMap::from([(share, span_ns)]) },
            class,
            memory: None,
            sm: SmActivity::default(),
            seen: Seen::default(),
        }
    }

    fn tile(
        self,
        part: &Part,
        (start, end): (BootNs, BootNs),
        energy: Option<(u64, energy::Policy)>,
    ) -> Tile {
        let span_ns = end.since(start);
        let energy = energy.map(|(mj, policy)| policy.cut(mj, span_ns, self.class, &self.times));
        Tile {
            id: part.id.clone(),
            start,
            end,
            shares: self.times.all(),
            classes: BTreeMap::from([(self.class, span_ns)]),
            energy,
            memory: self.memory,
            sm: self.sm,
            seen: Some(self.seen),
            slices: part.slices,
        }
    }
}

/// The device, where it answers at this tick.
fn answering<'a>(readings: &'a Readings, id: &DeviceId) -> Result<&'a DeviceReading, Reason> {
    match readings.nvml.state {
        NvmlState::Ok => {}
        NvmlState::Released(_) => return Err(Reason::Released),
        NvmlState::Absent(_) | NvmlState::Failed(_) | NvmlState::Replaced(_) => {
            return Err(Reason::NvmlFailed);
        }
    }
    let device = readings.nvml.devices.get(id).ok_or(Reason::GpuLost)?;
    match device.health {
        Health::Ok | Health::Degraded => Ok(device),
        Health::Hung => Err(Reason::GpuHung),
        Health::Lost => Err(Reason::GpuLost),
        Health::ResetRequired => Err(Reason::ResetRequired),
        Health::Released => Err(Reason::Released),
    }
}

/// The span between two readings, where it is not too long to know anything of it.
fn watched(before: &Readings, after: &Readings) -> Result<u64, Reason> {
    let span_ns = after.at.since(before.at);
    if span_ns > WATCHED_NS { Err(Reason::AgentDown) } else { Ok(span_ns) }
}

fn healthy(ends: [&DeviceReading; 2], span_ns: u64) -> u64 {
    if ends.iter().all(|it| it.health == Health::Ok) { span_ns } else { 0 }
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
        let device = answering(readings, &id.device)?;
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
        watched(previous, next).map(|_span_ns| span)
    }

    fn length(&self) -> u64 {
        self.next.readings.at.since(self.previous.readings.at)
    }

    fn account(&self, class: Class) -> Account {
        Account {
            times: shares::of(self),
            class,
            memory: self.memory(),
            sm: self.sm(),
            seen: self.seen(),
        }
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

    /// The figure at the end speaks for the time before it.
    fn sm(&self) -> SmActivity {
        let Some(millionths) = self.next.instance.figures.get(Figure::SmActive) else {
            return SmActivity::default();
        };
        let active = u128::from(self.length()) * u128::from(millionths.min(1_000_000)) / 1_000_000;
        let active_ns = u64::try_from(active).expect("a part is not larger than the whole");
        SmActivity { active_ns, measured_ns: self.length() }
    }

    fn seen(&self) -> Seen {
        let ends = [self.previous.device, self.next.device];
        Seen {
            process_ns: if self.previous.processes.is_empty() { 0 } else { self.length() },
            healthy_ns: healthy(ends, self.length()),
        }
    }
}

#[cfg(test)]
mod tests;
