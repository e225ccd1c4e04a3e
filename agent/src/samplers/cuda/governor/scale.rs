//! From what was counted in windows to what was done all the time.
//!
//! A process whose hooks are on for a part of the time is counted in that part only. What it did in
//! the rest is estimated from what it did in the windows, by its own CPU time: a program that runs
//! twice as long does twice as much, wherever the scheduler put it. The time that hits themselves
//! took is none of the program's: one that launches as fast as it can launches less while it is
//! watched. For a program that sleeps between its calls the same sum is right, because hits then add
//! to its CPU time and take nothing from its calls.
//!
//! How wrong this can be: a call takes the program's own time `a`, and a hit adds `c`. The estimate is
//! in proportion to 1 / (seen - c), where `a + c` is seen, so that a relative error of `c` is one of
//! `c / a` times as much of the counts. With hits of 200 ns and a cost that is 10 % off that is 2 % at
//! 1 us a call, and 20 % at 100 ns. The time that is seen must be exact, too: see `stopwatch`.

use agent_ebpf::COUNTERS;

use super::cost::MILLION;

/// Windows that are put together before anything is estimated from them.
const WINDOWS: u32 = 5;
/// Hits can take nearly all the time of a window; what is left for the program is at least this
/// part of it, so that an error of the calibration is not multiplied beyond all bounds.
const LEAST_PART: u64 = 64;
/// Fixed point of what is carried from one estimate to the next.
const UNIT: u128 = 1 << 32;

/// Time of one process, in nanoseconds of its CPU time and of the clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    /// `None` = the process could not be asked.
    pub(crate) cpu_ns: Option<u64>,
    pub(crate) wall_ns: u64,
}

impl Span {
    /// Without a part of it.
    pub(crate) fn less(self, part: Self) -> Self {
        let less = |whole: u64, part: u64| whole.saturating_sub(part);
        Self {
            cpu_ns: self.cpu_ns.zip(part.cpu_ns).map(|(whole, part)| less(whole, part)),
            wall_ns: less(self.wall_ns, part.wall_ns),
        }
    }
}

/// One process while some of its calls are seen in windows only. Its total is what the kernel has
/// counted plus `missed`, which only grows.
#[derive(Clone, Debug)]
pub(crate) struct Scale {
    missed: [u64; COUNTERS],
    /// Parts of one that were missed too, by counter.
    carried: [u64; COUNTERS],
    /// Not yet scaled.
    pending: Pending,
    /// Missed time by watched time in millionths, as last applied.
    ratio: u64,
}

#[derive(Clone, Debug)]
struct Pending {
    counts: [u64; COUNTERS],
    windows: u32,
    on: Sum,
    /// How long hits took of that.
    hits_ns: u64,
    off: Sum,
}

/// CPU time counts only where all of it is known.
#[derive(Clone, Copy, Debug)]
struct Sum {
    cpu_ns: Option<u64>,
    wall_ns: u64,
}

impl Default for Sum {
    fn default() -> Self {
        Self { cpu_ns: Some(0), wall_ns: 0 }
    }
}

impl Sum {
    fn add(&mut self, span: Span) {
        self.cpu_ns = self.cpu_ns.zip(span.cpu_ns).map(|(sum, more)| sum.saturating_add(more));
        self.wall_ns = self.wall_ns.saturating_add(span.wall_ns);
    }
}

impl Default for Pending {
    fn default() -> Self {
        Self {
            counts: [0; COUNTERS],
            windows: 0,
            on: Sum::default(),
            hits_ns: 0,
            off: Sum::default(),
        }
    }
}

impl Default for Scale {
    fn default() -> Self {
        Self {
            missed: [0; COUNTERS],
            carried: [0; COUNTERS],
            pending: Pending::default(),
            ratio: 0,
        }
    }
}

impl Scale {
    /// What the kernel has not seen, as far as it is estimated by now.
    pub(crate) fn missed(&self) -> &[u64; COUNTERS] {
        &self.missed
    }

    /// Time in which nothing could be counted.
    pub(crate) fn unwatched(&mut self, span: Span) {
        self.pending.off.add(span);
    }

    /// A window: what was counted in it, how long it was, and how long hits took of that.
    pub(crate) fn watched(&mut self, counted: &[u64; COUNTERS], span: Span, hits_ns: u64) {
        for (sum, more) in self.pending.counts.iter_mut().zip(counted) {
            *sum = sum.saturating_add(*more);
        }
        self.pending.on.add(span);
        self.pending.hits_ns = self.pending.hits_ns.saturating_add(hits_ns);
        self.pending.windows += 1;
        if self.pending.windows >= WINDOWS {
            self.settle();
        }
    }

    /// Estimates from all that is pending. Does nothing while the process has not run in a window:
    /// what was missed is then carried to the next.
    pub(crate) fn settle(&mut self) {
        let Some((off, on)) = self.times() else { return };
        let pending = std::mem::take(&mut self.pending);
        for (index, count) in pending.counts.iter().enumerate().filter(|(_, it)| **it > 0) {
            self.add(index, *count, off, on);
        }
        let ratio = u128::from(off) * u128::from(MILLION) / u128::from(on);
        self.ratio = u64::try_from(ratio).unwrap_or(u64::MAX);
    }

