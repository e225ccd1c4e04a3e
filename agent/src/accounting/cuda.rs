//! Call counts per process, turned into activities per holder and device.
//!
//! The kernel counts running totals per program; the ledger wants what each holder did in a span.
//! Every count ends in exactly one activity: those of a process that nobody could resolve go to its
//! user, and a program that has ended counts once more with its final totals. What is not known is
//! the device, and then the activity has none.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::accounting::devices::{self, Devices};
use crate::accounting::totals::Totals;
use crate::model::ids::{DeviceId, Holder, HolderKind, ProcessId};
use crate::model::readings::{CudaCounts, CudaDevice, CudaProcess, Readings};
use crate::model::units::BootNs;
use crate::model::usage::{CudaActivity, CudaBaseline};

/// What has been counted since the last `close`. Bounded by the processes that the kernel maps hold.
#[derive(Clone, Debug, Default)]
pub struct CudaMeter {
    /// Start of the open span; `None` before the first tick.
    pub(super) since: Option<BootNs>,
    /// How much of it every hook was on, up to the last reading.
    pub(super) watched_ns: u64,
    last: BootNs,
    /// Every hook was on at the last reading.
    on: bool,
    /// The last totals of every process that was seen.
    pub(super) seen: BTreeMap<ProcessId, Seen>,
    pub(super) open: BTreeMap<Key, Open>,
    pub(super) totals: Totals,
}

pub(super) type Key = (Holder, Option<DeviceId>);

/// A process, as the program that it runs now.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) holder: Holder,
    /// `None` = not known.
    pub(super) program: Option<u64>,
    pub(super) counts: CudaCounts,
    /// The part of them that the kernel does not know.
    pub(super) estimated: CudaCounts,
    /// Parts of `counts` by ordinal of the device.
    pub(super) elsewhere: BTreeMap<Option<u32>, CudaCounts>,
    pub(super) devices: Devices,
    /// These are the final counts.
    pub(super) ended: bool,
    /// Counted in the open span on the one device that the process uses, whichever that is.
    pub(super) unplaced: Open,
}

#[derive(Clone, Debug)]
pub(super) struct Open {
    counts: CudaCounts,
    memory_known: bool,
}

// === impl CudaMeter ===

impl CudaMeter {
    /// Goes on where an earlier agent has stopped, if the same counts go on.
    #[must_use]
    pub fn after(baseline: Option<CudaBaseline>) -> Self {
        Self { totals: Totals::after(baseline), ..Self::default() }
    }

    /// Takes in what each process did since it was last seen.
    pub fn advance(&mut self, previous: Option<&Readings>, next: &Readings) {
        self.enter(next);
        self.since.get_or_insert(previous.map_or(next.at, |it| it.at));
        self.watched_ns += previous.map_or(0, |it| watched(it, next));
        self.last = next.at;
        self.on = next.cuda.tracing.on && next.cuda.tracing.sampling.is_none();
        for (id, program) in &next.cuda.replaced {
            self.replace(*id, program, next);
        }
        for (id, process) in &next.cuda.processes {
            let holder = next.holders.get(id);
            self.count(*id, process, holder, next);
        }
        // Where the previous reading lists it says nothing about a program that came later.
        let is_new = |id| next.cuda.replaced.iter().any(|(replaced, _)| *replaced == id);
        let before = previous.into_iter().flat_map(devices::listed).filter(|it| !is_new(it.0));
        for (id, device) in before.chain(devices::listed(next)) {
            if let Some(seen) = self.seen.get_mut(&id) {
                seen.devices.note(device);
            }
        }
        self.let_go(next);
        self.count_ownerless(&next.cuda.overflow);
    }

    /// What was counted since the last `close`, as if the span ended at `at`.
    #[must_use]
    pub fn open(&self, at: BootNs) -> Vec<CudaActivity> {
        let Some(start) = self.since else { return Vec::new() };
        let mut open = self.open.clone();
        for seen in self.seen.values() {
            seen.place(&mut open);
        }
        let tail = if self.on { at.since(self.last.max(start)) } else { 0 };
        let watched_ns = (self.watched_ns + tail).min(at.since(start));
        open.into_iter()
            .map(|((holder, device), open)| CudaActivity {
                holder,
                start,
                end: at,
                device,
                counts: open.counts,
                watched_ns,
                memory_known: open.memory_known,
            })
            .collect()
    }

