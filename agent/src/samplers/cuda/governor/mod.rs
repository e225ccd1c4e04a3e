//! The governor keeps what tracing costs a process within its budget (`cuda.budget_percent`).
//!
//! Cost is hits times what a hit costs here. Where a process would exceed its share of the time, the
//! hottest groups of hooks of the library file that it maps are taken off and put on again for short
//! windows, several a second and at random phase; what was missed between the windows is estimated
//! from what was seen in them, and marked as sampled. Hooks are on files, so that all processes of a
//! file are sampled together. Everything here but the drivers is pure: it is told the time, the
//! counts and the CPU time of processes.

mod busy;
pub(crate) mod calibration;
pub(crate) mod cost;
pub(crate) mod driver;
pub(crate) mod gates;
mod limit;
mod process;
mod scale;
pub(crate) mod stopwatch;
#[cfg(test)]
mod tests;
mod window;

use std::collections::{BTreeMap, BTreeSet};

use agent_ebpf::COUNTERS;

use crate::model::ids::ProcessId;
use crate::model::units::BootNs;
use crate::samplers::cuda::hooks::Group;
use crate::samplers::process::decode::FileId;
use cost::{CallCosts, GOVERNED, MILLION, portion};
use process::{Process, Watch};
use scale::Span;
use window::Pace;

/// What is aimed at, as a part of the budget: the rest is for what cannot be foreseen.
const AIM: u64 = 850_000;
/// Windows may always cost this part of the budget, even where hooks that are never taken off cost
/// more than all of it: without windows nothing is known.
const LEAST: u64 = 100_000;
/// Hooks are put on for good when they would cost less than this part of the budget ...
const CALM: u64 = 700_000;
/// ... for this long; and twice as long each time that it did not last.
const CALM_NS: u64 = 3_000_000_000;
const LONGEST_CALM_NS: u64 = 60_000_000_000;
/// Shares of the time over less than this say nothing.
const SHORTEST_NS: u64 = 20_000_000;

/// What the kernel has counted of one program of a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counted {
    /// When the process was started.
    pub(crate) start: BootNs,
    pub(crate) counts: [u64; COUNTERS],
    /// Waits whose end was seen.
    pub(crate) waits_ended: u64,
}

pub(crate) type Rows = BTreeMap<ProcessId, Counted>;
/// CPU time by process; absent where it could not be asked.
pub(crate) type CpuTimes = BTreeMap<ProcessId, u64>;

/// How much of their time processes may lose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Budget {
    /// Of each process, and of each CPU, in millionths.
    pub(crate) share: u64,
    pub(crate) cpus: u64,
}

/// What should be done to the hooks of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Take these groups off, then call [`Governor::sampled`].
    TakeOff(FileId, BTreeSet<Group>),
    /// Put these groups on, then call [`Governor::restored`].
    PutOn(FileId, BTreeSet<Group>),
}

/// A window that is over.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    pub(crate) file: FileId,
    pub(crate) opened: BootNs,
    pub(crate) closed: BootNs,
    /// Hits while hooks were on and did not count.
    pub(crate) refused: u64,
    /// CPU time in the window, exactly where that is known.
    pub(crate) ran: CpuTimes,
    /// As it closed.
    pub(crate) cpu: CpuTimes,
    pub(crate) rows: Rows,
}

/// The decision, from what was seen so far.
#[derive(Debug)]
pub(crate) struct Governor {
    budget: Budget,
    files: BTreeMap<FileId, File>,
    processes: BTreeMap<ProcessId, Process>,
    /// Waits that went on when their hooks came off: how long is not known.
    waits_cut: u64,
    observed: BootNs,
    random: fastrand::Rng,
}

#[derive(Debug)]
struct File {
    costs: CallCosts,
    state: State,
    /// How long it must be calm before hooks are on for good.
    patience_ns: u64,
    restored: BootNs,
}

#[derive(Debug)]
enum State {
    On,
    /// A change is under way.
    Changing,
    Sampled(Sampled),
}

#[derive(Debug)]
struct Sampled {
    groups: BTreeSet<Group>,
    pace: Pace,
    calm_since: Option<BootNs>,
    /// No window opens any more: hooks are being put on for good.
    leaving: bool,
    closed: BootNs,
    /// Time by time in windows, in thousandths, of the last second or so.
    factor: u32,
}

impl Governor {
    pub(crate) fn new(budget: Budget, seed: u64) -> Self {
        Self {
            budget,
            files: BTreeMap::new(),
            processes: BTreeMap::new(),
            waits_cut: 0,
            observed: BootNs::default(),
            random: fastrand::Rng::with_seed(seed),
        }
    }

