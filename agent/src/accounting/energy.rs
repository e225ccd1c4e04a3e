//! Whose the energy of one span is. Pure; every part is an integer and they sum to what the device
//! counted.

use std::collections::BTreeMap;

use crate::accounting::WATCHED_NS;
use crate::accounting::floor::Rate;
use crate::accounting::layout::Part;
use crate::accounting::shares::Cut;
use crate::model::ids::DeviceId;
use crate::model::metering::{Energy, EnergyMethod, Slices};
use crate::model::readings::{DeviceReading, Health, NvmlState, Readings};
use crate::model::units::split;
use crate::model::usage::{Class, Share};

/// What a device drew in a span; `None` where its counter was not readable at both ends, or went back
/// because the driver was loaded anew. Over a span that is too long it may have done so unseen.
pub(super) fn between(id: &DeviceId, previous: &Readings, next: &Readings) -> Option<u64> {
    if next.at.since(previous.at) > WATCHED_NS {
        return None;
    }
    counted(id, next)?.checked_sub(counted(id, previous)?)
}

fn counted(id: &DeviceId, readings: &Readings) -> Option<u64> {
    let answers = |it: &&DeviceReading| matches!(it.health, Health::Ok | Health::Degraded);
    let device = Some(readings).filter(|it| it.nvml.state == NvmlState::Ok);
    device?.nvml.devices.get(id).filter(answers)?.counters.energy_mj
}

/// The part of each of a device's parts: all of it for a whole device, by compute slices with MIG,
/// and for none where sizes are not known.
pub(super) fn by_part(device_mj: Option<u64>, parts: &[Part]) -> Vec<Option<u64>> {
    let unknown = || vec![None; parts.len()];
    let Some(device_mj) = device_mj else { return unknown() };
    if let [whole] = parts
        && whole.id.mig.is_none()
    {
        return vec![Some(device_mj)];
    }
    let slices: Option<Vec<u64>> =
        parts.iter().map(|it| it.slices.map(|it| u64::from(it.instance))).collect();
    slices.map_or_else(unknown, |it| split(device_mj, &it).into_iter().map(Some).collect())
}

/// How the energy of an instance is to be cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    pub(super) floor: Option<Rate>,
    pub(super) slices: Option<Slices>,
}

// === impl Policy ===

impl Policy {
    /// `mj` is the instance's own.
    pub(super) fn cut(self, mj: u64, span_ns: u64, class: Class, times: &Cut) -> Energy {
        let (method, floor_mj) = match (self.slices, self.floor) {
            (Some(_), _) => (EnergyMethod::Slices, mj),
            (None, None) => (EnergyMethod::Time, mj),
            (None, Some(floor)) => (EnergyMethod::FloorDynamic, floor.of(span_ns).min(mj)),
        };
        let all = times.all();
        let mut shares = BTreeMap::new();
        if times.active.values().any(|it| *it > 0) {
            spread(&mut shares, floor_mj, &all);
            spread(&mut shares, mj - floor_mj, &times.active);
        } else {
            // Drawn because somebody holds the device, as when a context keeps its clocks up.
            spread(&mut shares, mj, &all);
        }
        shares.retain(|_, it| *it > 0);
        let classes = BTreeMap::from([(class, mj)]).into_iter().filter(|it| it.1 > 0).collect();
        Energy { mj, method: Some(method), shares, classes }
    }
}

fn spread(sums: &mut BTreeMap<Share, u64>, mj: u64, times: &BTreeMap<Share, u64>) {
    let weights: Vec<u64> = times.values().copied().collect();
    for (share, part) in times.keys().zip(split(mj, &weights)) {
        *sums.entry(share.clone()).or_default() += part;
    }
}
