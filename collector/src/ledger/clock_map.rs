//! From a node's boot-time nanoseconds to UTC, and the cut of a span at UTC hours.
//!
//! Pure. One map per boot of a node. It rests on pairs of both clocks that were read at a Hello, the
//! UTC half by this collector; the node's own real-time clock is used only for a boot that never met a
//! collector. The map never goes back: where a later pair says that it ran ahead, time stands still
//! until UTC has caught up, so that a record that comes later is never dated before an earlier one.

/// Nanoseconds of a UTC hour.
pub const HOUR_NS: i64 = 3_600_000_000_000;

/// A pair that differs by less is not a correction but network delay.
const TOLERANCE_NS: u64 = 1_000_000_000;

/// Corrections kept for one boot; later ones are not made, and durations stay exact anyway.
const MAX_PAIRS: usize = 1_000;

/// Both clocks, read together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// CLOCK_BOOTTIME of the node.
    pub boot_ns: u64,
    /// Unix nanoseconds.
    pub utc_ns: i64,
}

/// The map of one boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClockMap {
    /// At least one; `boot_ns` rises.
    pairs: Vec<Pair>,
}

/// A part of a span that lies in one UTC hour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HourSpan {
    /// Hours since the Unix epoch.
    pub hour: i64,
    pub ns: u64,
}

// === impl ClockMap ===

impl ClockMap {
    #[must_use]
    pub fn new(first: Pair) -> Self {
        Self { pairs: vec![first] }
    }

    /// Takes a new pair. `true` = the map was corrected from `pair.boot_ns` on; nothing before it
    /// changes.
    pub fn correct(&mut self, pair: Pair) -> bool {
        let last = self.pairs.last().expect("a map has at least one pair");
        let later = pair.boot_ns > last.boot_ns && self.pairs.len() < MAX_PAIRS;
        let differs = self.utc_ns(pair.boot_ns).abs_diff(pair.utc_ns) > TOLERANCE_NS;
        if later && differs {
            self.pairs.push(pair);
        }
        later && differs
    }

    #[must_use]
    pub fn utc_ns(&self, boot_ns: u64) -> i64 {
        let next = self.pairs.partition_point(|it| it.boot_ns <= boot_ns);
        let mut utc = i64::MIN;
        for (index, pair) in self.pairs[..next.max(1)].iter().enumerate() {
            let end = self.pairs.get(index + 1).map_or(boot_ns, |it| it.boot_ns.min(boot_ns));
            utc = utc.max(run_on(pair, end));
        }
        utc
    }

    /// Cuts `[start, end)` where the UTC hour changes. The parts sum to the span exactly; hours rise,
    /// and an hour that the map skips has no part.
    #[must_use]
    pub fn hours(&self, start: u64, end: u64) -> Vec<HourSpan> {
        let mut parts: Vec<HourSpan> = Vec::new();
        let mut at = start;
        while at < end {
            let hour = self.utc_ns(at).div_euclid(HOUR_NS);
            let next = self.hour_ends(at, hour).min(end);
            let ns = next - at;
            match parts.last_mut().filter(|it| it.hour == hour) {
                Some(part) => part.ns += ns,
                None => parts.push(HourSpan { hour, ns }),
            }
            at = next;
        }
        parts
    }

    /// The first moment after `at` at which `hour` may be over: its end by the pair in force, or the
    /// next pair.
    fn hour_ends(&self, at: u64, hour: i64) -> u64 {
        let next = self.pairs.partition_point(|it| it.boot_ns <= at);
        let pair = self.pairs[next.max(1) - 1];
        let until = i128::from(hour + 1) * i128::from(HOUR_NS) - i128::from(pair.utc_ns);
        let by_clock = i128::from(pair.boot_ns) + until;
        let by_pair = self.pairs.get(next.max(1)).map_or(u64::MAX, |it| it.boot_ns);
        u64::try_from(by_clock).unwrap_or(u64::MAX).min(by_pair).max(at + 1)
    }
}

/// UTC at `boot_ns` by one pair, before or after it.
fn run_on(pair: &Pair, boot_ns: u64) -> i64 {
    let utc = i128::from(pair.utc_ns) + i128::from(boot_ns) - i128::from(pair.boot_ns);
    i64::try_from(utc).unwrap_or(if utc < 0 { i64::MIN } else { i64::MAX })
}

