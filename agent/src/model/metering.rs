//! What a tile says besides whose its time is: energy, work of the multiprocessors, what was seen, size.

use std::collections::BTreeMap;

use crate::model::usage::{Class, Share};

/// Energy of a device that falls to one instance in a span: all of it where MIG is off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Energy {
    /// Millijoules.
    pub mj: u64,
    /// `None` where an older agent did not cut it: the parts are empty then.
    pub method: Option<EnergyMethod>,
    /// Millijoules by share, which sum to `mj`; a share that is not here has none.
    pub shares: BTreeMap<Share, u64>,
    /// Likewise by class.
    pub classes: BTreeMap<Class, u64>,
}

/// How energy was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EnergyMethod {
    /// The floor by time, to whoever had the device; what is above it by active time.
    FloorDynamic,
    /// All of it by time, as long as no floor is known.
    Time,
    /// To MIG instances by their compute slices, and inside of one by time.
    Slices,
}

/// Time in which multiprocessors had work, averaged over them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SmActivity {
    pub active_ns: u64,
    /// The part of the span for which `active_ns` speaks. 0 = it was not measured.
    pub measured_ns: u64,
}

/// What was seen in the part of a span that is not unobserved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Time in which the driver listed a process.
    pub process_ns: u64,
    /// Time in which the device was in good health at both ends.
    pub healthy_ns: u64,
}

/// Compute slices of a MIG instance, and how many its device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slices {
    pub instance: u32,
    pub device: u32,
}

// === impl Energy ===

impl Energy {
    /// The parts sum to the whole, by share and by class.
    #[must_use]
    pub fn conserves(&self) -> bool {
        let sum = |parts: &mut dyn Iterator<Item = u64>| -> u128 { parts.map(u128::from).sum() };
        let whole = u128::from(self.mj);
        let by_share = sum(&mut self.shares.values().copied());
        let by_class = sum(&mut self.classes.values().copied());
        self.method.is_none() || (by_share == whole && by_class == whole)
    }

    /// Of two spans that were cut alike; `None` where they were not.
    #[must_use]
    pub fn plus(mut self, next: &Self) -> Option<Self> {
        if self.method != next.method {
            return None;
        }
        self.mj = self.mj.saturating_add(next.mj);
        add(&mut self.shares, &next.shares);
        add(&mut self.classes, &next.classes);
        Some(self)
    }
}

fn add<K: Ord + Clone>(sums: &mut BTreeMap<K, u64>, parts: &BTreeMap<K, u64>) {
    for (key, part) in parts {
        let sum = sums.entry(key.clone()).or_default();
        *sum = sum.saturating_add(*part);
    }
}

// === impl EnergyMethod ===

impl EnergyMethod {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FloorDynamic => "floor_dynamic",
            Self::Time => "time",
            Self::Slices => "slices",
        }
    }
}

// === impl SmActivity ===

impl SmActivity {
    #[must_use]
    pub fn plus(self, next: Self) -> Self {
        Self {
            active_ns: self.active_ns.saturating_add(next.active_ns),
            measured_ns: self.measured_ns.saturating_add(next.measured_ns),
        }
    }
}

// === impl Seen ===

impl Seen {
    #[must_use]
    pub fn plus(self, next: Self) -> Self {
        Self {
            process_ns: self.process_ns.saturating_add(next.process_ns),
            healthy_ns: self.healthy_ns.saturating_add(next.healthy_ns),
        }
    }
}