    /// The files that are hooked now. One that is not named any more has no hooks.
    pub(crate) fn hook(&mut self, hooked: BTreeMap<FileId, CallCosts>) {
        self.files.retain(|it, _| hooked.contains_key(it));
        for (file, costs) in hooked {
            self.files.entry(file).or_insert(File {
                costs,
                state: State::On,
                patience_ns: CALM_NS,
                restored: BootNs::default(),
            });
        }
    }

    /// The files that processes map. One that is not named may use any.
    pub(crate) fn map(&mut self, mapped: &BTreeMap<ProcessId, BTreeSet<FileId>>) {
        for (key, process) in &mut self.processes {
            process.files = mapped.get(key).cloned();
        }
    }

    /// Takes in the counts of now. Returns what should change.
    pub(crate) fn observe(&mut self, at: BootNs, rows: &Rows) -> Vec<Change> {
        let span = at.since(self.observed);
        if span < SHORTEST_NS {
            return Vec::new();
        }
        let first = self.observed == BootNs::default();
        self.observed = at;
        self.processes.retain(|key, it| rows.contains_key(key) || it.is_kept(at));
        for (key, row) in rows {
            let fresh = || Process::new(if first { row.counts } else { [0; COUNTERS] });
            self.processes.entry(*key).or_insert_with(fresh).observe(&row.counts, at, span);
        }
        let limit = self.limit();
        let costs: BTreeMap<ProcessId, CallCosts> =
            rows.keys().map(|key| (*key, self.costs_of(key))).collect();
        for (key, process) in &mut self.processes {
            if let Some(costs) = costs.get(key) {
                process.charge(process.share(costs), limit);
            }
        }
        self.decide(at, limit)
    }

    /// The earliest window: when, for how long, of which file, and which groups it puts on.
    pub(crate) fn next(&self) -> Option<(BootNs, u64, FileId, &BTreeSet<Group>)> {
        let windows = self.files.iter().filter_map(|(file, it)| match &it.state {
            State::Sampled(it) if !it.leaving => {
                Some((it.pace.next, it.pace.length_ns, *file, &it.groups))
            }
            State::On | State::Changing | State::Sampled(_) => None,
        });
        windows.min_by_key(|(at, ..)| *at)
    }

    /// Groups of a file were taken off at `at`.
    pub(crate) fn sampled(
        &mut self,
        at: BootNs,
        file: FileId,
        groups: BTreeSet<Group>,
        seen: (&Rows, &CpuTimes),
    ) {
        let known = self.files.get(&file).and_then(|it| match &it.state {
            State::Sampled(it) => Some(it.groups.clone()),
            State::On | State::Changing => None,
        });
        let groups: BTreeSet<Group> = known.into_iter().flatten().chain(groups).collect();
        self.begin_watch(at, file, &groups, seen);
        let (burn, allowance) = (self.burn(file, &groups), self.allowance(file, &groups));
        let random = self.random.u64(..);
        if let Some(it) = self.files.get_mut(&file) {
            it.state = State::Sampled(Sampled {
                groups,
                pace: Pace::new(at, burn, allowance, random),
                calm_since: None,
                leaving: false,
                closed: at,
                factor: 1_000,
            });
        }
    }

    /// Takes in a window.
    pub(crate) fn closed(&mut self, window: &Window) {
        let Some(it) = self.files.get(&window.file) else { return };
        let State::Sampled(sampled) = &it.state else { return };
        let groups = sampled.groups.clone();
        let (mut hottest, mut all) = (0, 0);
        let users = self.users_of(window.file);
        for key in users {
            let spent = self.take_window(key, window, &groups);
            all += spent;
            hottest = spent.max(hottest);
        }
        let allowance = self.allowance(window.file, &groups);
        let random = self.random.u64(..);
        let Some(it) = self.files.get_mut(&window.file) else { return };
        let State::Sampled(sampled) = &mut it.state else { return };
        let each = groups.iter().map(|group| it.costs.of(*group)).max().unwrap_or(0);
        let refused = window.refused.saturating_mul(each);
        // The hottest process has its part of the hits at closed gates too.
        let refused = portion(cost::share(hottest, all), refused);
        let open = window.closed.since(window.opened);
        sampled.pace.allow(allowance);
        sampled.pace.closed(window.closed, open, hottest + refused, random);
        sampled.note_factor(window);
    }

    /// Groups of a file are on for good since `at`.
    pub(crate) fn restored(&mut self, at: BootNs, file: FileId, cpu: &CpuTimes) {
        for key in self.users_of(file) {
            if let Some(process) = self.processes.get_mut(&key) {
                process.end_watch(at, cpu.get(&key).copied());
            }
        }
        if let Some(it) = self.files.get_mut(&file) {
            it.state = State::On;
            it.restored = at;
        }
    }

