//! What the governor knows of one process.

use std::collections::BTreeSet;

use agent_ebpf::{COUNTERS, Counter, SILENCE_NS};

use super::Counted;
use super::busy::Unknown;
use super::cost::{self, CallCosts, portion};
use super::scale::{Scale, Span};
use crate::model::units::BootNs;
use crate::samplers::cuda::hooks::Group;
use crate::samplers::process::decode::FileId;

const BUSY: usize = Counter::BusyUpperNs as usize;
const WAITS: usize = Counter::Synchronizations as usize;
const SECOND_NS: u64 = 1_000_000_000;
/// A process that has no row any more is forgotten after this time.
const KEPT_NS: u64 = 30_000_000_000;
/// Part of the limit that a process gets at any time; the rest is what it may use in advance.
const GIVEN: u64 = 900_000;

#[derive(Clone, Debug)]
pub(super) struct Process {
    /// `None` = not known.
    pub(super) files: Option<BTreeSet<FileId>>,
    /// Counted and missed, when it was last observed.
    total: [u64; COUNTERS],
    /// Calls since then, by group, and over how long.
    calls: [u64; Group::ALL.len()],
    span_ns: u64,
    observed: BootNs,
    /// Cost beyond what the limit gives, in nanoseconds: what it may have in advance is bounded.
    excess_ns: u64,
    /// What is known of the time in which its calls were seen in windows only.
    scale: Option<Scale>,
    watch: Option<Watch>,
    /// While the kernel does not know when its work is done.
    busy: Option<Unknown>,
    /// What this has added to the upper bound of its busy time.
    busy_ns: u64,
    /// When it last made a call.
    called: BootNs,
    /// Groups that are, or were last, sampled.
    sampled: BTreeSet<Group>,
    /// Waits whose end will not be seen.
    waits_cut: u64,
}

/// A moment from which on no call of a sampled group counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watch {
    pub(super) at: BootNs,
    pub(super) counts: [u64; COUNTERS],
    pub(super) cpu_ns: Option<u64>,
}

impl Watch {
    fn since(&self, last: &Self) -> Span {
        Span {
            cpu_ns: self.cpu_ns.zip(last.cpu_ns).map(|(to, from)| to.saturating_sub(from)),
            wall_ns: self.at.since(last.at),
        }
    }
}

/// One window, as one process saw it.
#[derive(Debug)]
pub(super) struct Seen<'a> {
    /// No call of a process that is new was missed before this.
    pub(super) since: BootNs,
    pub(super) open: Span,
    /// As it closed.
    pub(super) watch: Watch,
    pub(super) groups: &'a BTreeSet<Group>,
    pub(super) costs: &'a CallCosts,
}

impl Process {
    pub(super) fn new(counts: [u64; COUNTERS]) -> Self {
        Self {
            files: None,
            total: counts,
            calls: [0; Group::ALL.len()],
            span_ns: 0,
            observed: BootNs::default(),
            excess_ns: 0,
            scale: None,
            watch: None,
            busy: None,
            busy_ns: 0,
            called: BootNs::default(),
            sampled: BTreeSet::new(),
            waits_cut: 0,
        }
    }

    pub(super) fn uses(&self, file: FileId) -> bool {
        self.files.as_ref().is_none_or(|it| it.contains(&file))
    }

    /// Whether its final counts may still be asked for, although it has no row.
    pub(super) fn is_kept(&self, at: BootNs) -> bool {
        self.scale.is_some() && at.since(self.observed) < KEPT_NS
    }

    pub(super) fn observe(&mut self, counts: &[u64; COUNTERS], at: BootNs, span_ns: u64) {
        self.observed = at;
        let total = self.plus_missed(counts);
        let added = difference(&total, &self.total);
        let recent = Group::ALL.map(|group| cost::calls(&added, group));
        if recent.iter().any(|it| *it > 0) || self.called == BootNs::default() {
            self.called = at;
        }
        if self.watch.is_some() {
            // Estimates come in steps: the mean of some of them is the rate.
            self.blend(recent, span_ns);
        } else {
            (self.calls, self.span_ns) = (recent, span_ns);
        }
        self.total = total;
    }

    fn blend(&mut self, recent: [u64; Group::ALL.len()], span_ns: u64) {
        const MEMORY_NS: u64 = 1_000_000_000;
        let kept = MEMORY_NS.saturating_sub(span_ns);
        let old_span = self.span_ns.min(kept);
        for (calls, new) in self.calls.iter_mut().zip(recent) {
            let old = u128::from(*calls) * u128::from(old_span) / u128::from(self.span_ns.max(1));
            *calls = u64::try_from(old).unwrap_or(u64::MAX).saturating_add(new);
        }
        self.span_ns = old_span + span_ns;
    }

    /// Share of the time that its calls of a group would cost it if all of them were hit.
    pub(super) fn share_of(&self, costs: &CallCosts, group: Group) -> u64 {
        cost::share(self.calls[group as usize].saturating_mul(costs.of(group)), self.span_ns)
    }

    pub(super) fn share(&self, costs: &CallCosts) -> u64 {
        let shares = Group::ALL.into_iter().map(|it| self.share_of(costs, it));
        shares.fold(0, u64::saturating_add)
    }

    /// Takes in what its hits would have cost since it was last observed, if all are on.
    pub(super) fn charge(&mut self, share: u64, limit: u64) {
        let span = self.span_ns.min(SECOND_NS);
        let given = portion(portion(GIVEN, limit), span);
        let level = self.excess_ns.saturating_add(portion(share, span));
        self.excess_ns = level.saturating_sub(given).min(SECOND_NS);
    }

