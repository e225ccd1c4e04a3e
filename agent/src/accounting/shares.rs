//! Whose the time of one watched span is.
//!
//! Active time goes to everyone who was listed at either end, because a process may start or end
//! inside the span, and to those who came and went in between, where the kernel counted their
//! launches; idle time goes to those who were there at the start.

use std::collections::{BTreeMap, BTreeSet};

use crate::accounting::{Span, devices};
use crate::attribution::{launches_between, total};
use crate::model::ids::{Holder, ProcessId};
use crate::model::readings::CudaProcess;
use crate::model::units::split;
use crate::model::usage::{Method, Reason, Share};

/// Processes of one holder on the instance; all unresolved processes are one party together.
#[derive(Debug, Default)]
struct Party {
    /// Listed at either end; `None` for one without a start time, whose launches cannot be looked
    /// up.
    processes: BTreeSet<Option<ProcessId>>,
    /// Listed at the start of the span.
    present: bool,
    /// SM weight of each process that is listed at the end.
    samples: BTreeMap<Option<ProcessId>, Option<u64>>,
    /// Launches in the span of all of them, and of those who came and went; `None` when those of any
    /// are not known.
    launches: Option<u64>,
}

type Shares = BTreeMap<Share, u64>;

/// The shares of a span, which sum to its length, by whether a kernel ran.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) active: Shares,
    pub(super) held: Shares,
}

// === impl Cut ===

impl Cut {
    /// Together: somebody who could not be resolved may be in both.
    pub(super) fn all(&self) -> Shares {
        let mut all = self.active.clone();
        for (share, nanoseconds) in &self.held {
            add(&mut all, share.clone(), *nanoseconds);
        }
        all
    }
}

/// Of a watched span.
pub(super) fn of(span: &Span<'_>) -> Cut {
    let parties = parties(span);
    let mut cut = Cut::default();
    match span.next.instance.busy {
        Some(busy) => {
            let active = busy.of(span.length());
            add_active(&mut cut.active, &parties, active);
            add_held(&mut cut.held, &parties, span.length() - active, Share::HeldIdle);
        }
        None => add_held(&mut cut.held, &parties, span.length(), Share::HeldUnknown),
    }
    cut
}

fn add(shares: &mut Shares, share: Share, nanoseconds: u64) {
    *shares.entry(share).or_default() += nanoseconds;
}

fn add_active(shares: &mut Shares, parties: &BTreeMap<Option<Holder>, Party>, active: u64) {
    if active == 0 {
        return;
    }
    if parties.is_empty() {
        return add(shares, Share::Unattributed(Reason::NoHolder), active);
    }
    let (method, weights) = weigh(parties);
    for (owner, part) in parties.keys().zip(split(active, &weights)) {
        let share = match owner {
            Some(holder) => Share::Active(holder.clone(), method),
            None => Share::Unattributed(Reason::UnresolvedProcess),
        };
        add(shares, share, part);
    }
}

/// The strongest evidence that tells all parties apart.
fn weigh(parties: &BTreeMap<Option<Holder>, Party>) -> (Method, Vec<u64>) {
    if parties.len() == 1 {
        return (Method::Exclusive, vec![1]);
    }
    let known = |weight: fn(&Party) -> Option<u64>| -> Option<Vec<u64>> {
        let weights: Vec<u64> = parties.values().map(weight).collect::<Option<_>>()?;
        weights.iter().any(|it| *it > 0).then_some(weights)
    };
    if let Some(weights) = known(Party::sm_weight) {
        (Method::Measured, weights)
    } else if let Some(weights) = known(|it| it.launches) {
        (Method::LaunchWeighted, weights)
    } else {
        (Method::EqualSplit, vec![1; parties.len()])
    }
}

/// Time in which no kernel ran, or nobody knows whether one did, in equal parts to those who were
/// there at the start.
fn add_held(
    shares: &mut Shares,
    parties: &BTreeMap<Option<Holder>, Party>,
    held: u64,
    share_of: fn(Holder) -> Share,
) {
    let present: Vec<&Option<Holder>> =
        parties.iter().filter(|(_, it)| it.present).map(|(owner, _)| owner).collect();
    if present.is_empty() {
        return if held > 0 {
            add(shares, Share::Free, held)
        };
    }
    for (owner, part) in present.iter().zip(split(held, &vec![1; present.len()])) {
        let share = match owner {
            Some(holder) => share_of(holder.clone()),
            None => Share::Unattributed(Reason::UnresolvedProcess),
        };
        add(shares, share, part);
    }
}

/// Everyone who is listed at either end; the key `None` is whoever could not be resolved.
fn parties(span: &Span<'_>) -> BTreeMap<Option<Holder>, Party> {
    let mut parties: BTreeMap<Option<Holder>, Party> = BTreeMap::new();
    let mut before = BTreeMap::new();
    for process in span.previous.processes {
        before.insert(process.tgid, process.process);
        let party = parties.entry(holder_of(span, process.process)).or_default();
        party.present = true;
        party.processes.insert(process.process);
    }
    for process in span.next.processes {
        // One that the driver still lists after it has gone from `/proc` is the one listed before.
        let id = process.process.or_else(|| before.get(&process.tgid).copied().flatten());
        let party = parties.entry(holder_of(span, id)).or_default();
        party.processes.insert(id);
        party.samples.insert(id, process.sm_weight);
    }
    for party in parties.values_mut() {
        party.launches = total(party.processes.iter().map(|it| launches(span, *it)));
    }
    add_visitors(span, &mut parties);
    parties
}

/// Who launched here and is listed at neither end. Where the launches of anybody else are not known,
/// nothing says how much of the time was theirs.
fn add_visitors(span: &Span<'_>, parties: &mut BTreeMap<Option<Holder>, Party>) {
    if parties.values().any(|it| it.launches.is_none()) {
        return;
    }
    let listed: BTreeSet<ProcessId> =
        parties.values().flat_map(|it| &it.processes).copied().flatten().collect();
    for (id, program) in &span.next.readings.cuda.processes {
        if listed.contains(id) || !is_here(span, program) {
            continue;
        }
        if let Some(launches) = launches(span, Some(*id)).filter(|it| *it > 0) {
            let party = parties.entry(holder_of(span, Some(*id))).or_default();
            party.launches = Some(party.launches.unwrap_or(0).saturating_add(launches));
        }
    }
}

/// Whether a program works on the instance: it named it, or it named none and there is no other.
fn is_here(span: &Span<'_>, program: &CudaProcess) -> bool {
    let devices = span.next.readings.nvml.devices.values();
    let only = devices.map(|it| it.instances.len()).sum::<usize>() == 1;
    let named = program.home.filter(|it| it.uuid.is_some());
    named.map_or(only, |it| devices::names(it, &span.next.instance.id))
}

/// By either tick: a process is often resolved only at one of them.
fn holder_of(span: &Span<'_>, process: Option<ProcessId>) -> Option<Holder> {
    let process = process?;
    let [previous, next] = [span.previous, span.next].map(|it| it.readings.holders.get(&process));
    next.or(previous).cloned()
}

fn launches(span: &Span<'_>, process: Option<ProcessId>) -> Option<u64> {
    launches_between(Some(span.previous.readings), span.next.readings, process?)
}

// === impl Party ===

impl Party {
    /// SM samples of the span; `None` when those of any process are missing, also because it ended or
    /// was never listed.
    fn sm_weight(&self) -> Option<u64> {
        let complete = self.samples.len() == self.processes.len() && !self.samples.is_empty();
        total(self.samples.values().copied()).filter(|_| complete)
    }
}