    /// Hooks could not be put on for a window: the next is tried.
    pub(crate) fn skipped(&mut self, at: BootNs, file: FileId) {
        let random = self.random.u64(..);
        if let Some(File { state: State::Sampled(sampled), .. }) = self.files.get_mut(&file) {
            sampled.pace.closed(at, 0, 0, random);
        }
    }

    /// What was missed of a process by now, which has these counts; zero where nothing was.
    pub(crate) fn missed(
        &mut self,
        at: BootNs,
        key: &ProcessId,
        counts: &[u64; COUNTERS],
    ) -> Option<[u64; COUNTERS]> {
        let process = self.processes.get_mut(key)?;
        process.bound_busy(at, counts);
        process.missed()
    }

    /// The final counts of a process: what was missed of it.
    pub(crate) fn end(
        &mut self,
        at: BootNs,
        key: &ProcessId,
        counts: &[u64; COUNTERS],
    ) -> Option<[u64; COUNTERS]> {
        let mut process = self.processes.remove(key)?;
        process.bound_busy(at, counts);
        process.end(counts)
    }

    /// The process runs another program: what was missed of the one before, up to the last window. Its
    /// last counts are not compared with a window that may be the next program's.
    pub(crate) fn replace(
        &mut self,
        at: BootNs,
        key: &ProcessId,
        counts: &[u64; COUNTERS],
    ) -> Option<[u64; COUNTERS]> {
        let mut process = self.processes.remove(key)?;
        process.bound_busy(at, counts);
        process.missed()
    }

    /// The most sampled file's time by time in windows, in thousandths; `None` = none is sampled.
    pub(crate) fn factor(&self) -> Option<u32> {
        let factors = self.files.values().filter_map(|it| match &it.state {
            State::Sampled(it) => Some(it.factor),
            State::On | State::Changing => None,
        });
        factors.max()
    }

    /// Waits of which it is not known how long they took, so far.
    pub(crate) fn waits_cut(&self) -> u64 {
        self.waits_cut
    }

    /// Whether something costs enough to be looked at more often.
    pub(crate) fn is_near(&self) -> bool {
        let near = self.budget.share / 4;
        self.processes.values().any(|it| it.share(&self.costs_in(it)) > near)
    }

    /// Whether nobody has made a call for so long that the first launch will be told.
    pub(crate) fn is_at_rest(&self, at: BootNs) -> bool {
        self.factor().is_none() && self.processes.values().all(|it| it.is_at_rest(at))
    }

    /// Processes whose CPU time tells how long they ran in a window.
    pub(crate) fn users_of(&self, file: FileId) -> Vec<ProcessId> {
        self.processes.iter().filter(|(_, it)| it.uses(file)).map(|(key, _)| *key).collect()
    }
}

// === The decision ===

impl Governor {
    fn decide(&mut self, at: BootNs, limit: u64) -> Vec<Change> {
        let files: Vec<FileId> = self.files.keys().copied().collect();
        files.into_iter().filter_map(|file| self.decide_file(at, file, limit)).collect()
    }

    fn decide_file(&mut self, at: BootNs, file: FileId, limit: u64) -> Option<Change> {
        let wanted = self.too_hot(file, limit);
        let full = self.users_of(file).iter().map(|key| self.full_share(key)).max().unwrap_or(0);
        let it = self.files.get_mut(&file)?;
        match &mut it.state {
            State::On if !wanted.is_empty() => {
                it.relapse(at);
                it.state = State::Changing;
                Some(Change::TakeOff(file, wanted))
            }
            State::Sampled(sampled) if !wanted.is_subset(&sampled.groups) => {
                let more = wanted.difference(&sampled.groups).copied().collect();
                Some(Change::TakeOff(file, more))
            }
            State::Sampled(sampled) if sampled.leaving => None,
            State::Sampled(sampled) => {
                if full > portion(CALM, limit) {
                    sampled.calm_since = None;
                    return None;
                }
                let since = *sampled.calm_since.get_or_insert(at);
                let calm = at.since(since) >= it.patience_ns;
                if !calm {
                    return None;
                }
                let groups = sampled.groups.clone();
                sampled.leaving = true;
                Some(Change::PutOn(file, groups))
            }
            State::On | State::Changing => None,
        }
    }

    /// The hottest groups of a file, so that what is left keeps every process within its limit.
    fn too_hot(&self, file: FileId, limit: u64) -> BTreeSet<Group> {
        let mut off = BTreeSet::new();
        let Some(it) = self.files.get(&file) else { return off };
        for process in self.processes.values().filter(|it| it.uses(file)) {
            if !process.is_hot(&it.costs, limit) {
                continue;
            }
            let total = process.share(&it.costs);
            // Windows need room beside what stays on.
            let room = limit / 2;
            let mut groups = GOVERNED.map(|group| (process.share_of(&it.costs, group), group));
            groups.sort_unstable();
            let mut left = total;
            for (share, group) in groups.into_iter().rev().filter(|(share, _)| *share > 0) {
                if left > room {
                    left -= share.min(left);
                    off.insert(group);
                }
            }
        }
        off
    }

