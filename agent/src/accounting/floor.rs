//! What a device draws when it does nothing, measured on itself. Pure.
//!
//! The floor is the lowest energy rate over a stretch of time in which no kernel ran. A stretch is long
//! enough that the coarse steps of the driver's counter do not matter. What a device still draws
//! when it was just used, or while a context keeps its clocks up, is above the floor and is somebody's.

use std::collections::BTreeMap;

use crate::accounting::energy;
use crate::model::ids::DeviceId;
use crate::model::readings::{DeviceReading, InstanceReading, Readings};
use crate::model::units::BootNs;

/// The counter moves in steps of up to a tenth of a second: one percent of this.
const STRETCH_NS: u64 = 10_000_000_000;

/// Floors of this boot, as far as they were seen since the agent started.
#[derive(Clone, Debug, Default)]
pub(super) struct Floors {
    devices: BTreeMap<DeviceId, Watch>,
}

#[derive(Clone, Debug, Default)]
struct Watch {
    floor: Option<Rate>,
    stretch: Option<Stretch>,
}

/// Since when no kernel has run, and the device's counter then.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    since: BootNs,
    energy_mj: u64,
}

/// Energy per time, exactly as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rate {
    mj: u64,
    ns: u64,
}

// === impl Floors ===

impl Floors {
    /// Takes in what two readings say. A device that left is forgotten.
    pub(super) fn learn(&mut self, previous: &Readings, next: &Readings) {
        self.devices.retain(|id, _| next.nvml.devices.contains_key(id));
        for id in next.nvml.devices.keys() {
            self.devices.entry(id.clone()).or_default().learn(id, previous, next);
        }
    }

    /// `None` until the device did nothing for long enough.
    pub(super) fn of(&self, id: &DeviceId) -> Option<Rate> {
        self.devices.get(id)?.floor
    }
}

// === impl Watch ===

impl Watch {
    fn learn(&mut self, id: &DeviceId, previous: &Readings, next: &Readings) {
        let Some(reading) = idle_end(id, previous, next) else {
            self.stretch = None;
            return;
        };
        let stretch =
            *self.stretch.get_or_insert(Stretch { since: previous.at, energy_mj: reading.before });
        let ns = next.at.since(stretch.since);
        if ns < STRETCH_NS {
            return;
        }
        self.stretch = None;
        // A device that drew nothing for seconds has a counter that stands still.
        let rate = reading.after.checked_sub(stretch.energy_mj).filter(|it| *it > 0);
        if let Some(rate) = rate.map(|mj| Rate { mj, ns }) {
            self.floor = Some(self.floor.map_or(rate, |it| it.least(rate)));
        }
    }
}

/// The device's counter at both ends of a span in which no kernel ran.
struct Idle {
    before: u64,
    after: u64,
}

fn idle_end(id: &DeviceId, previous: &Readings, next: &Readings) -> Option<Idle> {
    energy::between(id, previous, next)?;
    let [previous, next] = [previous, next].map(|it| it.nvml.devices.get(id));
    let (previous, next) = (previous?, next?);
    let (before, after) = (previous.counters.energy_mj?, next.counters.energy_mj?);
    (is_idle(previous) && is_idle(next)).then_some(Idle { before, after })
}

/// Known to have run no kernel: what is not measurable is no evidence.
fn is_idle(device: &DeviceReading) -> bool {
    let sampled = |it: &InstanceReading| {
        it.processes.iter().flatten().any(|it| it.sm_weight.is_some_and(|weight| weight > 0))
    };
    device.instances.iter().all(|it| it.busy.is_some_and(|it| it.get() == 0) && !sampled(it))
}

// === impl Rate ===

impl Rate {
    /// Over a span, rounded down.
    pub(super) fn of(self, span_ns: u64) -> u64 {
        let mj = u128::from(self.mj) * u128::from(span_ns) / u128::from(self.ns);
        u64::try_from(mj).unwrap_or(u64::MAX)
    }

    fn least(self, other: Self) -> Self {
        let product = |a: u64, b: u64| u128::from(a) * u128::from(b);
        if product(other.mj, self.ns) < product(self.mj, other.ns) { other } else { self }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop, prop_assert, proptest};

    use super::{Floors, STRETCH_NS};
    use crate::attribution::fixtures;
    use crate::model::readings::{Health, NvmlState, Readings};

    const SECOND: u64 = 1_000_000_000;

    type Change = fn(&mut Readings);

    /// Watts of one second, and what else happens in it.
    type Second = (u64, Change);