/// The pair for a boot that never met a collector: the node's own clock at the end of its first
/// record, kept between the end of what is already known of the instance and now.
#[must_use]
pub fn unmet(end_ns: u64, node_real_ns: i64, known_end_utc_ns: Option<i64>, now_ns: i64) -> Pair {
    let least = known_end_utc_ns.unwrap_or(i64::MIN).min(now_ns);
    let utc_ns = if node_real_ns < PLAUSIBLE_NS { now_ns } else { node_real_ns };
    Pair { boot_ns: end_ns, utc_ns: utc_ns.clamp(least, now_ns) }
}

/// 2024-01-01. A node clock that shows an earlier time was not set yet.
const PLAUSIBLE_NS: i64 = 1_704_067_200_000_000_000;

#[cfg(test)]
mod tests {
    use super::{ClockMap, HOUR_NS, HourSpan, PLAUSIBLE_NS, Pair, unmet};
    use proptest::prelude::{prop, proptest};

    const MINUTE: u64 = 60_000_000_000;
    const H: i64 = HOUR_NS;

    fn pair(boot_ns: u64, utc_ns: i64) -> Pair {
        Pair { boot_ns, utc_ns }
    }

    fn check(map: &ClockMap, (start, end): (u64, u64), expected: &[(i64, u64)]) {
        let parts: Vec<(i64, u64)> =
            map.hours(start, end).into_iter().map(|it| (it.hour, it.ns)).collect();
        assert_eq!(parts, expected);
    }

    #[test]
    fn a_span_is_cut_at_the_hour() {
        let map = ClockMap::new(pair(100 * MINUTE, 10 * H));
        check(&map, (100 * MINUTE, 110 * MINUTE), &[(10, 10 * MINUTE)]);
        check(&map, (95 * MINUTE, 105 * MINUTE), &[(9, 5 * MINUTE), (10, 5 * MINUTE)]);
        check(&map, (100 * MINUTE, 161 * MINUTE), &[(10, 60 * MINUTE), (11, MINUTE)]);
        check(&map, (100 * MINUTE, 100 * MINUTE), &[]);
    }

    #[test]
    fn a_step_back_stands_still_and_a_step_on_skips() {
        let mut map = ClockMap::new(pair(0, 10 * H));
        assert!(map.correct(pair(70 * MINUTE, 10 * H + 40 * 60_000_000_000)));
        // Minute 70 was in hour 11 already: hour 11 lasts until UTC has passed 12.
        check(&map, (0, 160 * MINUTE), &[(10, 60 * MINUTE), (11, 90 * MINUTE), (12, 10 * MINUTE)]);

        let mut map = ClockMap::new(pair(0, 10 * H));
        assert!(map.correct(pair(30 * MINUTE, 15 * H)));
        check(&map, (0, 60 * MINUTE), &[(10, 30 * MINUTE), (15, 30 * MINUTE)]);
    }

    #[test]
    fn small_differences_and_old_pairs_correct_nothing() {
        let mut map = ClockMap::new(pair(1_000, H));
        assert!(!map.correct(pair(2_000, H + 1_000 + 999_999_999)));
        assert!(!map.correct(pair(500, 9 * H)));
        assert_eq!(map, ClockMap::new(pair(1_000, H)));
    }

    #[test]
    fn a_boot_that_was_never_met_is_dated_between_the_known_and_now() {
        let now = PLAUSIBLE_NS + 10 * H;
        assert_eq!(unmet(5, now - H, None, now), pair(5, now - H));
        assert_eq!(unmet(5, now + H, None, now), pair(5, now));
        assert_eq!(unmet(5, now - 3 * H, Some(now - H), now), pair(5, now - H));
        assert_eq!(unmet(5, 0, None, now), pair(5, now));
    }

    proptest! {
        #[test]
        fn the_parts_sum_to_the_span_and_never_go_back(
            pairs in prop::collection::vec((0u64..400, -200i64..2_000), 1..6),
            start in 0u64..500, length in 0u64..500,
        ) {
            let mut map = ClockMap::new(pair(pairs[0].0 * MINUTE, pairs[0].1 * 60_000_000_000));
            for (boot, utc) in &pairs[1..] {
                map.correct(pair(boot * MINUTE, utc * 60_000_000_000));
            }
            let parts = map.hours(start * MINUTE, (start + length) * MINUTE);
            assert_eq!(parts.iter().map(|it| it.ns).sum::<u64>(), length * MINUTE);
            assert!(parts.windows(2).all(|it| it[0].hour < it[1].hour));
            let mut at = start * MINUTE;
            for HourSpan { hour, ns } in parts {
                assert_eq!(map.utc_ns(at).div_euclid(H), hour);
                assert_eq!(map.utc_ns(at + ns - 1).div_euclid(H), hour);
                assert!(map.utc_ns(at) <= map.utc_ns(at + ns));
                at += ns;
            }
        }
    }
}
