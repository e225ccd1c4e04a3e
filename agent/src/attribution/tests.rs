//! Views by what is missing: one source taken away at a time.

use super::{attribute, fixtures, memory};
use crate::model::readings::{CudaMemory, Readings};
use crate::model::units::BootNs;
use crate::model::usage::{HolderView, InstanceView, LastLaunch};

fn view(previous: Option<&Readings>, next: &Readings) -> InstanceView {
    attribute(previous, next).remove(&fixtures::id(0)).unwrap()
}

fn only_holder(view: InstanceView) -> HolderView {
    let mut holders = view.holders.unwrap();
    assert_eq!(holders.len(), 1);
    holders.remove(0)
}

/// Two processes of one holder, both traced; the second tick has five launches more.
fn pair() -> (Readings, Readings) {
    let [mut previous, mut next] = [1_000, 2_000].map(|at| fixtures::readings(at, 1));
    for (readings, launches) in [(&mut previous, 2), (&mut next, 7)] {
        for tgid in [10, 11] {
            fixtures::hold(readings, 0, tgid, Some(100));
            readings.holders.insert(fixtures::process(tgid), fixtures::holder("unit"));
            fixtures::sm(readings, 0, tgid, 30);
        }
        fixtures::trace(readings, 10, launches);
        fixtures::trace(readings, 11, 0);
    }
    (previous, next)
}

#[test]
fn processes_of_a_holder_are_summed() {
    let (previous, next) = pair();
    let found = only_holder(view(Some(&previous), &next));
    assert_eq!(found.processes, 2);
    assert_eq!(found.memory_bytes, Some(200));
    assert_eq!(found.sm_weight, Some(60));
    assert_eq!(found.launches, Some(5));
    assert_eq!(found.last_launch, LastLaunch::At(BootNs(2_000)));
    assert_eq!(found.cuda.map(|it| it.launches()), Some(7));
}

#[test]
fn a_partial_sum_is_unknown() {
    let (previous, mut next) = pair();
    let listed = fixtures::instance(&mut next, 0).processes.as_mut().unwrap();
    listed[0].memory_bytes = None;
    listed[1].sm_weight = None;
    let found = only_holder(view(Some(&previous), &next));
    assert_eq!((found.memory_bytes, found.sm_weight), (None, None));
    assert_eq!(found.launches, Some(5));
}

#[test]
fn silence_is_evidence_only_when_traced_in_full() {
    let check = |change: &dyn Fn(&mut Readings)| {
        let (previous, mut next) = pair();
        change(&mut next);
        let found = only_holder(view(Some(&previous), &next));
        assert_eq!((found.launches, found.last_launch), (None, LastLaunch::Unknown));
    };
    check(&|it| it.cuda.tracing.on = false);
    check(&|it| it.cuda.processes.retain(|id, _| *id != fixtures::process(11)));
    check(&|it| {
        it.cuda.processes.get_mut(&fixtures::process(11)).unwrap().fully_hooked = false;
    });
}

#[test]
fn launches_need_a_tick_before() {
    let (mut previous, next) = pair();
    assert_eq!(only_holder(view(None, &next)).launches, None);
    previous.cuda.tracing.on = false;
    assert_eq!(only_holder(view(Some(&previous), &next)).launches, None);
}

#[test]
fn unresolved_processes_are_counted() {
    let mut next = fixtures::readings(2_000, 1);
    fixtures::unresolved(&mut next, 0, 10);
    fixtures::unresolved(&mut next, 0, 11);
    fixtures::instance(&mut next, 0).processes.as_mut().unwrap()[0].process = None;
    let found = view(None, &next);
    assert_eq!((found.holders, found.unresolved_processes), (Some(Vec::new()), 2));
}

#[test]
fn no_list_is_not_an_empty_list() {
    let mut next = fixtures::readings(2_000, 2);
    fixtures::instance(&mut next, 0).processes = None;
    let views = attribute(None, &next);
    assert_eq!(views[&fixtures::id(0)].holders, None);
    assert_eq!(views[&fixtures::id(1)].holders, Some(Vec::new()));
}

#[test]
fn launches_of_a_program_that_was_replaced_count_too() {
    let (previous, mut next) = pair();
    let ended = fixtures::cuda_process(1_000, fixtures::launched(10));
    next.cuda.replaced = vec![(fixtures::process(10), ended)];
    // Eight of the program before, then seven of the one that runs.
    assert_eq!(only_holder(view(Some(&previous), &next)).launches, Some(15));
}

#[test]
fn traced_memory_is_known_of_all_or_of_none() {
    let check = |change: &dyn Fn(&mut Readings), expected: Option<(u64, u64)>| {
        let (_, mut next) = pair();
        for (tgid, live_bytes) in [(10, 700), (11, 9)] {
            let known = CudaMemory { live_bytes, peak_bytes: 1_000, ..CudaMemory::default() };
            next.cuda.processes.get_mut(&fixtures::process(tgid)).unwrap().memory = Some(known);
        }
        change(&mut next);
        let found = memory(&next);
        let of_unit = found[&fixtures::holder("unit")];
        assert_eq!(of_unit.map(|it| (it.live_bytes, it.peak_bytes)), expected);
    };
    check(&|_| {}, Some((709, 2_000)));
    let second = fixtures::process(11);
    check(&|it| it.cuda.processes.get_mut(&second).unwrap().memory = None, None);
    check(&|it| drop(it.cuda.processes.remove(&second)), None);
    check(&|it| it.cuda.tracing.on = false, None);
    let partly = Some(CudaMemory { at_least: true, ..CudaMemory::default() });
    check(&|it| it.cuda.processes.get_mut(&second).unwrap().memory = partly, None);
}
