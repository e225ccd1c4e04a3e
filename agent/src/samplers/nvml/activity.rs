//! Who used the device's processors since the last tick, from the driver's per-process samples.
//!
//! The driver keeps one ring of samples for all its clients and gives out those that are newer than
//! a time we name. So there is one cursor per device, and it moves to the newest sample of a batch
//! once the whole batch is consumed. No I/O and no clock: the time comes with the batch.

use std::collections::BTreeMap;

use crate::model::units::Percent;
use crate::samplers::nvml::answers::{Answers, Sample};

/// How far back a device is asked for the first time. The ring reaches back for minutes, and
/// what was before this agent looked belongs to no tick of it.
const FIRST_WINDOW_US: u64 = 1_000_000;
/// A sample that is later than now by more than this is not a time.
const MAX_AHEAD_US: u64 = 1_000_000;

/// Up to when the samples of one device were consumed: Unix time in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cursor(Option<u64>);

/// What the samples of one batch say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    /// The driver did not answer.
    Unknown,
    /// The driver answered; a process that is not here had no sample.
    Known(BTreeMap<u32, Heard>),
}

/// What a batch says about one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Sum of the samples, each in percent, and their number.
    Samples { sum: u64, count: u64 },
    /// A row that cannot be true: this process did something, and it is not known what.
    Garbage,
}

/// What is known about the use by one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SmUse {
    pub(crate) weight: Option<u64>,
    pub(crate) mean: Option<Percent>,
}

// === impl Cursor ===

impl Cursor {
    /// The time to ask from. A cursor in the future is left over from before the node's clock was
    /// set back: following it would hide everything until that time comes again.
    pub(crate) fn last_seen_us(self, now_us: u64) -> u64 {
        self.0
            .filter(|it| *it <= now_us.saturating_add(MAX_AHEAD_US))
            .unwrap_or_else(|| now_us.saturating_sub(FIRST_WINDOW_US))
    }

    /// Consumes one device's answer to `last_seen_us`, and moves past it.
    pub(crate) fn consume(
        &mut self,
        last_seen_us: u64,
        now_us: u64,
        answers: &Answers,
    ) -> Activity {
        let silent = answers.nobody_was_active();
        let samples = match &answers.samples {
            Some(samples) => samples.as_slice(),
            None if silent => &[],
            None => return Activity::Unknown,
        };
        let latest = now_us.saturating_add(MAX_AHEAD_US);
        let is_time = |it: &&Sample| it.at_us <= latest;
        let newest = samples.iter().filter(is_time).map(|it| it.at_us).max();
        self.0 = Some(newest.unwrap_or(0).max(last_seen_us));
        Activity::of(samples, last_seen_us, latest)
    }
}

// === impl Activity ===

impl Activity {
    fn of(samples: &[Sample], last_seen_us: u64, latest_us: u64) -> Self {
        let mut heard = BTreeMap::new();
        for sample in samples.iter().filter(|it| it.pid != 0 && it.at_us > last_seen_us) {
            let percent = Percent::new(sample.sm).filter(|_| sample.at_us <= latest_us);
            let entry = heard.entry(sample.pid).or_insert(Heard::Samples { sum: 0, count: 0 });
            *entry = entry.and(percent);
        }
        Self::Known(heard)
    }

    /// What a client of an MPS server used: drivers put what it did down to the server, so that a
    /// client without a sample of its own did nothing only where nobody did.
    pub(crate) fn of_mps_client(&self, pid: u32) -> SmUse {
        match self {
            Self::Known(heard) if !heard.is_empty() && !heard.contains_key(&pid) => {
                SmUse::default()
            }
            _ => self.of_process(pid),
        }
    }

    /// What one listed process used. `Some(0)` = the driver answered and has no sample of it.
    pub(crate) fn of_process(&self, pid: u32) -> SmUse {
        let Self::Known(heard) = self else { return SmUse::default() };
        match heard.get(&pid) {
            None => SmUse { weight: Some(0), mean: Percent::new(0) },
            Some(Heard::Garbage) => SmUse::default(),
            Some(Heard::Samples { sum, count }) => SmUse {
                weight: Some(*sum),
                mean: u32::try_from(sum / count).ok().and_then(Percent::new),
            },
        }
    }
}

// === impl Heard ===

