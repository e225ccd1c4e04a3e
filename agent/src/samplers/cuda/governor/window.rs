//! When the hooks of a file are on, where they may not be on all the time: how long a window lasts,
//! and when the next one opens.

use super::cost::{MILLION, portion, share};
use crate::model::units::BootNs;

/// What a window costs a process beside its hits: its threads wait while places are changed in its
/// memory, and take faults on the changed pages. About 100 us were seen for putting eight places on
/// and 50 us for taking them off, with one thread.
pub(crate) const WINDOW_NS: u64 = 200_000;

/// A window in each of these spans, where the budget has room for that many.
const SPAN_NS: u64 = 200_000_000;
const LONGEST_SPAN_NS: u64 = 5_000_000_000;
/// Shorter windows would be all cost and no hits.
const SHORTEST_NS: u64 = 200_000;
/// A window costs at least this many times what changing the hooks costs.
const WORTH: u64 = 4;
/// Part of a span that a window may take: the kernel needs tens of milliseconds to change hooks.
const MOST_OF_SPAN: u64 = 700_000;
/// Windows may be paid in advance and in arrears by this much time.
const CREDIT_NS: u64 = 1_000_000_000;
const DEBT_NS: u64 = 30_000_000_000;

/// The windows of one file.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    /// Share of the time that hooks cost while they are on, in millionths; above a million where
    /// several threads are hit at once.
    burn: u64,
    /// Share of the time that they may cost.
    allowance: u64,
    /// Saved, and spent in advance, in nanoseconds of cost.
    saved_ns: u64,
    owed_ns: u64,
    counted: BootNs,
    /// Where the span of the next window begins.
    span: BootNs,
    pub(crate) next: BootNs,
    pub(crate) length_ns: u64,
}

impl Pace {
    /// `burn` is the share of the time that hooks cost when they were taken off.
    pub(crate) fn new(at: BootNs, burn: u64, allowance: u64, random: u64) -> Self {
        let mut pace = Self {
            burn: burn.max(1),
            allowance,
            saved_ns: 0,
            owed_ns: 0,
            counted: at,
            span: at,
            next: at,
            length_ns: 0,
        };
        pace.plan(random);
        pace
    }

    /// What is left for the windows beside what is always on.
    pub(crate) fn allow(&mut self, allowance: u64) {
        self.allowance = allowance.max(1);
    }

    /// A window has been open for `open_ns`, and hits in and around it cost `hits_ns`.
    pub(crate) fn closed(&mut self, at: BootNs, open_ns: u64, hits_ns: u64, random: u64) {
        let burn = share(hits_ns, open_ns);
        // Up at once, down slowly: a window that was too long cannot be taken back.
        self.burn = if burn > self.burn { burn } else { (self.burn * 3 + burn) / 4 }.max(1);
        let earned = portion(self.allowance, at.since(self.counted));
        self.counted = at;
        let cost = hits_ns.saturating_add(WINDOW_NS).saturating_add(self.owed_ns);
        let means = self.saved_ns.saturating_add(earned);
        self.saved_ns = means.saturating_sub(cost).min(portion(self.allowance, CREDIT_NS));
        self.owed_ns = cost.saturating_sub(means).min(portion(self.allowance, DEBT_NS));
        let owed_for = share(self.owed_ns, self.allowance);
        let from = self.span.0.max(at.0);
        self.span = BootNs(from.saturating_add(owed_for));
        self.plan(random);
    }

    /// Shape and random phase of the next window.
    fn plan(&mut self, random: u64) {
        let (span, length) = self.shape();
        self.length_ns = length;
        self.next = self.span + random % (span - length).max(1);
        self.span = self.span + span;
    }

    fn shape(&self) -> (u64, u64) {
        let worth = share(WINDOW_NS * WORTH, self.allowance);
        let span = worth.clamp(SPAN_NS, LONGEST_SPAN_NS);
        let hits = portion(self.allowance, span).saturating_sub(WINDOW_NS);
        let most = portion(MOST_OF_SPAN, span);
        (span, share(hits, self.burn).clamp(SHORTEST_NS, most))
    }
}

const _: () = assert!(MOST_OF_SPAN < MILLION);

#[cfg(test)]
mod tests {
    use super::{Pace, SHORTEST_NS, WINDOW_NS};
    use crate::model::units::BootNs;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn windows_cost_what_they_may(
            burn in 10_000_u64..4_000_000,
            allowance in 1_000_u64..100_000,
            late_ns in 0_u64..4_000_000,
            seed in any::<u64>(),
        ) {
            prop_assume!(burn > allowance * 2);
            let mut random = fastrand::Rng::with_seed(seed);
            let mut pace = Pace::new(BootNs(0), burn, allowance, random.u64(..));
            let (mut spent, mut windows) = (0, 0);
            while pace.next < BootNs(60_000_000_000) {
                let open = pace.length_ns + random.u64(0..=late_ns);
                let hits = burn * open / 1_000_000;
                spent += hits + WINDOW_NS;
                windows += 1;
                pace.closed(pace.next + open, open, hits, random.u64(..));
            }
            prop_assert!(windows >= 10);
            // The last window is paid for later.
            let last = burn * (late_ns + SHORTEST_NS) / 1_000_000 + WINDOW_NS;
            let most = allowance * 61_000 + last;
            prop_assert!(spent <= most, "{spent} of {most}");
        }
    }
}