    fn floor_mw(parts: &[Vec<Second>]) -> Option<u64> {
        let mut floors = Floors::default();
        let mut energy = 1_000;
        let mut previous = with_energy(0, energy);
        for (at, (watts, change)) in (1..).zip(parts.iter().flatten()) {
            energy += watts * 1_000;
            let mut next = with_energy(at, energy);
            change(&mut next);
            floors.learn(&previous, &next);
            previous = next;
        }
        floors.of(&fixtures::device(0)).map(|it| it.of(SECOND))
    }

    fn idle(watts: u64, seconds: usize) -> Vec<Second> {
        vec![(watts, |_| {}); seconds]
    }

    fn works(watts: u64, seconds: usize) -> Vec<Second> {
        vec![(watts, |it| fixtures::busy(it, 0, 1)); seconds]
    }

    fn with_energy(at: u64, energy_mj: u64) -> Readings {
        let mut readings = fixtures::readings(at * SECOND, 1);
        set_energy(&mut readings, Some(energy_mj));
        readings
    }

    fn set_energy(readings: &mut Readings, energy_mj: Option<u64>) {
        let device = readings.nvml.devices.get_mut(&fixtures::device(0)).unwrap();
        device.counters.energy_mj = energy_mj;
    }

    #[test]
    fn the_floor_is_the_lowest_rate_of_a_stretch_without_kernels() {
        assert_eq!(floor_mw(&[idle(70, 9)]), None);
        assert_eq!(floor_mw(&[idle(70, 10)]), Some(70_000));
        // Still warm, then at rest, then with a context that keeps the clocks up.
        assert_eq!(floor_mw(&[idle(110, 10), idle(68, 10), idle(75, 10)]), Some(68_000));
        assert_eq!(floor_mw(&[works(700, 30)]), None);
        assert_eq!(floor_mw(&[idle(70, 6), works(70, 6), idle(70, 6)]), None);
    }

    #[test]
    fn what_is_not_known_is_no_evidence() {
        let changes: [Change; 6] = [
            |it| fixtures::instance(it, 0).busy = None,
            |it| it.nvml.devices.get_mut(&fixtures::device(0)).unwrap().health = Health::Hung,
            |it| {
                fixtures::hold(it, 0, 10, None);
                fixtures::sm(it, 0, 10, 5);
            },
            |it| it.nvml.devices.clear(),
            |it| it.nvml.state = NvmlState::Failed("driver gone".to_owned()),
            |it| set_energy(it, None),
        ];
        for change in changes {
            assert_eq!(floor_mw(&[idle(70, 7), vec![(70, change); 7], idle(70, 7)]), None);
        }
        // The driver was loaded anew in the eighth second.
        let reloaded: Change = |it| set_energy(it, Some((it.at.0 / SECOND - 7) * 70_000));
        assert_eq!(floor_mw(&[idle(70, 7), vec![(70, reloaded); 10]]), None);
        assert_eq!(floor_mw(&[idle(70, 7), vec![(70, reloaded); 11]]), Some(70_000));
    }

    #[test]
    fn a_counter_that_stands_still_is_no_floor() {
        assert_eq!(floor_mw(&[idle(0, 30)]), None);
        assert_eq!(floor_mw(&[idle(70, 10), idle(0, 10)]), Some(70_000));
    }

    proptest! {
        /// However the steps of the counter fall.
        #[test]
        fn the_floor_is_at_most_a_step_off(
            milliwatts in 5_000_u64..500_000,
            step_ms in 1_u64..=100,
            ticks in prop::collection::vec(50_u64..2_000, 20..60),
        ) {
            let mut floors = Floors::default();
            let mut at_ms = 0;
            let reading = |at_ms: u64| {
                let mut readings = fixtures::readings(at_ms * 1_000_000, 1);
                let counted = at_ms / step_ms * step_ms * milliwatts / 1_000;
                set_energy(&mut readings, Some(counted));
                readings
            };
            let mut previous = reading(0);
            for tick in ticks {
                at_ms += tick;
                let next = reading(at_ms);
                floors.learn(&previous, &next);
                previous = next;
            }
            let floor = floors.of(&fixtures::device(0)).map(|it| it.of(SECOND));
            let step = milliwatts * step_ms * 1_000_000 / STRETCH_NS + 2;
            let near = milliwatts - step..=milliwatts + step;
            prop_assert!(floor.is_none_or(|it| near.contains(&it)), "{floor:?} {milliwatts}");
        }
    }
}
