//! What is counted equals what was called, exactly.

use std::time::Duration;

use agent::clock;
use agent::config::ExtraHooks;
use agent::model::readings::Counter;

use crate::rig::{Build, Node, exited, now, only, without_wait};

/// Runs a workload under a tracer; its final counts must be what it says it did.
fn check(build: Build, options: &str) {
    let node = Node::new(build);
    let mut tracer = node.tracer();
    let truth = node.run(options);
    let (_, process) = exited(&mut tracer, truth.tgid);
    assert_eq!(without_wait(process.counts), truth.counts(), "{build:?} {options}");
    assert_eq!(tracer.read(clock::boot()).tracing.losses(), 0, "{build:?} {options}");
}

#[test]
fn every_call_counts_once_in_every_build() {
    for build in Build::ALL {
        check(build, "--rounds 50");
    }
}

#[test]
fn a_wait_counts_when_it_begins() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer();
    let workload = node.start("--launches 1 --kernel-us 4000000 --synchronize-every 1 --hold");
    let deadline = now() + Duration::from_secs(3);
    loop {
        let (_, process) = only(&tracer.read(clock::boot()), workload.tgid());
        if process.counts[Counter::Synchronizations] == 1 {
            assert_eq!(process.counts[Counter::SynchronizeWaitNs], 0, "it is under way");
            return;
        }
        assert!(now() < deadline, "{process:?}");
    }
}

#[test]
fn per_thread_stream_variants_count_as_their_base() {
    for build in Build::ALL {
        check(build, "--rounds 50 --per-thread");
    }
}

#[test]
fn functions_asked_of_the_driver_are_the_exported_ones() {
    check(Build::Cmp, "--rounds 20 --proc-address");
    check(Build::Cmp, "--rounds 20 --proc-address --per-thread");
}

#[test]
fn threads_count_together() {
    check(Build::Cmp, "--rounds 200 --threads 4");
    check(Build::Endbr64, "--launches 20000 --threads 4 --synchronize-every 10");
}

#[test]
fn many_threads_lose_no_call() {
    check(Build::Cmp, "--rounds 20 --threads 64");
}

#[test]
fn first_versions_count_with_their_sizes_of_32_bits() {
    for build in Build::ALL {
        check(build, "--rounds 20 --legacy");
    }
}

#[test]
fn calls_that_fail_count_as_failed_and_change_nothing_else() {
    check(Build::Cmp, "--rounds 20 --fail --threads 2");
    check(Build::Push, "--rounds 20 --fail --per-thread");
}

#[test]
fn calls_inside_calls_count_each() {
    check(Build::Cmp, "--rounds 20 --nested --recursive --threads 2");
    check(Build::Endbr64, "--rounds 20 --nested --per-thread");
}

#[test]
fn on_demand_everything_counts() {
    for options in ["--rounds 20 --extra --legacy", "--rounds 20 --extra --per-thread"] {
        let node = Node::new(Build::Cmp);
        let mut tracer = node.tracer_with(|it| it.extra_hooks = ExtraHooks::ALL.to_vec());
        let truth = node.run(options);
        let (_, process) = exited(&mut tracer, truth.tgid);
        assert_eq!(without_wait(process.counts), truth.all_counts(), "{options}");
        assert!(process.counts[Counter::ModuleLoadNs] > 0, "a load takes time");
        assert_eq!(tracer.read(clock::boot()).tracing.losses(), 0, "{options}");
    }
}

#[test]
fn the_place_of_a_hook_changes_no_count() {
    let options = "--rounds 100 --threads 2";
    let counts = Build::ALL.map(|build| {
        let node = Node::new(build);
        let mut tracer = node.tracer();
        let truth = node.run(options);
        without_wait(exited(&mut tracer, truth.tgid).1.counts)
    });
    assert_eq!(counts[0], counts[1]);
    assert_eq!(counts[1], counts[2]);
}

#[test]
fn a_running_process_is_counted_up_to_now() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer();
    let mut workload = node.start("--rounds 10 --hold");
    std::thread::sleep(Duration::from_millis(300));
    let truth = workload.truth();
    let (_, process) = only(&tracer.read(clock::boot()), truth.tgid);
    assert_eq!(without_wait(process.counts), truth.counts());
    assert!(!process.exited && process.fully_hooked, "{process:?}");
    assert!(process.counts[Counter::SynchronizeWaitNs] > 0, "a wait takes time");
    let age_ns = clock::boot().since(process.last_launch.expect("it has launched"));
    assert!((200_000_000..10_000_000_000).contains(&age_ns), "launched {age_ns} ns ago");
}

#[test]
fn failed_allocations_count_apart() {
    let node = Node::new(Build::Push);
    let mut tracer = node.tracer();
    let scenario = gpu_state::scenario::Scenario {
        cuda_fails: [("cuMemAllocManaged".to_owned(), 2)].into(),
        ..gpu_state::scenario::Scenario::with_gpus(1)
    };
    let text = toml::to_string(&scenario).expect("a scenario is TOML");
    std::fs::write(node.folder().join(gpu_state::scenario::NAME), text).unwrap();
    let truth = node.run("--rounds 10");
    let (_, process) = exited(&mut tracer, truth.tgid);
    assert_eq!(process.counts[Counter::ManagedFailed], 10);
    assert_eq!(process.counts[Counter::ManagedOutOfMemory], 10);
    assert_eq!(without_wait(process.counts), truth.counts());
}

#[test]
fn a_process_that_ran_before_the_tracer_counts_from_then_on() {
    let node = Node::new(Build::Cmp);
    let mut workload = node.start("--launches-per-second 1000 --hold");
    let before = workload.truth().called("cuLaunchKernel");
    let mut tracer = node.tracer();
    let attached = workload.truth().called("cuLaunchKernel");
    std::thread::sleep(Duration::from_millis(500));
    let after = workload.truth();
    let readings = tracer.read(clock::boot());
    let later = workload.truth().called("cuLaunchKernel");
    let counted = only(&readings, after.tgid).1.counts.launches();
    let after = after.called("cuLaunchKernel");
    assert!(counted >= after - attached, "{counted} of the {} since", after - attached);
    assert!(counted <= later - before, "{counted} of the {} at most", later - before);
}
