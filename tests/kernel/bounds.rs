//! Every bound, reached: totals stay exact, and what lost its owner is counted.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command, Stdio};

use agent::accounting::cuda::CudaMeter;
use agent::clock;
use agent::model::readings::{CudaReadings, NvmlReadings, NvmlState, Readings};
use agent::samplers::cuda::Tracer;
use nix::sys::signal::Signal;

use crate::rig::{Build, Node, exited, next_pid_is, only, without_wait};

#[test]
fn beyond_the_last_row_totals_stay_exact() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer_for(1);
    let mut first = node.start("--rounds 10 --hold");
    let second = node.run("--rounds 20");
    let first = first.truth();
    let readings = tracer.read(clock::boot());
    assert_eq!(readings.processes.len(), 1);
    let (_, process) = only(&readings, first.tgid);
    assert_eq!(without_wait(process.counts), first.counts());
    assert_eq!(without_wait(readings.overflow), second.counts());
    assert!(readings.tracing.lost["calls"] > second.counts().launches());
}

#[test]
fn a_row_is_free_again_after_an_exit() {
    let node = Node::new(Build::Push);
    let mut tracer = node.tracer_for(1);
    for rounds in [3, 4, 5] {
        let truth = node.run(&format!("--rounds {rounds}"));
        let (_, process) = exited(&mut tracer, truth.tgid);
        assert_eq!(without_wait(process.counts), truth.counts());
    }
    assert!(tracer.read(clock::boot()).overflow.is_zero());
}

#[test]
fn an_exit_that_finds_the_ring_full_is_reported_all_the_same() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer_for(RECORDS * 2);
    fill_ring(&mut tracer);
    let truth = node.run("--rounds 9");
    let readings = tracer.read(clock::boot());
    let (_, process) = only(&readings, truth.tgid);
    assert!(process.exited);
    assert_eq!(without_wait(process.counts), truth.counts());
    assert!(readings.overflow.is_zero());
    assert!(readings.tracing.losses() > 0, "lost records are counted");
    let next = tracer.read(clock::boot());
    assert!(next.processes.keys().all(|it| it.tgid != truth.tgid), "its row is gone");
}

#[test]
fn a_successor_never_inherits_counts_that_nobody_has_read() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer_for(RECORDS * 2);
    fill_ring(&mut tracer);
    let truth = node.run("--rounds 9");
    let mut successor = loop {
        next_pid_is(truth.tgid);
        let mut child = sleeper();
        if child.id() == truth.tgid {
            break child;
        }
        end(&mut child);
    };
    let readings = tracer.read(clock::boot());
    assert!(readings.processes.keys().all(|it| it.tgid != truth.tgid), "{readings:#?}");
    assert_eq!(without_wait(readings.overflow), truth.counts());
    end(&mut successor);
}

/// Nothing could tell of an end, and part of what it ends was counted before.
#[test]
fn a_program_that_was_read_before_its_end_was_lost_counts_once() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer_for(RECORDS * 2);
    let then = format!("--then=--library {} --rounds 3", node.library().display());
    let mut workload = node.start_with(&["--launches-per-second", "200", &then]);
    let mut meter = CudaMeter::default();
    let mut first = tracer.read(clock::boot());
    while first.processes.values().all(|it| it.counts.launches() == 0) {
        first = tracer.read(clock::boot());
    }
    let mut launches = count(&mut meter, first);
    fill_ring(&mut tracer);
    workload.signal(Signal::SIGTERM);
    let truths = workload.finish_all();
    for _ in 0..3 {
        let readings = tracer.read(clock::boot());
        assert!(readings.replaced.is_empty(), "the ring was full");
        launches += count(&mut meter, readings);
    }
    assert_eq!(launches, truths.iter().map(|it| it.counts().launches()).sum::<u64>());
}

/// Launches in activities, all of the time so far when the last reading was counted.
fn count(meter: &mut CudaMeter, cuda: CudaReadings) -> u64 {
    let at = clock::boot();
    let nvml =
        NvmlReadings { state: NvmlState::Ok, sees_processes: true, devices: BTreeMap::new() };
    meter.advance(None, &Readings { at, nvml, cuda, holders: BTreeMap::new() });
    meter.close(clock::boot()).iter().map(|it| it.counts.launches()).sum()
}

/// More than the ring holds.
const RECORDS: u32 = 2_000;

/// Lets more known processes end than the ring has room for, and reads none of the records.
fn fill_ring(tracer: &mut Tracer) {
    let mut children: Vec<Child> = (0..RECORDS).map(|_| sleeper()).collect();
    tracer.track(&children.iter().map(Child::id).collect::<BTreeSet<_>>());
    children.iter_mut().for_each(end);
}

fn sleeper() -> Child {
    let mut command = Command::new("sleep");
    command.arg("60").stdin(Stdio::null()).spawn().expect("`sleep` can be started")
}

fn end(child: &mut Child) {
    child.kill().expect("it sleeps");
    child.wait().expect("a child can be waited for");
}
