//! Who gets the time, by what is known at the two ends of a span.

use std::collections::BTreeMap;

use super::{Meter, Observation, Part, unobserved};
use crate::accounting::tiles::{LONGEST_NS, OpenTiles};
use crate::attribution::{self, fixtures};
use crate::classify::{self, Policy};
use crate::config::Allocations;
use crate::model::readings::{Health, NvmlState, Readings};
use crate::model::units::BootNs;
use crate::model::usage::{Class, Method, Reason, Share, Tile};

mod calls;
mod energy;
mod properties;

pub(super) fn observe(previous: Option<&Observation>, readings: Readings) -> Observation {
    let views = attribution::attribute(previous.map(|it| &it.readings), &readings);
    let policy = Policy::new(Allocations::None);
    let mut verdicts = BTreeMap::new();
    for device in readings.nvml.devices.values() {
        for instance in &device.instances {
            let view = &views[&instance.id];
            let verdict = classify::classify(&policy, readings.at, device, instance, view);
            verdicts.insert(instance.id.clone(), verdict);
        }
    }
    Observation { readings, views, verdicts }
}

/// Of a meter that remembers nothing.
fn slice(previous: &Observation, next: &Observation) -> Vec<Tile> {
    Meter::default().slice(previous, next)
}

type Change<'a> = &'a dyn Fn(&mut Readings);

/// The tile of device 0 between two ticks, 1,000 ns apart.
fn tile(before: Change<'_>, after: Change<'_>) -> Tile {
    let [mut previous, mut next] = [1_000, 2_000].map(|at| fixtures::readings(at, 1));
    before(&mut previous);
    after(&mut next);
    let previous = observe(None, previous);
    let next = observe(Some(&previous), next);
    let mut tiles = slice(&previous, &next);
    assert_eq!(tiles.len(), 1);
    assert!(tiles[0].conserves());
    tiles.remove(0)
}

fn check(before: Change<'_>, after: Change<'_>, expected: &[(Share, u64)]) {
    assert_eq!(tile(before, after).shares, expected.iter().cloned().collect());
}

fn active(name: &str, method: Method) -> Share {
    Share::Active(fixtures::holder(name), method)
}

fn held(name: &str) -> Share {
    Share::HeldIdle(fixtures::holder(name))
}

fn nothing(_: &mut Readings) {}

/// Two holders at 50 percent, with SM weights where given.
fn two(sm: [Option<u64>; 2]) -> impl Fn(&mut Readings) {
    move |it| {
        fixtures::busy(it, 0, 50);
        for (tgid, weight) in [10, 11].into_iter().zip(sm) {
            fixtures::hold(it, 0, tgid, Some(1));
            if let Some(weight) = weight {
                fixtures::sm(it, 0, tgid, weight);
            }
        }
    }
}

#[test]
fn nobody_there() {
    check(&nothing, &nothing, &[(Share::Free, 1_000)]);
    check(
        &nothing,
        &|it| fixtures::busy(it, 0, 30),
        &[(Share::Unattributed(Reason::NoHolder), 300), (Share::Free, 700)],
    );
    check(&nothing, &|it| fixtures::instance(it, 0).busy = None, &[(Share::Free, 1_000)]);
}

#[test]
fn one_holder_has_it_all() {
    let hold = |it: &mut Readings| fixtures::hold(it, 0, 10, Some(1));
    let work = |it: &mut Readings| {
        hold(it);
        fixtures::busy(it, 0, 33);
    };
    check(&hold, &work, &[(active("unit-10", Method::Exclusive), 330), (held("unit-10"), 670)]);
    check(&hold, &hold, &[(held("unit-10"), 1_000)]);
}

#[test]
fn a_span_is_active_for_who_came_or_went_and_idle_for_who_was_there() {
    let work = |it: &mut Readings| {
        fixtures::hold(it, 0, 10, Some(1));
        fixtures::busy(it, 0, 40);
    };
    check(&nothing, &work, &[(active("unit-10", Method::Exclusive), 400), (Share::Free, 600)]);
    check(
        &work,
        &|it| fixtures::busy(it, 0, 40),
        &[(active("unit-10", Method::Exclusive), 400), (held("unit-10"), 600)],
    );
}

