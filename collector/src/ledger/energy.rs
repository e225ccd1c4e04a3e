//! The energy of a tile over the hours that it lies in. Pure, and exact: the parts of every hour sum to
//! the energy of that hour, those of every share to the share's.

use crate::ledger::split::{cut, split};
use crate::model::metering::{Energy, EnergyMethod};
use crate::model::record::CLASSES;

/// One hour of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HourEnergy {
    pub(super) mj: u64,
    /// `None` = the agent did not cut it.
    pub(super) split: Option<HourSplit>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HourSplit {
    pub(super) method: EnergyMethod,
    /// In the order of the tile's shares.
    pub(super) shares: Vec<u64>,
    pub(super) classes: [u64; CLASSES.len()],
}

/// `times` are nanoseconds of each share in each hour: a share's energy is where its time is.
pub(super) fn by_hour(energy: &Energy, hours: &[u64], times: &[Vec<u64>]) -> Vec<HourEnergy> {
    let Some(parts) = &energy.split else {
        let hours = split(u128::from(energy.mj), hours);
        return hours.into_iter().map(|it| HourEnergy { mj: narrow(it), split: None }).collect();
    };
    let column = |(share, mj): (usize, &u64)| {
        let weights: Vec<u64> = times.iter().map(|it| it[share]).collect();
        split(u128::from(*mj), &weights).into_iter().map(narrow).collect()
    };
    let columns: Vec<Vec<u64>> = parts.shares.iter().enumerate().map(column).collect();
    let row = |hour: usize| columns.iter().map(|it| it[hour]).collect::<Vec<u64>>();
    let rows: Vec<Vec<u64>> = (0..hours.len()).map(row).collect();
    let totals: Vec<u64> = rows.iter().map(|it| it.iter().sum()).collect();
    let classes = cut(&parts.classes, &totals);
    rows.into_iter()
        .zip(totals)
        .zip(classes)
        .map(|((shares, mj), classes)| {
            let classes = classes.try_into().expect("a row has every class");
            HourEnergy { mj, split: Some(HourSplit { method: parts.method, shares, classes }) }
        })
        .collect()
}

/// A part of 64 bits.
fn narrow(part: u128) -> u64 {
    u64::try_from(part).expect("a part is not larger than the whole")
}

#[cfg(test)]
mod tests {
    use super::{HourEnergy, by_hour};
    use crate::ledger::split::cut;
    use crate::model::metering::{Energy, EnergyMethod, EnergySplit};
    use crate::model::record::CLASSES;
    use proptest::prelude::{any, prop, prop_assert_eq, proptest};

    #[test]
    fn energy_that_was_not_cut_is_spread_over_the_hours() {
        let found = by_hour(&Energy { mj: 10, split: None }, &[30, 10], &[vec![30], vec![10]]);
        let expected = [8, 2].map(|mj| HourEnergy { mj, split: None });
        assert_eq!(found, expected);
    }

    proptest! {
        #[test]
        fn no_millijoule_is_lost_between_hours(
            times in prop::collection::vec(0_u64..1_000_000, 1..6),
            drawn in prop::collection::vec(0_u64..1_000_000, 6),
            part in 0_u64..1_000,
            class in 0..CLASSES.len(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        ) {
            let span: u64 = times.iter().sum();
            let mut at: Vec<u64> = cuts.iter().map(|it| it.index(1_000) as u64 * span / 1_000).collect();
            at.extend([0, span]);
            at.sort_unstable();
            let hours: Vec<u64> = at.windows(2).map(|it| it[1] - it[0]).collect();
            let shares = drawn[..times.len()].to_vec();
            let mj: u64 = shares.iter().sum();
            let mut classes = [0; CLASSES.len()];
            classes[class] = mj - mj * part / 1_000;
            classes[(class + 1) % CLASSES.len()] += mj * part / 1_000;
            let split = EnergySplit { method: EnergyMethod::Time, shares: shares.clone(), classes };
            let energy = Energy { mj, split: Some(split) };
            let found = by_hour(&energy, &hours, &cut(&times, &hours));
            prop_assert_eq!(found.iter().map(|it| it.mj).sum::<u64>(), mj);
            let splits: Vec<_> = found.iter().filter_map(|it| it.split.as_ref()).collect();
            for (hour, split) in found.iter().zip(&splits) {
                prop_assert_eq!(split.shares.iter().sum::<u64>(), hour.mj);
                prop_assert_eq!(split.classes.iter().sum::<u64>(), hour.mj);
            }
            for (share, mj) in shares.iter().enumerate() {
                prop_assert_eq!(splits.iter().map(|it| it.shares[share]).sum::<u64>(), *mj);
            }
            for (class, mj) in classes.iter().enumerate() {
                prop_assert_eq!(splits.iter().map(|it| it.classes[class]).sum::<u64>(), *mj);
            }
        }
    }
}