    /// Whether something was counted, and the open span is at least `length` long.
    #[must_use]
    pub fn is_due(&self, at: BootNs, length: Duration) -> bool {
        let open = self.since.map_or(0, |since| at.since(since));
        u128::from(open) >= length.as_nanos()
            && (!self.open.is_empty() || self.seen.values().any(|it| !it.unplaced.is_empty()))
    }

    /// Ends the span at `at`: one activity per holder and device for which a call was made in it.
    pub fn close(&mut self, at: BootNs) -> Vec<CudaActivity> {
        if self.since.is_none_or(|it| it >= at) {
            return Vec::new();
        }
        let closed = self.open(at);
        self.since = Some(at);
        self.watched_ns = 0;
        self.open.clear();
        self.seen.values_mut().for_each(|it| it.unplaced = Open::default());
        self.totals.accounted = Some(self.baseline(at));
        closed
    }

    /// The last counts of a program belong to who the process was while it ran; the next program
    /// counts from zero.
    fn replace(&mut self, id: ProcessId, program: &CudaProcess, next: &Readings) {
        let counted = program.counts.since(&program.estimated);
        self.part(id, program);
        let before = self.seen.get(&id).map(|it| it.holder.clone());
        // Its user may have changed with the program, its group has not.
        let now = next.holders.get(&id).filter(|it| it.kind != HolderKind::User).cloned();
        self.count(id, program, before.or(now).as_ref(), next);
        if let Some(mut seen) = self.seen.remove(&id) {
            seen.settle(&mut self.open);
            self.totals.ended = self.totals.ended.plus(&counted);
            self.seen.insert(id, Seen::new(seen.holder));
        }
    }

    fn count(
        &mut self,
        id: ProcessId,
        program: &CudaProcess,
        holder: Option<&Holder>,
        next: &Readings,
    ) {
        self.part(id, program);
        let holder = |known: Option<&Seen>| {
            let holder = holder.or(known.map(|it| &it.holder));
            holder.cloned().unwrap_or_else(|| user(program.uid))
        };
        let mut seen = match self.seen.remove(&id) {
            Some(mut seen) => {
                let holder = holder(Some(&seen));
                if holder != seen.holder {
                    seen.settle(&mut self.open);
                    seen.holder = holder;
                }
                seen
            }
            None => Seen::new(holder(None)),
        };
        if program.exited && !seen.ended {
            seen.ended = true;
            self.totals.ended = self.totals.ended.plus(&program.counts.since(&program.estimated));
        }
        for (device, part) in seen.advance(program) {
            let device = devices::named(&device, next);
            let open = self.open.entry((seen.holder.clone(), device)).or_default();
            open.add(&part, program.memory.is_some());
        }
        self.seen.insert(id, seen);
    }

    /// A process may run another program than was seen, although nobody heard of an end.
    fn part(&mut self, id: ProcessId, program: &CudaProcess) {
        if let Some(seen) = self.seen.get_mut(&id).filter(|it| it.is_another(program)) {
            seen.settle(&mut self.open);
            self.totals.lose(seen);
            seen.begin_anew();
        }
    }

    /// A process that has ended is on no further device. A tracer that is on lists every other: the
    /// end of one that is missing could not be told.
    fn let_go(&mut self, next: &Readings) {
        for (id, seen) in &mut self.seen {
            if next.cuda.processes.get(id).is_none_or(|it| it.exited) {
                seen.settle(&mut self.open);
            }
        }
        if next.cuda.tracing.on {
            let gone = |id: &ProcessId| !next.cuda.processes.contains_key(id);
            for (_, seen) in self.seen.extract_if(.., |id, _| gone(id)) {
                self.totals.lose(&seen);
            }
        }
    }
}

/// How much of the time between two readings every hook was on.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of a span, which is positive and short; only what is sampled passes here"
)]
fn watched(previous: &Readings, next: &Readings) -> u64 {
    let span = next.at.since(previous.at);
    if !previous.cuda.tracing.on || !next.cuda.tracing.on {
        return 0;
    }
    let off = |it: &Readings| it.cuda.tracing.unwatched_ns;
    let span = span.saturating_sub(off(next).saturating_sub(off(previous)));
    match &next.cuda.tracing.sampling {
        Some(sampling) => (span as f64 / sampling.factor.max(1.0)) as u64,
        None => span,
    }
}