    /// Whether hooks must be taken off. A burst of calls is no reason, while over ten seconds the
    /// limit is kept.
    pub(super) fn is_hot(&self, costs: &CallCosts, limit: u64) -> bool {
        let advance = portion(limit, SECOND_NS);
        let share = self.share(costs);
        if self.watch.is_some() { share > limit } else { self.excess_ns > advance }
    }

    pub(super) fn begin_watch(&mut self, watch: Watch, groups: &BTreeSet<Group>) {
        self.lose_sight(watch, groups);
        let scale = self.scale.get_or_insert_default();
        // Of groups that were sampled already nothing has counted since.
        if let Some(last) = self.watch.replace(watch) {
            scale.unwatched(watch.since(&last));
        }
        self.sampled.clone_from(groups);
        self.excess_ns = 0;
    }

    /// Returns what its hits in the window cost.
    pub(super) fn take_window(&mut self, seen: &Seen<'_>) -> u64 {
        let scale = self.scale.get_or_insert_default();
        let born = Watch { at: seen.since, counts: [0; COUNTERS], cpu_ns: None };
        let last = self.watch.replace(seen.watch).unwrap_or(born);
        self.sampled.clone_from(seen.groups);
        scale.unwatched(seen.watch.since(&last).less(seen.open));
        let counted = sampled_only(&difference(&seen.watch.counts, &last.counts), seen.groups);
        let spent = cost::spent(&counted, seen.costs, seen.groups.iter().copied());
        scale.watched(&counted, seen.open, spent);
        self.lose_sight(last, seen.groups);
        spent
    }

    /// The hooks of these groups are off. Returns how many waits more are under way of which the end will
    /// not be seen.
    pub(super) fn cut_waits(&mut self, row: &Counted, groups: &BTreeSet<Group>) -> u64 {
        if !groups.contains(&Group::Waits) {
            return 0;
        }
        let under_way = row.counts[WAITS].saturating_sub(row.waits_ended);
        let more = under_way.saturating_sub(self.waits_cut);
        self.waits_cut = self.waits_cut.max(under_way);
        more
    }

    /// The kernel does not know any more whether work is pending.
    fn lose_sight(&mut self, from: Watch, groups: &BTreeSet<Group>) {
        if groups.contains(&Group::Launches) {
            let fresh = || Unknown::new(from.at, from.counts[BUSY]);
            self.busy.get_or_insert_with(fresh).again();
        }
    }

    /// Takes in how long the kernel says it was busy at most.
    pub(super) fn bound_busy(&mut self, at: BootNs, counts: &[u64; COUNTERS]) {
        let Some(unknown) = &mut self.busy else { return };
        let (added, more) = unknown.advance(at, counts[BUSY], self.watch.is_none());
        self.busy_ns = self.busy_ns.saturating_add(added);
        if !more {
            self.busy = None;
        }
    }

    pub(super) fn is_at_rest(&self, at: BootNs) -> bool {
        at.since(self.called) > 2 * SILENCE_NS
    }

    /// Every call counts again since `at`.
    pub(super) fn end_watch(&mut self, at: BootNs, cpu_ns: Option<u64>) {
        let (Some(last), Some(scale)) = (self.watch.take(), self.scale.as_mut()) else { return };
        let now = Watch { at, counts: last.counts, cpu_ns };
        scale.unwatched(now.since(&last));
        scale.finish(&[0; COUNTERS]);
    }

    pub(super) fn missed(&self) -> Option<[u64; COUNTERS]> {
        let mut missed = *self.scale.as_ref()?.missed();
        missed[BUSY] = self.busy_ns;
        Some(missed)
    }

    /// What was missed when it ended with these counts.
    pub(super) fn end(mut self, counts: &[u64; COUNTERS]) -> Option<[u64; COUNTERS]> {
        let (Some(watch), Some(scale)) = (self.watch, self.scale.as_mut()) else {
            return self.missed();
        };
        let counted = difference(counts, &watch.counts);
        scale.finish(&sampled_only(&counted, &self.sampled));
        self.missed()
    }

    fn plus_missed(&self, counts: &[u64; COUNTERS]) -> [u64; COUNTERS] {
        let Some(scale) = &self.scale else { return *counts };
        std::array::from_fn(|it| counts[it].saturating_add(scale.missed()[it]))
    }
}

fn difference(now: &[u64; COUNTERS], before: &[u64; COUNTERS]) -> [u64; COUNTERS] {
    std::array::from_fn(|it| now[it].saturating_sub(before[it]))
}

/// What counts in windows only.
fn sampled_only(counts: &[u64; COUNTERS], groups: &BTreeSet<Group>) -> [u64; COUNTERS] {
    let mut kept = [0; COUNTERS];
    for index in groups.iter().flat_map(|it| cost::counters(*it)) {
        kept[index] = counts[index];
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::{COUNTERS, Counted, Group, Process, WAITS};
    use crate::model::units::BootNs;

    #[test]
    fn a_wait_that_outlasts_its_hooks_is_lost_once() {
        let mut process = Process::new([0; COUNTERS]);
        let mut cut = |begun, waits_ended, group| {
            let mut counts = [0; COUNTERS];
            counts[WAITS] = begun;
            let row = Counted { start: BootNs(1), counts, waits_ended };
            process.cut_waits(&row, &[group].into())
        };
        assert_eq!(cut(5, 3, Group::Launches), 0, "their hooks are on");
        assert_eq!([cut(5, 3, Group::Waits), cut(5, 3, Group::Waits)], [2, 0]);
        assert_eq!(cut(9, 6, Group::Waits), 1);
        assert_eq!([cut(9, 7, Group::Waits), cut(9, 6, Group::Waits)], [0, 0], "it was seen late");
    }
}
