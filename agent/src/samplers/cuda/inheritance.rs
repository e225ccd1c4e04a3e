//! What of the counts in the kernel is in records already, and what a predecessor that died had read
//! and not kept. Pure.
//!
//! Every row that has left the kernel is summed up there. What that sum has, and neither the records,
//! nor the ends that were not read yet, nor the processes that records knew and that are gone explain,
//! lost its owner with the predecessor. Each call is then counted exactly once, whoever it is given to.

use std::collections::BTreeMap;

use crate::model::ids::ProcessId;
use crate::model::readings::{CudaCounts, Lineage};
use crate::model::usage::CudaBaseline;

/// What was found in the kernel at the start.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Names the maps.
    pub(crate) epoch: u64,
    /// Nobody had used them before.
    pub(crate) fresh: bool,
    /// Some of it may be in records, of this spool or of another one.
    pub(crate) recorded: bool,
    /// Programs that are running.
    pub(crate) live: BTreeMap<ProcessId, CudaCounts>,
    /// Final counts that no agent has read.
    pub(crate) ends: Vec<(ProcessId, CudaCounts)>,
    /// Of all rows that have left the kernel.
    pub(crate) retired: CudaCounts,
}

/// Where the counts of this agent begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Inheritance {
    pub(crate) lineage: Lineage,
    /// Final counts whose owner is lost.
    pub(crate) ownerless: CudaCounts,
}

impl Inheritance {
    pub(crate) fn new(found: &Found, baseline: Option<&CudaBaseline>) -> Self {
        let lineage = Lineage { epoch: found.epoch, ..Lineage::default() };
        if found.fresh {
            return Self { lineage, ownerless: CudaCounts::default() };
        }
        let unread = sum(found.ends.iter().map(|it| &it.1));
        // Who dies before its first record has accounted for nothing.
        let none = CudaBaseline { epoch: found.epoch, ..CudaBaseline::default() };
        let none = (!found.recorded).then_some(&none);
        let Some(baseline) = baseline.filter(|it| it.epoch == found.epoch).or(none) else {
            let ended = found.retired.since(&unread);
            return Self {
                lineage: Lineage { unknown: true, ended, ..lineage },
                ownerless: CudaCounts::default(),
            };
        };
        let gone = baseline.processes.iter().filter(|(id, it)| !found.explains(**id, &it.counts));
        let known = baseline.ended.plus(&sum(gone.map(|it| &it.1.counts)));
        // What the kernel could not tell is not in its sum, but in the overflow.
        let told = found.retired.since(&unread);
        let (ended, abandoned) = (known.at_most(&told), known.since(&told));
        Self { lineage: Lineage { ended, abandoned, ..lineage }, ownerless: told.since(&known) }
    }
}

impl Inheritance {
    /// Of two looks, what fewer programs seem to have lost.
    pub(crate) fn least(self, other: &Self) -> Self {
        let ended = self.lineage.ended.least(&other.lineage.ended);
        let abandoned = self.lineage.abandoned.at_least(&other.lineage.abandoned);
        Self {
            lineage: Lineage { ended, abandoned, ..self.lineage },
            ownerless: self.ownerless.least(&other.ownerless),
        }
    }
}

impl Found {
    /// Whether a program goes on, or its end was not read, in which records know these counts. One
    /// that has less is another program of the same process.
    fn explains(&self, id: ProcessId, counts: &CudaCounts) -> bool {
        self.live.get(&id).is_some_and(|it| it.covers(counts))
            || self.ends.iter().any(|(ended, it)| *ended == id && it.covers(counts))
    }
}