impl Heard {
    fn and(self, percent: Option<Percent>) -> Self {
        match (self, percent) {
            (Self::Samples { sum, count }, Some(percent)) => {
                Self::Samples { sum: sum + u64::from(percent.get()), count: count + 1 }
            }
            (Self::Garbage, _) | (_, None) => Self::Garbage,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::{any, prop, proptest};

    use super::{Activity, Cursor};
    use crate::model::units::Percent;
    use crate::samplers::nvml::answers::{Answers, Call, Refusal, Sample};

    const NOW: u64 = 1_700_000_000_000_000;

    fn answers(samples: &[(u32, u64, u32)]) -> Answers {
        let sample = |it: &(u32, u64, u32)| Sample { pid: it.0, at_us: it.1, sm: it.2 };
        Answers { samples: Some(samples.iter().map(sample).collect()), ..Answers::default() }
    }

    fn weights(activity: &Activity, pids: &[u32]) -> Vec<Option<u64>> {
        pids.iter().map(|it| activity.of_process(*it).weight).collect()
    }

    /// One batch, asked from a second ago: the weights of processes 7 and 8.
    fn check(samples: &[(u32, u64, u32)], expected: [Option<u64>; 2]) {
        let last_seen = Cursor::default().last_seen_us(NOW);
        let activity = Cursor::default().consume(last_seen, NOW, &answers(samples));
        assert_eq!(weights(&activity, &[7, 8]), expected, "{samples:?}");
    }

    #[test]
    fn a_batch_is_summed_by_process() {
        check(&[], [Some(0), Some(0)]);
        check(&[(7, NOW - 10, 40)], [Some(40), Some(0)]);
        check(&[(7, NOW - 10, 40), (8, NOW - 20, 5), (7, NOW - 30, 60)], [Some(100), Some(5)]);
    }

    #[test]
    fn rows_that_cannot_be_true_do_not_count() {
        // Old drivers fill the buffer with blank rows.
        check(&[(0, 0, 0), (0, NOW, 90)], [Some(0), Some(0)]);
        // The driver's whole ring, from before the cursor.
        check(&[(7, NOW - 60_000_000, 80)], [Some(0), Some(0)]);
        // A process with a blank value did something: it is not idle.
        check(&[(7, NOW, 2_147_483_632), (8, NOW, 3)], [None, Some(3)]);
        check(&[(7, NOW, 50), (7, NOW, 101)], [None, Some(0)]);
        check(&[(7, u64::MAX, 50)], [None, Some(0)]);
    }

    #[test]
    fn only_not_found_means_that_nobody_was_active() {
        let consume = |call, refusal| {
            let answers = Answers::refused(call, refusal);
            Cursor::default().consume(0, NOW, &answers)
        };
        for call in [Call::ProcessUtilization, Call::ProcessesUtilization] {
            assert_eq!(consume(call, Refusal::NotFound), Activity::Known(BTreeMap::new()));
        }
        for refusal in [Refusal::Failed, Refusal::NotSupported, Refusal::Denied, Refusal::GpuLost] {
            assert_eq!(consume(Call::ProcessesUtilization, refusal), Activity::Unknown);
        }
        assert_eq!(Cursor::default().consume(0, NOW, &Answers::default()), Activity::Unknown);
    }

    #[test]
    fn a_client_of_a_busy_mps_server_is_not_idle() {
        let consume = |answers: &Answers| {
            Cursor::default().consume(Cursor::default().last_seen_us(NOW), NOW, answers)
        };
        let served = consume(&answers(&[(6, NOW, 80), (8, NOW, 5)]));
        assert_eq!([7, 8].map(|it| served.of_mps_client(it).weight), [None, Some(5)]);
        let idle = consume(&answers(&[]));
        assert_eq!(idle.of_mps_client(7).weight, Some(0));
    }

    #[test]
    fn the_mean_is_that_of_the_samples() {
        let batch = answers(&[(7, NOW, 40), (7, NOW - 1, 61)]);
        let activity = Cursor::default().consume(NOW - 10, NOW, &batch);
        assert_eq!(activity.of_process(7).mean, Percent::new(50));
        assert_eq!(activity.of_process(8).mean, Percent::new(0));
    }

    #[test]
    fn the_cursor_moves_to_the_newest_sample_and_never_by_garbage() {
        let mut cursor = Cursor::default();
        let last_seen = cursor.last_seen_us(NOW);
        cursor.consume(last_seen, NOW, &answers(&[(7, NOW - 5, 1), (8, NOW - 9, 1)]));
        assert_eq!(cursor.last_seen_us(NOW), NOW - 5);
        cursor.consume(NOW - 5, NOW, &answers(&[(7, u64::MAX, 1)]));
        assert_eq!(cursor.last_seen_us(NOW), NOW - 5);
        cursor.consume(NOW - 5, NOW, &Answers::refused(Call::ProcessUtilization, Refusal::Failed));
        assert_eq!(cursor.last_seen_us(NOW), NOW - 5);
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_hide_what_follows() {
        let mut cursor = Cursor::default();
        cursor.consume(0, NOW, &answers(&[(7, NOW, 1)]));
        let an_hour_ago = NOW - 3_600_000_000;
        assert_eq!(cursor.last_seen_us(an_hour_ago), an_hour_ago - 1_000_000);
    }

    proptest! {
        /// However a stream of samples is cut into ticks, each sample counts once.
        #[test]
        fn ticks_add_up_to_the_truth(
            steps in prop::collection::vec((1u64..500_000, any::<bool>(), 0u32..=100), 1..60),
            ticks in prop::collection::vec(1usize..8, 1..60),
        ) {
            let mut at = NOW;
            let stream: Vec<Sample> = steps
                .iter()
                .map(|(step, first, sm)| {
                    at += step;
                    Sample { pid: if *first { 7 } else { 8 }, at_us: at, sm: *sm }
                })
                .collect();
            let mut cursor = Cursor::default();
            cursor.consume(NOW, NOW, &answers(&[]));
            let mut sums = [0, 0];
            let mut until = 0;
            for tick in ticks.into_iter().chain([stream.len()]) {
                until = (until + tick).min(stream.len());
                let now = stream[..until].last().map_or(NOW, |it| it.at_us);
                let last_seen = cursor.last_seen_us(now);
                // The driver gives what is newer, out of a ring that holds all.
                let newer = stream[..until].iter().filter(|it| it.at_us > last_seen).copied();
                let batch = Answers { samples: Some(newer.collect()), ..Answers::default() };
                let activity = cursor.consume(last_seen, now, &batch);
                for (sum, pid) in sums.iter_mut().zip([7, 8]) {
                    *sum += activity.of_process(pid).weight.unwrap();
                }
            }
            for (sum, pid) in sums.into_iter().zip([7, 8]) {
                let truth = stream.iter().filter(|it| it.pid == pid);
                assert_eq!(sum, truth.map(|it| u64::from(it.sm)).sum::<u64>());
            }
        }
    }
}
