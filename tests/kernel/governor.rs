//! What tracing costs a process is bounded: hooks of hot calls go on and off, counts stay near the
//! truth and say so, and are exact again when the load is over.

use std::time::Duration;

use agent::clock;
use agent::model::readings::{Counter, CudaProcess, CudaReadings};
use agent::samplers::cuda::Tracer;

use crate::rig::{Build, Node, Workload, exited, now, only, without_wait};

/// Costs several percent of a CPU wherever a trap costs more than 100 ns.
const HOT: &str = "--launches-per-second 300000 --hold";
const WARM: &str = "--launches-per-second 2000 --hold";

/// Reads until it holds.
fn until(tracer: &mut Tracer, what: &str, holds: impl Fn(&CudaReadings) -> bool) -> CudaReadings {
    let deadline = now() + Duration::from_secs(30);
    loop {
        let readings = tracer.read(clock::boot());
        if holds(&readings) {
            return readings;
        }
        assert!(now() < deadline, "{what} has not happened in 30 s: {:?}", readings.tracing);
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn sampled(readings: &CudaReadings) -> bool {
    readings.tracing.sampling.as_ref().is_some_and(|it| it.factor > 1.5)
}

/// Launches that were made and launches that were counted.
fn launches(tracer: &mut Tracer, load: &mut Workload) -> (u64, u64) {
    let truth = load.truth().called("cuLaunchKernel");
    (truth, process(tracer, load).counts[Counter::KernelLaunches])
}

fn process(tracer: &mut Tracer, load: &Workload) -> CudaProcess {
    only(&tracer.read(clock::boot()), load.tgid()).1
}

/// What is counted while the hooks are on for a part of the time is near the truth. The bound is
/// wide: other programs run on this machine too.
fn check_near(tracer: &mut Tracer, loads: &mut [&mut Workload]) {
    let before: Vec<_> = loads.iter_mut().map(|it| launches(tracer, it)).collect();
    std::thread::sleep(Duration::from_secs(6));
    for (load, (true_before, counted_before)) in loads.iter_mut().zip(before) {
        let (truth, counted) = launches(tracer, load);
        let (truth, counted) = (truth - true_before, counted - counted_before);
        let bounds = truth * 6 / 10..truth * 16 / 10;
        assert!(bounds.contains(&counted), "{counted} counted of {truth}");
    }
}

#[test]
fn a_hot_process_is_sampled_and_its_counts_are_near_the_truth() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.governed_tracer();
    let mut load = node.start(HOT);
    until(&mut tracer, "sampling", sampled);
    check_near(&mut tracer, &mut [&mut load]);
    assert!(!process(&mut tracer, &load).fully_hooked, "silence between windows says nothing");
}

#[test]
fn all_processes_of_a_file_are_sampled_together_and_exact_again_when_the_hot_one_ends() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.governed_tracer();
    let (mut hot, mut warm) = (node.start(HOT), node.start(WARM));
    until(&mut tracer, "sampling", sampled);
    check_near(&mut tracer, &mut [&mut hot, &mut warm]);
    hot.kill();
    until(&mut tracer, "the end of sampling", |it| it.tracing.sampling.is_none());
    // The reading before the truth, then the other way round: what lies between is exact.
    let first = process(&mut tracer, &warm).counts[Counter::KernelLaunches];
    let begun = warm.truth().called("cuLaunchKernel");
    std::thread::sleep(Duration::from_millis(500));
    let (truth, last) = launches(&mut tracer, &mut warm);
    assert!(last - first >= truth - begun, "{first} to {last}, truly {begun} to {truth}");
    assert!(process(&mut tracer, &warm).fully_hooked, "every call is seen again");
}

#[test]
fn memory_is_counted_exactly_while_launches_are_sampled() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.governed_tracer();
    let _hot = node.start(HOT);
    until(&mut tracer, "sampling", sampled);
    let truth = node.run("--rounds 500");
    let (_, process) = exited(&mut tracer, truth.tgid);
    let (counted, made) = (without_wait(process.counts), truth.counts());
    for counter in [
        Counter::DeviceAllocations,
        Counter::DeviceAllocatedBytes,
        Counter::DeviceFailed,
        Counter::DeviceFrees,
    ] {
        assert_eq!(counted[counter], made[counter], "{counter:?}");
    }
}

