//! Which running totals of the kernel the meter is on, and how much of them is in activities: so that
//! over a restart of the agent, and over a pause of tracing, each call counts once.

use super::cuda::{CudaMeter, Seen};
use crate::model::ids::{Holder, HolderKind, ProcessId};
use crate::model::readings::{CudaCounts, Readings};
use crate::model::units::BootNs;
use crate::model::usage::{Accounted, CudaBaseline};

#[derive(Clone, Debug, Default)]
pub(super) struct Totals {
    /// Where an earlier agent stopped, until the first reading says whether its counts go on.
    baseline: Option<CudaBaseline>,
    /// 0 = there was no count yet.
    epoch: u64,
    /// Final counts of all programs that have ended.
    pub(super) ended: CudaCounts,
    /// Calls without an owner that were taken in.
    overflow: CudaCounts,
    /// What activities that were closed account for, until it is stored.
    pub(super) accounted: Option<CudaBaseline>,
}

impl Totals {
    pub(super) fn after(baseline: Option<CudaBaseline>) -> Self {
        Self { baseline, ..Self::default() }
    }

    /// Of a program whose end could not be told `overflow` has everything, or soon will: what is in
    /// activities already is not counted there again.
    pub(super) fn lose(&mut self, seen: &Seen) {
        if !seen.ended {
            self.overflow = self.overflow.plus(&seen.counted());
        }
    }
}

impl CudaMeter {
    /// What is accounted for by everything that was closed so far; once for each close. Stored with
    /// it or not at all.
    pub fn take_baseline(&mut self) -> Option<CudaBaseline> {
        self.totals.accounted.take()
    }

    /// Other maps count now, or the first ones: totals that were seen before say nothing.
    pub(super) fn enter(&mut self, next: &Readings) {
        let lineage = &next.cuda.lineage;
        if lineage.epoch == 0 || lineage.epoch == self.totals.epoch {
            return;
        }
        for seen in self.seen.values_mut() {
            seen.settle(&mut self.open);
        }
        self.seen.clear();
        let baseline = self.totals.baseline.take().filter(|it| it.epoch == lineage.epoch);
        self.totals = Totals { epoch: lineage.epoch, ended: lineage.ended, ..Totals::default() };
        match baseline {
            Some(baseline) => self.go_on(baseline, next),
            None if lineage.unknown => self.begin_amid(next),
            None => {}
        }
        self.totals.accounted = Some(self.baseline(self.since.unwrap_or(next.at)));
    }

    /// The hooks were on all the time.
    fn go_on(&mut self, baseline: CudaBaseline, next: &Readings) {
        self.totals.overflow = baseline.overflow.plus(&next.cuda.lineage.abandoned);
        if self.since.is_none() && baseline.at < next.at {
            self.since = Some(baseline.at);
            self.watched_ns = next.at.since(baseline.at);
        }
        let seen = |it: Accounted| Seen {
            counts: it.counts,
            elsewhere: it.elsewhere,
            ..Seen::new(it.holder)
        };
        let known =
            baseline.processes.into_iter().filter(|(id, it)| goes_on(*id, &it.counts, next));
        self.seen = known.map(|(id, it)| (id, seen(it))).collect();
    }

    /// What was counted before may be in records of another spool: only what comes is counted.
    fn begin_amid(&mut self, next: &Readings) {
        self.totals.overflow = next.cuda.overflow;
        for (id, program) in &next.cuda.processes {
            let holder = next.holders.get(id).cloned().unwrap_or_else(nobody);
            let elsewhere =
                program.elsewhere.iter().map(|(device, part)| (device.ordinal, *part)).collect();
            let seen = Seen {
                program: program.program,
                counts: program.counts,
                estimated: program.estimated,
                elsewhere,
                ..Seen::new(holder)
            };
            self.seen.insert(*id, seen);
        }
    }