#[test]
fn several_holders_by_the_strongest_evidence() {
    let before = two([None, None]);
    let halves = [(held("unit-10"), 250), (held("unit-11"), 250)];
    let with = |parts: [(Share, u64); 2]| -> Vec<(Share, u64)> {
        parts.into_iter().chain(halves.clone()).collect()
    };
    check(
        &before,
        &two([Some(30), Some(10)]),
        &with([
            (active("unit-10", Method::Measured), 375),
            (active("unit-11", Method::Measured), 125),
        ]),
    );
    let equal = with([
        (active("unit-10", Method::EqualSplit), 250),
        (active("unit-11", Method::EqualSplit), 250),
    ]);
    check(&before, &two([Some(30), None]), &equal);
    check(&before, &two([Some(0), Some(0)]), &equal);
    check(
        &before,
        &|it| {
            two([Some(30), None])(it);
            fixtures::trace(it, 10, 1);
            fixtures::trace(it, 11, 4);
        },
        &with([
            (active("unit-10", Method::LaunchWeighted), 100),
            (active("unit-11", Method::LaunchWeighted), 400),
        ]),
    );
}

#[test]
fn launches_of_a_process_that_exited_still_weigh() {
    check(
        &two([None, None]),
        &|it| {
            fixtures::hold(it, 0, 10, Some(1));
            fixtures::busy(it, 0, 50);
            fixtures::trace(it, 10, 1);
            fixtures::trace(it, 11, 4);
        },
        &[
            (active("unit-10", Method::LaunchWeighted), 100),
            (active("unit-11", Method::LaunchWeighted), 400),
            (held("unit-10"), 250),
            (held("unit-11"), 250),
        ],
    );
}

/// A process of `unit-TGID` that launched and exited between two ticks, never listed.
fn visit(readings: &mut Readings, tgid: u32, launches: u64) {
    fixtures::trace(readings, tgid, launches);
    let holder = fixtures::holder(&format!("unit-{tgid}"));
    readings.holders.insert(fixtures::process(tgid), holder);
    readings.cuda.processes.get_mut(&fixtures::process(tgid)).unwrap().exited = true;
}

#[test]
fn who_came_and_went_between_two_ticks_has_its_part() {
    check(
        &nothing,
        &|it| {
            visit(it, 12, 7);
            fixtures::busy(it, 0, 30);
        },
        &[(active("unit-12", Method::Exclusive), 300), (Share::Free, 700)],
    );
    let beside = |it: &mut Readings, launches| {
        fixtures::hold(it, 0, 10, Some(1));
        fixtures::trace(it, 10, launches);
    };
    check(
        &|it| beside(it, 5),
        &|it| {
            beside(it, 8);
            fixtures::sm(it, 0, 10, 40);
            visit(it, 12, 1);
            fixtures::busy(it, 0, 40);
        },
        &[
            (active("unit-10", Method::LaunchWeighted), 300),
            (active("unit-12", Method::LaunchWeighted), 100),
            (held("unit-10"), 600),
        ],
    );
    // Nothing tells its part from that of one whose launches are not known.
    check(
        &|it| fixtures::hold(it, 0, 10, Some(1)),
        &|it| {
            fixtures::hold(it, 0, 10, Some(1));
            visit(it, 12, 1);
            fixtures::busy(it, 0, 40);
        },
        &[(active("unit-10", Method::Exclusive), 400), (held("unit-10"), 600)],
    );
    // It launched nothing.
    check(&nothing, &|it| visit(it, 12, 0), &[(Share::Free, 1_000)]);
}

#[test]
fn a_visitor_of_another_device_has_no_part_of_this_one() {
    let [mut before, mut after] = [1_000, 2_000].map(|at| fixtures::readings(at, 2));
    fixtures::busy(&mut before, 0, 30);
    fixtures::busy(&mut after, 0, 30);
    visit(&mut after, 12, 7);
    let previous = observe(None, before);
    let next = observe(Some(&previous), after);
    let nobodys = Share::Unattributed(Reason::NoHolder);
    assert!(slice(&previous, &next)[0].shares.contains_key(&nobodys), "its device is not known");
}

