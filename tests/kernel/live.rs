//! Memory that is allocated now, against what the workload holds.

use std::time::Duration;

use agent::clock;
use agent::model::readings::{Counter, CudaMemory};
use agent::samplers::cuda::Tracer;
use agent_ebpf::keys::SLOTS;

use crate::rig::{Build, Node, Truth, Workload, exited, now, only, without_wait};

/// Of a process all of whose calls are made.
fn memory(tracer: &mut Tracer, truth: &Truth) -> CudaMemory {
    let (_, process) = only(&tracer.read(clock::boot()), truth.tgid);
    process.memory.expect("every allocation was seen")
}

#[test]
fn what_is_held_is_live_and_what_was_freed_is_not() {
    for build in Build::ALL {
        let node = Node::new(build);
        let mut tracer = node.tracer();
        let mut workload = node.start("--memory-mib 3 --rounds 20 --fail --legacy --hold");
        let truth = workload.truth_of_rounds(20);
        let memory = memory(&mut tracer, &truth);
        assert!(!memory.at_least);
        assert_eq!(memory.live_bytes, truth.memory.live_bytes);
        assert_eq!(memory.host_bytes, truth.memory.host_bytes);
        assert_eq!(memory.peak_bytes, truth.memory.peak_bytes);
    }
}

#[test]
fn allocations_of_many_threads_add_up() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer();
    let mut workload = node.start("--memory-mib 3 --rounds 100 --threads 8 --hold");
    let truth = workload.truth_of_rounds(800);
    let memory = memory(&mut tracer, &truth);
    assert_eq!(memory.live_bytes, truth.memory.live_bytes);
    assert_eq!(memory.host_bytes, truth.memory.host_bytes);
    assert!(memory.peak_bytes > truth.memory.live_bytes);
}

#[test]
fn with_the_only_context_goes_all_memory() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer();
    let truth = node.run("--memory-mib 3 --reset");
    let (_, process) = exited(&mut tracer, truth.tgid);
    if let Some(memory) = process.memory {
        assert_eq!(memory.live_bytes, 0);
    }
    assert_eq!(process.counts[Counter::ContextsDestroyed], 1);
}

#[test]
fn with_the_last_reference_to_the_primary_context_goes_all_memory() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer();
    let mut workload = node.start("--memory-mib 3 --rounds 2 --release --hold");
    // Each round releases what it has retained.
    let truth = until_released(&mut workload, 3);
    let readings = tracer.read(clock::boot());
    let (_, process) = only(&readings, truth.tgid);
    let memory = process.memory.expect("every allocation was seen");
    assert_eq!((memory.live_bytes, memory.host_bytes, memory.at_least), (0, 0, false));
    assert!(memory.peak_bytes > 3 << 20);
    let destroyed = truth.counts()[Counter::ContextsDestroyed];
    assert_eq!(process.counts[Counter::ContextsDestroyed], destroyed + 1);
}

/// Once it has released primary contexts so often. Telling the truth holds its threads up: they need
/// time in between.
fn until_released(workload: &mut Workload, times: u64) -> Truth {
    let deadline = now() + Duration::from_secs(30);
    loop {
        let truth = workload.truth();
        if truth.succeeded("cuDevicePrimaryCtxRelease_v2") == times {
            return truth;
        }
        assert!(now() < deadline, "it still works after 30 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn with_one_of_several_contexts_goes_what_was_allocated_in_it() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer();
    let mut workload = node.start("--memory-mib 3 --rounds 5 --implicit --hold");
    let truth = workload.truth_of_rounds(5);
    let memory = memory(&mut tracer, &truth);
    assert!(memory.at_least, "how much went is not known: {memory:?}");
    assert!(memory.live_bytes <= truth.memory.live_bytes);
}

#[test]
fn memory_that_others_may_keep_makes_live_bytes_a_lower_bound() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer();
    let mut workload = node.start("--memory-mib 3 --rounds 5 --exports --hold");
    let truth = workload.truth_of_rounds(5);
    let memory = memory(&mut tracer, &truth);
    assert!(memory.at_least, "{memory:?}");
    assert_eq!(memory.live_bytes, truth.memory.live_bytes);
}

#[test]
fn of_a_process_that_is_older_than_the_hooks_nothing_is_known() {
    let node = Node::new(Build::Cmp);
    let mut workload = node.start("--memory-mib 1 --launches-per-second 1000");
    let mut tracer = node.tracer();
    let attached = workload.truth().called("cuLaunchKernel");
    while workload.truth().called("cuLaunchKernel") < attached + 10 {}
    let (_, process) = only(&tracer.read(clock::boot()), workload.tgid());
    assert!(process.fully_hooked);
    assert_eq!(process.memory, None);
}

#[test]
fn what_finds_no_slot_is_live_all_the_same() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer();
    let pieces = SLOTS * 2;
    let mut workload = node.start(&format!("--memory-mib 64 --pieces {pieces} --rounds 3 --hold"));
    let truth = workload.truth_of_rounds(3);
    let memory = memory(&mut tracer, &truth);
    assert!(!memory.at_least);
    assert_eq!(memory.live_bytes, truth.memory.live_bytes);
    assert_eq!(memory.host_bytes, truth.memory.host_bytes);
    assert_eq!(tracer.read(clock::boot()).tracing.losses(), 0);
}

#[test]
fn allocations_beyond_the_bound_make_live_bytes_a_lower_bound() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer_with(|it| it.max_allocations = 1);
    let pieces = SLOTS + 2;
    let mut workload = node.start(&format!("--memory-mib 64 --pieces {pieces} --hold"));
    let truth = workload.truth_of_rounds(0);
    let readings = tracer.read(clock::boot());
    let memory = only(&readings, truth.tgid).1.memory.expect("every allocation was seen");
    assert!(memory.live_bytes < truth.memory.live_bytes && memory.at_least, "{memory:?}");
    assert!(readings.tracing.lost["allocations"] > 0);
    let counts = only(&readings, truth.tgid).1.counts;
    assert_eq!(without_wait(counts), truth.counts(), "totals stay exact");
}