    /// So that the totals of the ledger are those of the node.
    pub(super) fn count_ownerless(&mut self, overflow: &CudaCounts) {
        let added = overflow.since(&self.totals.overflow);
        if !added.is_zero() {
            self.open.entry((nobody(), None)).or_default().add(&added, false);
            self.totals.overflow = self.totals.overflow.at_least(overflow);
        }
    }

    pub(super) fn baseline(&self, at: BootNs) -> CudaBaseline {
        let accounted = |it: &Seen| Accounted {
            holder: it.holder.clone(),
            counts: it.counted(),
            elsewhere: it.elsewhere.clone(),
        };
        let running = self.seen.iter().filter(|(_, it)| !it.ended);
        CudaBaseline {
            epoch: self.totals.epoch,
            at,
            processes: running.map(|(id, it)| (*id, accounted(it))).collect(),
            ended: self.totals.ended,
            overflow: self.totals.overflow,
        }
    }
}

/// Whether a program of which records know these counts is in a reading. One that has less is
/// another program of the same process.
fn goes_on(id: ProcessId, counts: &CudaCounts, next: &Readings) -> bool {
    let left = next.cuda.replaced.iter().filter(|it| it.0 == id).map(|it| &it.1);
    let mut programs = left.chain(next.cuda.processes.get(&id));
    programs.any(|it| it.counts.covers(counts))
}