/// The last resort, which always exists: a process belongs to the user who runs it.
fn user(uid: u32) -> Holder {
    let id = uid.to_string();
    Holder {
        kind: HolderKind::User,
        tenant: format!("uid:{id}").into(),
        id: id.into(),
        namespace: None,
        pod: None,
        container: None,
    }
}

// === impl Seen ===

impl Seen {
    pub(super) fn new(holder: Holder) -> Self {
        Self {
            holder,
            program: None,
            counts: CudaCounts::default(),
            estimated: CudaCounts::default(),
            elsewhere: BTreeMap::new(),
            devices: Devices::default(),
            ended: false,
            unplaced: Open::default(),
        }
    }

    /// As the kernel has counted them.
    pub(super) fn counted(&self) -> CudaCounts {
        self.counts.since(&self.estimated)
    }

    /// Whether this one counted nothing of what was seen.
    fn is_another(&self, program: &CudaProcess) -> bool {
        match program.program {
            Some(it) => self.program.is_some_and(|seen| seen != it),
            None => program.counts.is_zero(),
        }
    }

    /// The kernel counts from zero. What is estimated is told of the process, and goes on.
    fn begin_anew(&mut self) {
        self.program = None;
        self.counts = self.estimated;
        self.elsewhere.clear();
    }

    /// What came on top, by the device that the process names. What it does not name is in
    /// `unplaced`, unless it uses several devices: then the driver's list does not tell either.
    fn advance(&mut self, program: &CudaProcess) -> Vec<(CudaDevice, CudaCounts)> {
        // A count may be read a little lower than before, as time is: nothing was started anew.
        let mut rest = program.counts.since(&self.counts);
        self.counts = self.counts.at_least(&program.counts);
        self.estimated = program.estimated;
        self.program = program.program.or(self.program);
        let mut parts = Vec::new();
        for (device, counts) in &program.elsewhere {
            let before = self.elsewhere.entry(device.ordinal).or_default();
            // Read a moment apart, the parts may be ahead of the whole: the next reading has both.
            let part = counts.since(before).at_most(&rest);
            *before = before.plus(&part);
            rest = rest.since(&part);
            parts.push((*device, part));
        }
        let home = program.home.filter(|it| it.uuid.is_some());
        match home.or((!program.elsewhere.is_empty()).then(CudaDevice::default)) {
            Some(home) => parts.push((home, rest)),
            None => self.unplaced.add(&rest, program.memory.is_some()),
        }
        parts.retain(|(_, part)| !part.is_zero());
        parts
    }

    /// Adds what has no device yet to the only one that the driver lists for the process.
    fn place(&self, open: &mut BTreeMap<Key, Open>) {
        if !self.unplaced.is_empty() {
            let key = (self.holder.clone(), self.devices.only());
            let Open { counts, memory_known } = &self.unplaced;
            open.entry(key).or_default().add(counts, *memory_known);
        }
    }

    pub(super) fn settle(&mut self, open: &mut BTreeMap<Key, Open>) {
        self.place(open);
        self.unplaced = Open::default();
    }
}

// === impl Open ===

impl Open {
    fn is_empty(&self) -> bool {
        self.counts.is_zero()
    }

    pub(super) fn add(&mut self, counts: &CudaCounts, memory_known: bool) {
        if !counts.is_zero() {
            self.counts = self.counts.plus(counts);
            self.memory_known &= memory_known;
        }
    }
}

