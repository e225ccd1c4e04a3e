//! What the amounts of an account mean, in the order in which they are stored. Pure.
//!
//! A list that is shorter than it could be was written by an earlier version, or ends with zeros: what is
//! missing is zero. Everything that may be unknown has the time for which it is known beside it. Amounts of
//! corrections may be negative, in two's complement, so sums wrap: only what they are added to is shown.

use crate::model::metering::{EnergyMethod, WHOLE};
use crate::model::record::CLASSES;

/// Of `Account::Tenant` and `Account::Unowned`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShareAmounts {
    pub ns: u128,
    pub energy: EnergyAmounts,
    pub weighed: Weighed,
}

/// Energy of a share of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EnergyAmounts {
    /// Time in which it is known.
    pub known_ns: u128,
    /// Millijoules, in the order of `EnergyMethod::ALL`.
    pub mj: [u128; EnergyMethod::ALL.len()],
}

/// Time weighed by the size of its instance: nanoseconds times the part of a device, in units of which
/// `WHOLE` make a device. Stored for MIG instances only; a whole device needs none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weighed {
    pub parts: u128,
    /// Time in which the size is known.
    pub known_ns: u128,
}

/// Of `Account::Instance`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InstanceAmounts {
    /// In the order of `CLASSES`.
    pub class_ns: [u128; CLASSES.len()],
    pub energy_mj: u128,
    /// Time in which the energy was known.
    pub energy_ns: u128,
    pub memory_byte_seconds: u128,
    /// Time in which the memory was known.
    pub memory_ns: u128,
    /// In the order of `CLASSES`; of the energy that agents cut.
    pub class_mj: [u128; CLASSES.len()],
    /// Time in which it was cut.
    pub class_energy_ns: u128,
    pub sm_active_ns: u128,
    /// Time in which it was measured.
    pub sm_measured_ns: u128,
    pub process_ns: u128,
    pub healthy_ns: u128,
    /// Time of which agents say whether a process was there, and whether the device was healthy.
    pub seen_ns: u128,
    pub weighed: Weighed,
}

// === impl ShareAmounts ===

impl ShareAmounts {
    #[must_use]
    pub fn to_vec(&self) -> Vec<u128> {
        let energy = [self.energy.known_ns].into_iter().chain(self.energy.mj);
        let weighed = [self.weighed.parts, self.weighed.known_ns];
        trimmed([self.ns].into_iter().chain(energy).chain(weighed).collect())
    }

    #[must_use]
    pub fn from_slice(amounts: &[u128]) -> Self {
        let mut rest = Reader(amounts);
        Self {
            ns: rest.one(),
            energy: EnergyAmounts { known_ns: rest.one(), mj: rest.several() },
            weighed: Weighed { parts: rest.one(), known_ns: rest.one() },
        }
    }

    #[must_use]
    pub fn plus(self, other: &Self) -> Self {
        Self {
            ns: self.ns.wrapping_add(other.ns),
            energy: self.energy.plus(&other.energy),
            weighed: self.weighed.plus(other.weighed),
        }
    }

    /// Of a place that is a whole device.
    #[must_use]
    pub fn of_whole(self) -> Self {
        Self { weighed: Weighed::whole(self.ns), ..self }
    }
}

// === impl EnergyAmounts ===

impl EnergyAmounts {
    #[must_use]
    pub fn plus(mut self, other: &Self) -> Self {
        self.known_ns = self.known_ns.wrapping_add(other.known_ns);
        for (sum, mj) in self.mj.iter_mut().zip(other.mj) {
            *sum = sum.wrapping_add(mj);
        }
        self
    }

    /// `None` = never known.
    #[must_use]
    pub fn total(&self) -> Option<u128> {
        let sum = self.mj.iter().fold(0_u128, |sum, it| sum.saturating_add(*it));
        (self.known_ns > 0).then_some(sum)
    }
}

// === impl Weighed ===

impl Weighed {
    /// `weight` is a part of `WHOLE`; `None` = the size is not known.
    #[must_use]
    pub fn of(ns: u128, weight: Option<u64>) -> Self {
        weight.map_or_else(Self::default, |it| Self {
            parts: ns.saturating_mul(u128::from(it)),
            known_ns: ns,
        })
    }