/// To whom calls belong that lost their owner.
fn nobody() -> Holder {
    Holder {
        kind: HolderKind::User,
        id: "unattributed".into(),
        tenant: "unattributed".into(),
        namespace: None,
        pod: None,
        container: None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{CudaMeter, nobody};
    use crate::attribution::fixtures;
    use crate::model::ids::Holder;
    use crate::model::readings::{CudaProcess, Readings};
    use crate::model::units::BootNs;
    use crate::model::usage::CudaBaseline;

    const EPOCH: u64 = 7;

    fn reading(at: u64, launches: u64) -> Readings {
        let mut readings = fixtures::readings(at, 1);
        fixtures::hold(&mut readings, 0, 10, None);
        fixtures::trace(&mut readings, 10, launches);
        readings.cuda.lineage.epoch = EPOCH;
        readings
    }

    /// What records have when process 10 has made five calls and another one has ended after eight.
    fn baseline() -> CudaBaseline {
        let mut meter = CudaMeter::default();
        let mut first = reading(1_000, 5);
        let ended = fixtures::cuda_process(1_000, fixtures::launched(8));
        first.cuda.processes.insert(fixtures::process(11), CudaProcess { exited: true, ..ended });
        first.cuda.overflow = fixtures::launched(2);
        meter.advance(None, &first);
        assert_eq!(meter.close(BootNs(2_000)).len(), 3);
        meter.take_baseline().unwrap()
    }

    /// What an agent that begins with this reading counts: holder and launches.
    fn check(change: impl FnOnce(&mut Readings), expected: &[(Holder, u64)]) {
        let mut meter = CudaMeter::after(Some(baseline()));
        let mut next = reading(3_000, 9);
        next.cuda.overflow = fixtures::launched(2);
        change(&mut next);
        meter.advance(None, &next);
        let closed = meter.close(BootNs(4_000));
        let found: Vec<_> =
            closed.iter().map(|it| (it.holder.clone(), it.counts.launches())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_records_have_is_known() {
        let baseline = baseline();
        assert_eq!((baseline.epoch, baseline.at), (EPOCH, BootNs(2_000)));
        let accounted: Vec<_> =
            baseline.processes.iter().map(|(id, it)| (id.tgid, it.counts.launches())).collect();
        assert_eq!(accounted, [(10, 5)]);
        assert_eq!((baseline.ended.launches(), baseline.overflow.launches()), (8, 2));
    }

    #[test]
    fn a_later_agent_counts_what_came_since() {
        let holder = || fixtures::holder("unit-10");
        check(|_| {}, &[(holder(), 4)]);
        check(|it| it.cuda.overflow = fixtures::launched(5), &[(holder(), 4), (nobody(), 3)]);
        check(
            |it| {
                it.cuda.processes.clear();
                it.cuda.overflow = fixtures::launched(10);
                it.cuda.lineage.abandoned = fixtures::launched(5);
            },
            &[(nobody(), 3)],
        );
        // Gone from /proc: it still belongs to who it was.
        check(|it| it.holders.clear(), &[(holder(), 4)]);
    }

    #[test]
    fn another_program_than_the_one_that_records_know_counts_from_zero() {
        let holder = || fixtures::holder("unit-10");
        let run = |it: &mut Readings, launches| fixtures::trace(it, 10, launches);
        check(|it| run(it, 3), &[(holder(), 3)]);
        check(
            |it| {
                let left = fixtures::cuda_process(1_000, fixtures::launched(7));
                it.cuda.replaced = vec![(fixtures::process(10), left)];
                run(it, 3);
            },
            &[(holder(), 2), (holder(), 3)],
        );
    }

    /// Program 1 was seen with 50 calls; then it is lost with 80, and `overflow` grows at once or one
    /// reading later.
    fn check_lost(change: &dyn Fn(&mut Readings), grows_at: u64, expected: &[(Holder, u64)]) {
        let mut meter = CudaMeter::default();
        for at in 1..=4 {
            let mut next = reading(at * 1_000, 50);
            let seen = next.cuda.processes.get_mut(&fixtures::process(10)).unwrap();
            seen.program = Some(1);
            if at > 1 {
                change(&mut next);
            }
            next.cuda.overflow = fixtures::launched(if at >= grows_at { 80 } else { 0 });
            meter.advance(None, &next);
        }
        let mut found: BTreeMap<Holder, u64> = BTreeMap::new();
        for it in meter.close(BootNs(5_000)) {
            *found.entry(it.holder).or_default() += it.counts.launches();
        }
        assert_eq!(found.into_iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_program_whose_end_could_not_be_told_counts_once() {
        let holder = || fixtures::holder("unit-10");
        let runs = |launches, program| {
            move |it: &mut Readings| {
                fixtures::trace(it, 10, launches);
                it.cuda.processes.get_mut(&fixtures::process(10)).unwrap().program = program;
            }
        };
        let gone = |it: &mut Readings| it.cuda.processes.clear();
        for grows_at in [2, 3] {
            check_lost(&gone, grows_at, &[(holder(), 50), (nobody(), 30)]);
            check_lost(&runs(0, None), grows_at, &[(holder(), 50), (nobody(), 30)]);
            check_lost(&runs(9, Some(2)), grows_at, &[(holder(), 59), (nobody(), 30)]);
            check_lost(&runs(99, Some(2)), grows_at, &[(holder(), 149), (nobody(), 30)]);
        }
    }

    #[test]
    fn counts_of_other_maps_are_all_new() {
        let holder = fixtures::holder("unit-10");
        check(|it| it.cuda.lineage.epoch += 1, &[(holder, 9), (nobody(), 2)]);
    }

    #[test]
    fn counts_of_which_nothing_is_known_are_left_alone() {
        check(
            |it| {
                it.cuda.lineage.epoch += 1;
                it.cuda.lineage.unknown = true;
            },
            &[],
        );
    }

    #[test]
    fn an_estimate_is_not_what_the_kernel_has_counted() {
        let mut meter = CudaMeter::default();
        let mut next = reading(1_000, 50);
        let process = next.cuda.processes.get_mut(&fixtures::process(10)).unwrap();
        process.estimated = fixtures::launched(45);
        meter.advance(None, &next);
        assert_eq!(meter.close(BootNs(2_000))[0].counts.launches(), 50);
        let baseline = meter.take_baseline().unwrap();
        assert_eq!(baseline.processes[&fixtures::process(10)].counts.launches(), 5);
    }
}