impl Default for Open {
    fn default() -> Self {
        Self { counts: CudaCounts::default(), memory_known: true }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::{CudaMeter, user};
    use crate::attribution::fixtures;
    use crate::model::ids::{DeviceId, Holder};
    use crate::model::readings::{
        Counter, CudaDevice, CudaMemory, CudaProcess, Readings, Sampling,
    };
    use crate::model::units::BootNs;

    /// Ticks a second apart, each changed by a step; gives (holder, launches, on one device).
    fn meter(ticks: &[&dyn Fn(&mut Readings)]) -> Vec<(Holder, u64, bool)> {
        let mut meter = CudaMeter::default();
        let mut previous = None;
        let mut at = 0;
        for change in ticks {
            at += 1_000;
            let mut next = fixtures::readings(at, 2);
            change(&mut next);
            meter.advance(previous.as_ref(), &next);
            previous = Some(next);
        }
        meter
            .close(BootNs(at + 1))
            .into_iter()
            .map(|it| (it.holder, it.counts.launches(), it.device.is_some()))
            .collect()
    }

    fn check(ticks: &[&dyn Fn(&mut Readings)], expected: &[(&str, u64, bool)]) {
        let expected: Vec<_> = expected
            .iter()
            .map(|(name, launches, one)| (fixtures::holder(name), *launches, *one))
            .collect();
        assert_eq!(meter(ticks), expected);
    }

    #[test]
    fn differences_of_totals() {
        check(
            &[
                &|it| {
                    fixtures::hold(it, 0, 10, None);
                    fixtures::trace(it, 10, 5);
                },
                &|it| {
                    fixtures::hold(it, 0, 10, None);
                    fixtures::trace(it, 10, 7);
                },
            ],
            &[("unit-10", 7, true)],
        );
    }

    #[test]
    fn the_last_counts_of_a_process_belong_to_who_it_was() {
        check(
            &[
                &|it| {
                    fixtures::hold(it, 0, 10, None);
                    fixtures::trace(it, 10, 5);
                },
                // Gone from /proc and from the driver's list; then seen again by mistake.
                &|it| fixtures::trace(it, 10, 9),
                &|it| fixtures::trace(it, 10, 9),
            ],
            &[("unit-10", 9, true)],
        );
    }

    #[test]
    fn a_restarted_tracer_counts_from_zero() {
        let off = |it: &mut Readings| it.cuda.tracing.on = false;
        let launch = |epoch, count| {
            move |it: &mut Readings| {
                fixtures::hold(it, 0, 10, None);
                fixtures::hold(it, 1, 10, None);
                fixtures::trace(it, 10, count);
                it.cuda.lineage.epoch = epoch;
            }
        };
        check(&[&launch(1, 5), &off, &launch(2, 2)], &[("unit-10", 7, false)]);
        check(&[&launch(1, 5), &off, &launch(2, 6)], &[("unit-10", 11, false)]);
        check(&[&launch(1, 5), &off, &launch(1, 6)], &[("unit-10", 6, false)]);
    }

    #[test]
    fn a_count_that_is_lower_than_before_adds_nothing_and_takes_nothing_back() {
        let read = |launches, busy| {
            move |it: &mut Readings| {
                fixtures::hold(it, 0, 10, None);
                fixtures::trace(it, 10, launches);
                let process = it.cuda.processes.get_mut(&fixtures::process(10)).unwrap();
                process.counts[Counter::BusyUpperNs] = busy;
            }
        };
        check(&[&read(1_000, 500), &read(1_001, 499)], &[("unit-10", 1_001, true)]);
        check(&[&read(50, 0), &read(48, 0), &read(51, 0)], &[("unit-10", 51, true)]);
    }

    #[test]
    fn what_a_program_did_before_exec_counts_for_who_ran_it() {
        check(
            &[
                &|it| {
                    fixtures::hold(it, 0, 10, None);
                    fixtures::trace(it, 10, 5);
                },
                &|it| {
                    let ended = fixtures::cuda_process(1_000, fixtures::launched(8));
                    it.cuda.replaced = vec![
                        (fixtures::process(10), ended.clone()),
                        (fixtures::process(10), ended),
                    ];
                    fixtures::hold(it, 1, 10, None);
                    it.holders.insert(fixtures::process(10), fixtures::holder("next"));
                    fixtures::trace(it, 10, 9);
                },
            ],
            &[("next", 9, true), ("unit-10", 8, false), ("unit-10", 8, true)],
        );
    }

    #[test]
    fn last_counts_that_are_lower_add_nothing() {
        check(
            &[
                &|it| {
                    fixtures::hold(it, 0, 10, None);
                    fixtures::trace(it, 10, 50);
                },
                &|it| {
                    let ended = fixtures::cuda_process(1_000, fixtures::launched(48));
                    it.cuda.replaced = vec![(fixtures::process(10), ended)];
                    fixtures::hold(it, 0, 10, None);
                    fixtures::trace(it, 10, 9);
                },
            ],
            &[("unit-10", 59, true)],
        );
    }

    /// Home and elsewhere at each reading, and what is at home, at the other device and nowhere.
    fn check_devices(told: bool, readings: &[(u64, u64)], expected: &[(Option<u32>, u64)]) {
        let named = |index: u32| CudaDevice {
            ordinal: Some(index),
            uuid: told.then(|| [u8::try_from(index).unwrap(); 16]),
        };
        let id = |index: u32| {
            let pair = format!("{index:02x}");
            let text = [4, 2, 2, 2, 6].map(|it| pair.repeat(it)).join("-");
            DeviceId(format!("GPU-{text}").into())
        };
        let mut meter = CudaMeter::default();
        for (at, (whole, elsewhere)) in (1..).zip(readings) {
            let mut next = fixtures::readings(at * 1_000, 2);
            for index in 0..2 {
                let device = next.nvml.devices.remove(&fixtures::device(index)).unwrap();
                next.nvml.devices.insert(id(index), device);
            }
            let process = CudaProcess {
                home: Some(named(0)),
                elsewhere: vec![(named(1), fixtures::launched(*elsewhere))],
                ..fixtures::cuda_process(1_000, fixtures::launched(*whole))
            };
            next.cuda.processes.insert(fixtures::process(10), process);
            meter.advance(None, &next);
        }
        let closed = meter.close(BootNs(9_000));
        let found: BTreeMap<_, _> =
            closed.into_iter().map(|it| (it.device, it.counts.launches())).collect();
        let expected = expected.iter().map(|(device, count)| (device.map(id), *count));
        assert_eq!(found, expected.collect());
    }

    #[test]
    fn a_process_of_several_devices_is_counted_on_each() {
        check_devices(true, &[(10, 4)], &[(Some(0), 6), (Some(1), 4)]);
        check_devices(true, &[(10, 4), (15, 4)], &[(Some(0), 11), (Some(1), 4)]);
        check_devices(false, &[(10, 4)], &[(None, 10)]);
    }

    #[test]
    fn a_part_that_was_read_before_the_whole_waits_for_it() {
        check_devices(true, &[(10, 12)], &[(Some(1), 10)]);
        check_devices(true, &[(10, 12), (12, 12)], &[(Some(1), 12)]);
    }

    #[test]
    fn a_span_says_how_much_of_it_was_watched() {
        let watched = |change: &dyn Fn(usize, &mut Readings)| {
            let mut meter = CudaMeter::default();
            let mut previous = None;
            for tick in 0..3_usize {
                let mut next = fixtures::readings(1_000 + 100 * tick as u64, 1);
                fixtures::trace(&mut next, 10, 5);
                change(tick, &mut next);
                meter.advance(previous.as_ref(), &next);
                previous = Some(next);
            }
            let closed = meter.close(BootNs(1_200)).remove(0);
            (closed.span(), closed.watched_ns, closed.memory_known)
        };
        let sampled = |tick: usize, it: &mut Readings| {
            let sampling = Sampling { factor: 4.0, reason: String::new() };
            it.cuda.tracing.sampling = (tick == 2).then_some(sampling);
        };
        let off = |tick: usize, it: &mut Readings| it.cuda.tracing.on = tick != 2;
        let looks = |tick: usize, it: &mut Readings| {
            it.cuda.tracing.unwatched_ns = [7, 7, 37][tick];
        };
        let known = |_: usize, it: &mut Readings| {
            let process = it.cuda.processes.get_mut(&fixtures::process(10)).unwrap();
            process.memory = Some(CudaMemory::default());
        };
        assert_eq!(watched(&|_, _| {}), (200, 200, false));
        assert_eq!(watched(&sampled), (200, 125, false));
        assert_eq!(watched(&off), (200, 100, false));
        assert_eq!(watched(&looks), (200, 170, false));
        assert_eq!(watched(&known), (200, 200, true));
    }

    #[test]
    fn a_process_without_a_holder_belongs_to_its_user() {
        let found = meter(&[&|it| fixtures::trace(it, 10, 5)]);
        assert_eq!(found, [(user(1_000), 5, false)]);
    }

    #[test]
    fn an_empty_span_closes_nothing() {
        let mut meter = CudaMeter::default();
        let mut next = fixtures::readings(1_000, 1);
        fixtures::trace(&mut next, 10, 5);
        meter.advance(None, &next);
        assert!(meter.close(BootNs(1_000)).is_empty());
        assert!(meter.is_due(BootNs(2_000), Duration::from_nanos(1_000)));
        assert!(!meter.is_due(BootNs(1_500), Duration::from_nanos(1_000)));
        assert_eq!(meter.close(BootNs(2_000))[0].counts.launches(), 5);
        assert!(!meter.is_due(BootNs(9_000), Duration::from_nanos(1_000)));
    }
}