    #[must_use]
    pub fn whole(ns: u128) -> Self {
        Self::of(ns, Some(WHOLE))
    }

    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            parts: self.parts.wrapping_add(other.parts),
            known_ns: self.known_ns.wrapping_add(other.known_ns),
        }
    }

    /// Of `ns` in all; `None` where the size of a part is not known, since the others would read as the
    /// whole.
    #[must_use]
    pub fn complete(self, ns: u128) -> Option<u128> {
        (self.known_ns == ns).then_some(self.parts)
    }
}

// === impl InstanceAmounts ===

impl InstanceAmounts {
    #[must_use]
    pub fn to_vec(&self) -> Vec<u128> {
        let first = [self.energy_mj, self.energy_ns, self.memory_byte_seconds, self.memory_ns];
        let rest = [
            self.class_energy_ns,
            self.sm_active_ns,
            self.sm_measured_ns,
            self.process_ns,
            self.healthy_ns,
            self.seen_ns,
            self.weighed.parts,
            self.weighed.known_ns,
        ];
        let amounts = self.class_ns.iter().chain(&first).chain(&self.class_mj).chain(&rest);
        trimmed(amounts.copied().collect())
    }

    #[must_use]
    pub fn from_slice(amounts: &[u128]) -> Self {
        let mut rest = Reader(amounts);
        Self {
            class_ns: rest.several(),
            energy_mj: rest.one(),
            energy_ns: rest.one(),
            memory_byte_seconds: rest.one(),
            memory_ns: rest.one(),
            class_mj: rest.several(),
            class_energy_ns: rest.one(),
            sm_active_ns: rest.one(),
            sm_measured_ns: rest.one(),
            process_ns: rest.one(),
            healthy_ns: rest.one(),
            seen_ns: rest.one(),
            weighed: Weighed { parts: rest.one(), known_ns: rest.one() },
        }
    }

    /// The classes sum to the wall time.
    #[must_use]
    pub fn wall_ns(&self) -> u128 {
        self.class_ns.iter().sum()
    }
}

/// Stored amounts, from the first on.
struct Reader<'a>(&'a [u128]);

impl Reader<'_> {
    fn one(&mut self) -> u128 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn several<const N: usize>(&mut self) -> [u128; N] {
        std::array::from_fn(|_| self.one())
    }
}

/// Without the zeros at the end, of which most rows have some.
fn trimmed(mut amounts: Vec<u128>) -> Vec<u128> {
    let used = amounts.iter().rposition(|it| *it > 0).map_or(0, |it| it + 1);
    amounts.truncate(used);
    amounts
}

#[cfg(test)]
mod tests {
    use super::{EnergyAmounts, InstanceAmounts, ShareAmounts, Weighed};
    use proptest::prelude::{any, prop, proptest};

    proptest! {
        #[test]
        fn amounts_come_back(amounts in prop::collection::vec(any::<u128>(), 0..40)) {
            let share = ShareAmounts::from_slice(&amounts);
            assert_eq!(ShareAmounts::from_slice(&share.to_vec()), share);
            let instance = InstanceAmounts::from_slice(&amounts);
            assert_eq!(InstanceAmounts::from_slice(&instance.to_vec()), instance);
        }
    }

    #[test]
    fn what_an_earlier_version_wrote_keeps_its_meaning() {
        let share = ShareAmounts::from_slice(&[7]);
        assert_eq!(share, ShareAmounts { ns: 7, ..ShareAmounts::default() });
        assert_eq!((share.energy.total(), share.weighed.complete(7)), (None, None));
        assert_eq!(share.of_whole().weighed.complete(7), Some(7 * 840));
        let rows: Vec<u128> = (1..=13).collect();
        let instance = InstanceAmounts::from_slice(&rows);
        assert_eq!((instance.wall_ns(), instance.energy_mj, instance.memory_ns), (45, 10, 13));
        assert_eq!(instance.seen_ns, 0);
    }

    #[test]
    fn a_part_of_unknown_size_makes_no_whole() {
        let known = Weighed::of(10, Some(120));
        assert_eq!(known.complete(10), Some(1_200));
        assert_eq!(known.plus(Weighed::of(5, None)).complete(15), None);
        assert_eq!(EnergyAmounts { known_ns: 1, mj: [1, 2, 3] }.total(), Some(6));
    }
}