    /// The process has ended, or is watched all the time again: what is pending is scaled by the
    /// times that are known, else as the last was.
    pub(crate) fn finish(&mut self, counted: &[u64; COUNTERS]) {
        for (sum, more) in self.pending.counts.iter_mut().zip(counted) {
            *sum = sum.saturating_add(*more);
        }
        if self.times().is_some() {
            return self.settle();
        }
        let pending = std::mem::take(&mut self.pending);
        for (index, count) in pending.counts.iter().enumerate().filter(|(_, it)| **it > 0) {
            self.add(index, *count, self.ratio, MILLION);
        }
    }

    /// Missed and watched time in one unit; `None` = it did not run while it was watched.
    fn times(&self) -> Option<(u64, u64)> {
        let Pending { on, off, hits_ns, .. } = &self.pending;
        let (off, on) = match (off.cpu_ns, on.cpu_ns) {
            (Some(off), Some(on)) => (off, on),
            _ => (off.wall_ns, on.wall_ns),
        };
        // Of all windows together: one alone may be mostly chance.
        let own = on.saturating_sub(*hits_ns).max(on / LEAST_PART);
        (own > 0).then_some((off, own))
    }

    fn add(&mut self, index: usize, count: u64, off: u64, on: u64) {
        let exact = u128::from(count).saturating_mul(u128::from(off)).saturating_mul(UNIT)
            / u128::from(on.max(1))
            + u128::from(self.carried[index]);
        let whole = u64::try_from(exact / UNIT).unwrap_or(u64::MAX);
        self.missed[index] = self.missed[index].saturating_add(whole);
        self.carried[index] = u64::try_from(exact % UNIT).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::{COUNTERS, Scale, Span};
    use proptest::prelude::*;

    fn counted(calls: u64) -> [u64; COUNTERS] {
        let mut counts = [0; COUNTERS];
        counts[0] = calls;
        counts
    }

    fn span(ns: u64) -> Span {
        Span { cpu_ns: Some(ns), wall_ns: ns * 2 }
    }

    fn windows(windows: &[(u64, u64, u64)], off: u64) -> u64 {
        let mut scale = Scale::default();
        for (calls, on, hits) in windows {
            scale.unwatched(span(off));
            scale.watched(&counted(*calls), span(*on), *hits);
        }
        scale.finish(&counted(0));
        scale.missed()[0]
    }

    #[test]
    fn what_was_missed_is_in_proportion_to_cpu_time() {
        assert_eq!(windows(&[(30, 1_000, 0); 5], 99_000), 5 * 30 * 99);
    }

    #[test]
    fn the_time_of_hits_is_not_the_programs() {
        // 1,000 calls of 200 ns, each hit for 300 ns; unwatched it would make 2.5 times as many.
        assert_eq!(windows(&[(1_000, 500_000, 300_000); 5], 1_000_000), 5 * 5_000);
    }

    #[test]
    fn a_process_that_did_not_run_in_a_window_waits_for_the_next() {
        let found = windows(&[(0, 0, 0), (0, 0, 0), (10, 1_000, 0)], 1_000);
        assert_eq!(found, 30);
        assert_eq!(windows(&[(0, 0, 0)], 1_000), 0);
    }

    #[test]
    fn without_cpu_time_the_clock_serves() {
        let mut scale = Scale::default();
        scale.unwatched(Span { cpu_ns: None, wall_ns: 900 });
        scale.watched(&counted(7), Span { cpu_ns: Some(3), wall_ns: 100 }, 0);
        scale.finish(&counted(0));
        assert_eq!(scale.missed()[0], 63);
    }

    #[test]
    fn the_end_between_two_windows_is_scaled_like_the_last() {
        let mut scale = Scale::default();
        for _ in 0..5 {
            scale.unwatched(span(900));
            scale.watched(&counted(10), span(100), 0);
        }
        assert_eq!(scale.missed()[0], 450);
        scale.finish(&counted(10));
        assert_eq!(scale.missed()[0], 540);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_to_rounding(
            windows in prop::collection::vec((0_u64..50, 1_u64..5_000, 0_u64..100_000), 1..400),
        ) {
            let (mut scale, mut before) = (Scale::default(), 0);
            let mut exact = 0.0;
            for chunk in windows.chunks(5) {
                let (mut calls, mut on, mut off) = (0, 0, 0);
                for (count, watched, missed) in chunk {
                    scale.unwatched(span(*missed));
                    scale.watched(&counted(*count), span(*watched), 0);
                    (calls, on, off) = (calls + count, on + watched, off + missed);
                }
                let part = |it: u64| f64::from(u32::try_from(it).unwrap());
                exact += part(calls) * part(off) / part(on);
                prop_assert!(scale.missed()[0] >= before);
                before = scale.missed()[0];
            }
            scale.finish(&counted(0));
            let found = f64::from(u32::try_from(scale.missed()[0]).unwrap());
            prop_assert!((found - exact).abs() <= 2.0, "{found} of {exact}");
        }
    }
}