fn sum<'a>(counts: impl Iterator<Item = &'a CudaCounts>) -> CudaCounts {
    counts.fold(CudaCounts::default(), |sum, it| sum.plus(it))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Found, Inheritance};
    use crate::attribution::fixtures::{holder, launched, process};
    use crate::model::usage::{Accounted, CudaBaseline};

    const EPOCH: u64 = 7;

    /// What records know: of process 10, and of those that have ended.
    fn baseline(known: u64, ended: u64) -> CudaBaseline {
        let accounted = Accounted {
            holder: holder("unit"),
            counts: launched(known),
            elsewhere: BTreeMap::new(),
        };
        CudaBaseline {
            epoch: EPOCH,
            processes: BTreeMap::from([(process(10), accounted)]),
            ended: launched(ended),
            ..CudaBaseline::default()
        }
    }

    fn found(live: &[(u32, u64)], ends: &[(u32, u64)], retired: u64) -> Found {
        Found {
            epoch: EPOCH,
            fresh: false,
            recorded: true,
            live: live.iter().map(|(tgid, it)| (process(*tgid), launched(*it))).collect(),
            ends: ends.iter().map(|(tgid, it)| (process(*tgid), launched(*it))).collect(),
            retired: launched(retired),
        }
    }

    /// Counts whose owner is lost, and those of ended programs that are accounted for.
    fn check(found: &Found, expected: (u64, u64)) {
        let inherited = Inheritance::new(found, Some(&baseline(50, 100)));
        let lineage = inherited.lineage;
        assert_eq!(
            (inherited.ownerless.launches(), lineage.ended.launches()),
            expected,
            "{found:?}"
        );
        assert!(!lineage.unknown);
    }

    #[test]
    fn nothing_is_lost_while_processes_run_on_or_their_ends_wait() {
        check(&found(&[(10, 80)], &[], 100), (0, 100));
        check(&found(&[], &[(10, 80)], 180), (0, 100));
        check(&found(&[(11, 5)], &[(10, 80), (12, 9)], 189), (0, 100));
    }

    #[test]
    fn an_end_that_a_dead_agent_had_read_lost_its_owner() {
        // Process 10 went on from 50 to 80; process 11 came and went unseen by records.
        check(&found(&[], &[], 180), (30, 150));
        check(&found(&[(10, 80)], &[], 125), (25, 100));
    }

    #[test]
    fn what_the_kernel_could_not_tell_is_in_the_overflow() {
        let abandoned = |retired| {
            let inherited = Inheritance::new(&found(&[], &[], retired), Some(&baseline(50, 100)));
            let lineage = inherited.lineage;
            [lineage.abandoned, lineage.ended, inherited.ownerless].map(|it| it.launches())
        };
        assert_eq!(abandoned(100), [50, 100, 0]);
        // Another one was lost with its agent: 20 of it stand for as many that overflowed.
        assert_eq!(abandoned(120), [30, 120, 0]);
        assert_eq!(abandoned(180), [0, 150, 30]);
    }

    #[test]
    fn another_program_of_a_process_is_not_the_one_that_records_know() {
        check(&found(&[(10, 20)], &[], 160), (10, 150));
    }

    #[test]
    fn what_no_record_can_know_counts_from_the_beginning() {
        let found = Found { recorded: false, ..found(&[(10, 80)], &[(11, 5)], 105) };
        let inherited = Inheritance::new(&found, None);
        assert!(!inherited.lineage.unknown && inherited.lineage.ended.is_zero());
        assert_eq!(inherited.ownerless, launched(100));
    }

    #[test]
    fn without_a_baseline_what_was_counted_is_left_alone() {
        let mut found = found(&[(10, 80)], &[(11, 5)], 105);
        let inherited = Inheritance::new(&found, None);
        assert!(inherited.lineage.unknown && inherited.ownerless.is_zero());
        assert_eq!(inherited.lineage.ended, launched(100));
        let other = CudaBaseline { epoch: EPOCH + 1, ..baseline(50, 100) };
        assert_eq!(Inheritance::new(&found, Some(&other)), inherited);
        found.fresh = true;
        assert!(!Inheritance::new(&found, Some(&other)).lineage.unknown);
    }
}