    /// Share of the time that each process may lose.
    fn limit(&self) -> u64 {
        let shares = self.processes.values().map(|it| it.share(&self.costs_in(it)));
        let node = self.budget.share.saturating_mul(self.budget.cpus);
        limit::each(shares.collect(), self.budget.share, node)
    }

    fn full_share(&self, key: &ProcessId) -> u64 {
        self.processes.get(key).map_or(0, |it| it.share(&self.costs_of(key)))
    }

    /// Of the dearest file that a process uses.
    fn costs_of(&self, key: &ProcessId) -> CallCosts {
        let Some(process) = self.processes.get(key) else { return CallCosts::default() };
        self.costs_in(process)
    }

    fn costs_in(&self, process: &Process) -> CallCosts {
        let used = self.files.iter().filter(|(file, _)| process.uses(**file));
        used.fold(CallCosts::default(), |dearest, (_, it)| dearest.or(it.costs))
    }

    /// What hooks cost the hottest process while they are on.
    fn burn(&self, file: FileId, groups: &BTreeSet<Group>) -> u64 {
        let Some(it) = self.files.get(&file) else { return MILLION };
        let burn = |key: &ProcessId| {
            let process = self.processes.get(key)?;
            let shares = groups.iter().map(|group| process.share_of(&it.costs, *group));
            Some(shares.fold(0, u64::saturating_add))
        };
        self.users_of(file).iter().filter_map(burn).max().unwrap_or(MILLION)
    }

    /// What windows may cost beside the hooks that stay on.
    fn allowance(&self, file: FileId, off: &BTreeSet<Group>) -> u64 {
        let Some(it) = self.files.get(&file) else { return 1 };
        let limit = self.limit();
        let kept = |key: &ProcessId| {
            let process = self.processes.get(key)?;
            let groups = Group::ALL.into_iter().filter(|group| !off.contains(group));
            let shares = groups.map(|group| process.share_of(&it.costs, group));
            Some(shares.fold(0, u64::saturating_add))
        };
        let kept = self.users_of(file).iter().filter_map(kept).max().unwrap_or(0);
        portion(AIM, limit).saturating_sub(kept).max(portion(LEAST, limit)).max(1)
    }

    fn begin_watch(
        &mut self,
        at: BootNs,
        file: FileId,
        groups: &BTreeSet<Group>,
        (rows, cpu): (&Rows, &CpuTimes),
    ) {
        for key in self.users_of(file) {
            let (Some(process), Some(row)) = (self.processes.get_mut(&key), rows.get(&key)) else {
                continue;
            };
            let (counts, cpu_ns) = (row.counts, cpu.get(&key).copied());
            process.begin_watch(Watch { at, counts, cpu_ns }, groups);
            self.waits_cut += process.cut_waits(row, groups);
        }
    }

    /// Returns what hits in the window cost this process.
    fn take_window(&mut self, key: ProcessId, window: &Window, groups: &BTreeSet<Group>) -> u64 {
        let Some(row) = window.rows.get(&key) else { return 0 };
        let Some(it) = self.files.get(&window.file) else { return 0 };
        let State::Sampled(sampled) = &it.state else { return 0 };
        let Some(process) = self.processes.get_mut(&key) else { return 0 };
        let open = Span {
            cpu_ns: window.ran.get(&key).copied(),
            wall_ns: window.closed.since(window.opened),
        };
        let watch =
            Watch { at: window.closed, counts: row.counts, cpu_ns: window.cpu.get(&key).copied() };
        let since = row.start.max(sampled.closed);
        self.waits_cut += process.cut_waits(row, groups);
        process.take_window(&process::Seen { open, since, watch, groups, costs: &it.costs })
    }
}

impl File {
    /// Hooks are taken off again: the next time it must be calm for longer, if the last was short.
    fn relapse(&mut self, at: BootNs) {
        let lasted = at.since(self.restored);
        self.patience_ns = if self.restored != BootNs::default() && lasted < LONGEST_CALM_NS {
            (self.patience_ns * 2).min(LONGEST_CALM_NS)
        } else {
            CALM_NS
        };
    }
}

impl Sampled {
    fn note_factor(&mut self, window: &Window) {
        let open = window.closed.since(window.opened).max(1);
        let all = window.closed.since(self.closed).max(open);
        self.closed = window.closed;
        let now = u128::from(all) * 1_000 / u128::from(open);
        let now = u32::try_from(now).unwrap_or(u32::MAX);
        // Several windows together: their phase is random.
        let known = if self.factor == 1_000 { now } else { self.factor };
        self.factor = known - known / 5 + now / 5;
    }
}
