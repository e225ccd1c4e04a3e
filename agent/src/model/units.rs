//! Quantities whose unit must not be guessed.

use std::ops::{Add, Sub};

/// CLOCK_BOOTTIME nanoseconds. Compares only within one boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootNs(pub u64);

impl BootNs {
    /// Nanoseconds from `earlier` to here; 0 when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<u64> for BootNs {
    type Output = Self;
    fn add(self, nanoseconds: u64) -> Self {
        Self(self.0.saturating_add(nanoseconds))
    }
}

impl Sub<u64> for BootNs {
    type Output = Self;
    fn sub(self, nanoseconds: u64) -> Self {
        Self(self.0.saturating_sub(nanoseconds))
    }
}

/// A whole percentage as NVML gives it, checked to be at most 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(u8);

impl Percent {
    /// `None` for what cannot be a percentage: drivers have returned 2147483632.
    #[must_use]
    pub fn new(value: u32) -> Option<Self> {
        u8::try_from(value).ok().filter(|it| *it <= 100).map(Self)
    }

    #[must_use]
    pub fn get(self) -> u8 {
        self.0
    }

    #[must_use]
    pub fn ratio(self) -> f64 {
        f64::from(self.0) / 100.0
    }

    /// This part of `nanoseconds`, rounded down.
    #[must_use]
    pub fn of(self, nanoseconds: u64) -> u64 {
        let part = u128::from(nanoseconds) * u128::from(self.0) / 100;
        u64::try_from(part).expect("a part is not larger than the whole")
    }
}

/// Splits `total` in proportion to `weights`, in integers that sum to `total` exactly (largest
/// remainder; ties go to the earlier index). Equal parts when every weight is zero; empty for no
/// weights.
#[must_use]
pub fn split(total: u64, weights: &[u64]) -> Vec<u64> {
    let sum: u128 = weights.iter().map(|it| u128::from(*it)).sum();
    if sum == 0 {
        return if weights.is_empty() { Vec::new() } else { split(total, &vec![1; weights.len()]) };
    }
    let exact = |weight: u64| u128::from(total) * u128::from(weight);
    let mut parts: Vec<u64> = weights
        .iter()
        .map(|it| u64::try_from(exact(*it) / sum).expect("a part is not larger than the whole"))
        .collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|it| std::cmp::Reverse(exact(weights[*it]) % sum));
    let missing = total - parts.iter().sum::<u64>();
    for index in order.into_iter().take(usize::try_from(missing).unwrap_or(usize::MAX)) {
        parts[index] += 1;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::{Percent, split};
    use proptest::prelude::{any, prop, proptest};

    proptest! {
        #[test]
        fn split_conserves(total in any::<u64>(), weights in prop::collection::vec(any::<u64>(), 1..20)) {
            let parts = split(total, &weights);
            assert_eq!(parts.iter().map(|it| u128::from(*it)).sum::<u128>(), u128::from(total));
            assert_eq!(parts.len(), weights.len());
        }

        #[test]
        fn a_part_is_never_larger_than_the_whole(value in any::<u32>(), total in any::<u64>()) {
            if let Some(percent) = Percent::new(value) {
                assert!(percent.of(total) <= total);
            }
        }
    }

    #[test]
    fn split_follows_the_weights() {
        assert_eq!(split(10, &[1, 1, 1]), [4, 3, 3]);
        assert_eq!(split(10, &[3, 1]), [8, 2]);
        assert_eq!(split(7, &[0, 0]), [4, 3]);
        assert_eq!(split(7, &[]), Vec::<u64>::new());
    }
}