#[test]
fn the_busy_bound_holds_while_launches_are_not_all_seen() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.governed_tracer();
    let load = node.start(&format!("{HOT} --synchronize-every 1000"));
    until(&mut tracer, "sampling", sampled);
    let mut read = || {
        let at = clock::boot();
        let (_, process) = only(&tracer.read(at), load.tgid());
        (at, process.counts[Counter::BusyUpperNs])
    };
    let (begun, before) = read();
    std::thread::sleep(Duration::from_secs(1));
    let (ended, after) = read();
    assert!(
        after - before >= ended.since(begun),
        "{} ns of {}",
        after - before,
        ended.since(begun)
    );
}

#[test]
fn a_program_that_was_replaced_takes_its_estimates_with_it() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.governed_tracer();
    let then = format!("--then=--library {} --rounds 3", node.library().display());
    let mut load = node.start_with(&["--flat-out", "4s", "--work-ns", "2000", &then]);
    until(&mut tracer, "sampling", sampled);
    let truths = load.finish_all();
    let mut readings = tracer.read(clock::boot());
    let [(_, first)] = &readings.replaced[..] else { panic!("{:#?}", readings.replaced) };
    let (truth, counted) = (truths[0].called("cuLaunchKernel"), first.counts.launches());
    assert!((truth * 6 / 10..truth * 16 / 10).contains(&counted), "{counted} of {truth}");
    assert!(first.estimated.launches() > counted / 10, "most of it was not seen");
    let next = readings.processes.pop_first().map(|(_, it)| it);
    let next = next.unwrap_or_else(|| exited(&mut tracer, truths[1].tgid).1);
    assert!(next.counts.launches() < counted / 10, "the estimates are the first program's");
}

/// Two devices, and a thread that goes from one to the other as fast as it can.
#[test]
fn what_changes_of_contexts_cost_is_bounded_and_devices_are_unknown_then_and_never_wrong() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.governed_tracer();
    let options = "--devices 0,1 --switches-per-second 300000 --launches-per-second 1000 --hold";
    let mut load = node.start(options);
    until(&mut tracer, "sampling", sampled);
    std::thread::sleep(Duration::from_secs(3));
    let counted = process(&mut tracer, &load);
    let truth = load.truth();
    let on = |ordinal: u32| truth.on(ordinal).called("cuLaunchKernel");
    let home = counted.home.and_then(|it| it.ordinal).expect("it has a context");
    let part = |known: bool| {
        let parts = counted.elsewhere.iter().filter(|(it, _)| it.ordinal.is_some() == known);
        parts.map(|(_, it)| it.launches()).sum::<u64>()
    };
    assert!(part(false) > 0, "{:?}", counted.elsewhere);
    assert!(part(true) <= on(1 - home), "{} of {}", part(true), on(1 - home));
    let at_home = counted.counts.launches() - part(true) - part(false);
    assert!(at_home <= on(home), "{at_home} of {}", on(home));
    // Each takes less time than a hit on it costs: their number is a coarse estimate, and says so.
    assert!(counted.estimated[Counter::ContextSwitches] > 0, "{counted:?}");
}

#[test]
fn waits_that_outlast_their_hooks_are_a_loss() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.governed_tracer();
    let _hot = node.start(&format!("{HOT} --synchronize-every 1"));
    // Longer than it takes to close a window: most close in the middle of one.
    let _waiting =
        node.start("--launches-per-second 400 --synchronize-every 1 --kernel-us 2000 --hold");
    until(&mut tracer, "a wait that is cut", |it| it.tracing.lost["waits"] > 0);
}

#[test]
fn without_a_bound_every_call_counts() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer();
    let mut load = node.start(HOT);
    std::thread::sleep(Duration::from_secs(1));
    let readings = tracer.read(clock::boot());
    assert_eq!(readings.tracing.sampling, None);
    let truth = load.truth().called("cuLaunchKernel");
    assert!(process(&mut tracer, &load).counts[Counter::KernelLaunches] >= truth);
}
