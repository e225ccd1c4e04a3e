//! What a tile says besides whose its time is: energy, work of the multiprocessors, what was seen, size.

use crate::model::record::CLASSES;

/// 1 for a whole device, in the unit in which GPU time is weighed: every number of slices that MIG cuts a
/// device into divides it.
pub const WHOLE: u64 = 840;

/// Energy that the device counted in a tile's span, as far as it falls to the tile's instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Energy {
    /// Millijoules.
    pub mj: u64,
    /// `None` = the agent did not cut it.
    pub split: Option<EnergySplit>,
}

/// Parts of a tile's energy, which sum to it: by share, and again by class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnergySplit {
    pub method: EnergyMethod,
    /// In the order of the tile's shares.
    pub shares: Vec<u64>,
    /// In the order of `CLASSES`.
    pub classes: [u64; CLASSES.len()],
}

/// How energy was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EnergyMethod {
    FloorDynamic,
    Time,
    Slices,
}

/// Time in which multiprocessors had work, averaged over them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SmActivity {
    pub active_ns: u64,
    /// The part of the span for which `active_ns` speaks.
    pub measured_ns: u64,
}

/// What was seen in the part of a tile that is not unobserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub process_ns: u64,
    pub healthy_ns: u64,
}

/// Compute slices of a MIG instance, and of its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slices {
    pub instance: u32,
    pub device: u32,
}

// === impl EnergyMethod ===

impl EnergyMethod {
    /// In the order in which sums over methods are kept.
    pub const ALL: [Self; 3] = [Self::FloorDynamic, Self::Time, Self::Slices];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FloorDynamic => "floor_dynamic",
            Self::Time => "time",
            Self::Slices => "slices",
        }
    }

    /// In `ALL`.
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }
}

// === impl Slices ===

impl Slices {
    /// The part of a whole device, in its unit; `None` where it is not a whole number of them.
    #[must_use]
    pub fn weight(self) -> Option<u64> {
        let device = u64::from(self.device);
        let divides = device > 0 && WHOLE.is_multiple_of(device) && self.instance <= self.device;
        divides.then(|| WHOLE / device * u64::from(self.instance))
    }
}

#[cfg(test)]
mod tests {
    use super::{EnergyMethod, Slices, WHOLE};

    #[test]
    fn slices_weigh_a_part_of_the_device() {
        let weight = |instance, device| Slices { instance, device }.weight();
        assert_eq!(weight(1, 7), Some(120));
        assert_eq!(weight(3, 7), Some(360));
        assert_eq!(weight(1, 4), Some(210));
        assert_eq!((1..=8).map(|it| weight(it, it)).collect::<Vec<_>>(), [Some(WHOLE); 8]);
        for unknown in [(1, 0), (8, 7), (1, 9)] {
            assert_eq!(weight(unknown.0, unknown.1), None);
        }
    }

    #[test]
    fn methods_are_kept_in_their_order() {
        for (index, method) in EnergyMethod::ALL.into_iter().enumerate() {
            assert_eq!(method.index(), index);
        }
    }
}