#[test]
fn what_could_not_be_resolved_is_nobodys() {
    let stranger = |it: &mut Readings| {
        fixtures::hold(it, 0, 10, Some(1));
        fixtures::unresolved(it, 0, 11);
        fixtures::busy(it, 0, 50);
    };
    check(
        &stranger,
        &stranger,
        &[
            (active("unit-10", Method::EqualSplit), 250),
            (held("unit-10"), 250),
            (Share::Unattributed(Reason::UnresolvedProcess), 500),
        ],
    );
    // Listed for a moment longer than it lives: still the process that was listed before.
    check(
        &|it| fixtures::hold(it, 0, 10, Some(1)),
        &|it| {
            fixtures::unresolved(it, 0, 10);
            fixtures::instance(it, 0).processes.as_mut().unwrap()[0].process = None;
            fixtures::busy(it, 0, 50);
        },
        &[(active("unit-10", Method::Exclusive), 500), (held("unit-10"), 500)],
    );
}

#[test]
fn activity_that_cannot_be_measured_is_not_idle() {
    check(
        &|it| fixtures::hold(it, 0, 10, Some(1)),
        &|it| fixtures::instance(it, 0).busy = None,
        &[(Share::HeldUnknown(fixtures::holder("unit-10")), 1_000)],
    );
}

#[test]
fn what_cannot_be_read_is_unobserved() {
    let reason = |change: Change<'_>, reason: Reason, class: Class| {
        for (before, after) in [(change, &nothing as Change<'_>), (&nothing, change)] {
            let found = tile(before, after);
            assert_eq!(found.shares, BTreeMap::from([(Share::Unobserved(reason), 1_000)]));
            assert_eq!(found.classes, BTreeMap::from([(class, 1_000)]));
        }
    };
    let health = |health: Health| {
        move |it: &mut Readings| {
            it.nvml.devices.get_mut(&fixtures::device(0)).unwrap().health = health;
        }
    };
    reason(&health(Health::Hung), Reason::GpuHung, Class::Down);
    reason(&health(Health::Lost), Reason::GpuLost, Class::Down);
    reason(&health(Health::ResetRequired), Reason::ResetRequired, Class::Down);
    reason(&health(Health::Released), Reason::Released, Class::Unknown);
    reason(
        &|it| it.nvml.state = NvmlState::Released("until noon".to_owned()),
        Reason::Released,
        Class::Unknown,
    );
    reason(&|it| fixtures::instance(it, 0).processes = None, Reason::NoProcessList, Class::Unknown);
    reason(
        &|it| it.nvml.state = NvmlState::Failed("driver gone".to_owned()),
        Reason::NvmlFailed,
        Class::Unknown,
    );
}

#[test]
fn energy_and_memory() {
    let memory = |bytes: u64| {
        move |it: &mut Readings| {
            fixtures::instance(it, 0).memory_used_bytes = Some(bytes);
        }
    };
    let found = tile(&memory(5), &memory(9));
    assert_eq!(found.energy.map(|it| it.mj), Some(1_000));
    assert_eq!(found.memory.map(|it| (it.byte_ns, it.peak_bytes)), Some((5_000, 9)));
    let reset = |it: &mut Readings| {
        it.nvml.devices.get_mut(&fixtures::device(0)).unwrap().counters.energy_mj = Some(3);
    };
    assert_eq!(tile(&nothing, &reset).energy, None);
    let unread = |it: &mut Readings| fixtures::instance(it, 0).memory_used_bytes = None;
    assert_eq!(tile(&unread, &nothing).memory, None);
}

#[test]
fn a_host_that_slept_watched_nothing() {
    let previous = observe(None, fixtures::readings(0, 1));
    let next = observe(Some(&previous), fixtures::readings(301_000_000_000, 1));
    let found = slice(&previous, &next);
    assert_eq!(found[0].shares.keys().collect::<Vec<_>>(), [&Share::Unobserved(Reason::AgentDown)]);
    assert!(slice(&next, &previous).is_empty(), "time does not go back");
}

#[test]
fn a_long_unobserved_span_is_cut_into_tiles() {
    let mut open = OpenTiles::default();
    let end = BootNs(2 * LONGEST_NS + 5);
    let part = Part { id: fixtures::id(0), slices: None };
    open.add(unobserved(&part, BootNs(0), end, Reason::AgentDown));
    let spans: Vec<u64> = open.close_all().iter().map(Tile::span).collect();
    assert_eq!(spans, [LONGEST_NS, LONGEST_NS, 5]);
}
