//! Counters that the driver lets wrap, as counters that never go back. No call, no clock.

use std::collections::BTreeMap;

use crate::model::figures::{Figure, Figures};

/// Half of what 32 bits count. A step back by more than this, below that bound, is a wrap; any other
/// is a reset of the driver or the device.
const HALF: u64 = 1 << 31;
const WRAP: u64 = 1 << 32;

const WRAPPING: [Figure; 2] = [Figure::PcieTransmitted, Figure::PcieReceived];

/// The counters of one device since the agent saw it first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Odometers(BTreeMap<Figure, Odometer>);

#[derive(Clone, Copy, Debug)]
struct Odometer {
    last: u64,
    total: u64,
}

impl Odometers {
    /// Puts totals in the place of what the driver said. A counter of 32 bits that wrapped twice
    /// between two readings has lost a round: its total is a lower bound.
    pub(crate) fn advance(&mut self, figures: &mut Figures) {
        for figure in WRAPPING {
            if let Some(value) = figures.get(figure) {
                let odometer =
                    self.0.entry(figure).or_insert(Odometer { last: value, total: value });
                odometer.advance(value);
                figures.set(figure, odometer.total);
            }
        }
    }
}

impl Odometer {
    fn advance(&mut self, value: u64) {
        let step = match self.last.checked_sub(value) {
            None | Some(0) => value - self.last,
            Some(back) if back > HALF && self.last < WRAP => WRAP - back,
            Some(_) => value,
        };
        self.last = value;
        self.total = self.total.saturating_add(step);
    }
}

#[cfg(test)]
mod tests {
    use super::{Odometers, WRAP};
    use crate::model::figures::{Figure, Figures};

    fn check(values: &[Option<u64>], expected: &[Option<u64>]) {
        let mut odometers = Odometers::default();
        let mut totals = Vec::new();
        for value in values {
            let mut figures: Figures = value.iter().map(|it| (Figure::PcieReceived, *it)).collect();
            odometers.advance(&mut figures);
            totals.push(figures.get(Figure::PcieReceived));
        }
        assert_eq!(totals, expected);
    }

    #[test]
    fn a_total_goes_on_over_wraps_and_resets() {
        check(&[Some(5), Some(9), Some(9)], &[Some(5), Some(9), Some(9)]);
        check(&[Some(WRAP - 10), Some(5)], &[Some(WRAP - 10), Some(WRAP + 5)]);
        // The driver was loaded anew.
        check(&[Some(1_000), Some(5), Some(7)], &[Some(1_000), Some(1_005), Some(1_007)]);
        check(&[Some(3 * WRAP), Some(5)], &[Some(3 * WRAP), Some(3 * WRAP + 5)]);
        // Not known in between.
        check(&[Some(10), None, Some(30)], &[Some(10), None, Some(30)]);
    }
}
