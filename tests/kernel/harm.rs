//! No hook breaks a process: functions that it has rewritten are left alone, and those that it is going
//! to rewrite can be.

use std::path::Path;
use std::time::Duration;

use agent::clock;
use agent::config;
use agent::model::readings::{Counter, Tracing};
use agent::samplers::cuda::Tracer;
use agent::samplers::cuda::library::coverage::HookState;
use tests::wait::{check, eventually};

use crate::rig::{Build, Node, Workload, only};

const SOON: Duration = Duration::from_secs(20);

/// How many memory functions of the node's library are hooked.
fn memory_hooks(tracer: &Tracer, node: &Node) -> usize {
    let coverage = tracer.coverage();
    let own = coverage.iter().find(|it| it.path == node.library()).expect("it is hooked");
    let memory =
        own.hooks.iter().filter(|it| it.symbol.starts_with("cuMem") && !it.symbol.contains("cpy"));
    memory.filter(|it| matches!(it.state, HookState::Attached { .. })).count()
}

/// Looks again and again, each time as if much time had passed.
fn until(tracer: &mut Tracer, what: &str, holds: impl Fn(&Tracer, &Tracing) -> bool) {
    let mut at = clock::boot();
    eventually(SOON, what, || {
        at = at + 400_000_000_000;
        let tracing = tracer.read(at).tracing;
        check(holds(tracer, &tracing), || format!("{tracing:?}"))
    });
}

fn names(held_back: &[String], tgid: u32) -> bool {
    held_back.iter().any(|it| it.contains(&format!("processes {tgid} have changed")))
}

#[test]
fn what_a_process_has_rewritten_goes_on_working_while_agents_come_and_go() {
    for build in Build::ALL {
        let node = Node::new(build);
        let mut workload = node.start("--patch-entry before --launches-per-second 200 --hold");
        assert!(workload.checked().works, "before there is an agent: {build:?}");
        for run in 0..2 {
            let mut tracer = node.tracer();
            let tracing = tracer.read(clock::boot()).tracing;
            assert!(names(&tracing.memory_held_back, workload.tgid()), "{build:?} {tracing:?}");
            assert_eq!(memory_hooks(&tracer, &node), 0);
            assert!(workload.check_patch().works, "hooked, {build:?}, run {run}");
            std::thread::sleep(Duration::from_millis(100));
            let (_, process) = only(&tracer.read(clock::boot()), workload.tgid());
            assert!(process.counts.launches() > 0 && process.fully_hooked, "{process:?}");
            assert_eq!(process.memory, None, "unknown is not zero");
            tracer.stop();
            assert!(workload.check_patch().works, "detached, {build:?}, run {run}");
        }
    }
}

#[test]
fn memory_is_counted_again_when_who_rewrote_it_is_gone() {
    let node = Node::new(Build::Cmp);
    let workload = node.start("--patch-entry before --hold");
    let mut tracer = node.tracer();
    let tracing = tracer.read(clock::boot()).tracing;
    assert!(names(&tracing.memory_held_back, workload.tgid()), "{tracing:?}");
    workload.kill();
    until(&mut tracer, "memory hooks are on", |tracer, tracing| {
        tracing.memory_held_back.is_empty() && memory_hooks(tracer, &node) > 0
    });
    let truth = node.run("--rounds 3");
    let (_, process) = crate::rig::exited(&mut tracer, truth.tgid);
    assert_eq!(
        process.counts[Counter::DeviceAllocations],
        truth.counts()[Counter::DeviceAllocations]
    );
}

#[test]
fn what_earlier_hooks_left_is_not_taken_for_rewritten_for_long() {
    let node = Node::new(Build::Push);
    let mut workload = node.start("--rounds 2 --hold");
    node.tracer().stop();
    let mut tracer = node.tracer();
    until(&mut tracer, "memory hooks are on", |tracer, tracing| {
        tracing.memory_held_back.is_empty() && memory_hooks(tracer, &node) > 0
    });
    workload.truth();
}

#[test]
fn a_look_at_text_is_a_loss_that_shows_and_no_evidence() {
    let node = Node::new(Build::Cmp);
    let workload = node.start("--patch-entry before --launches-per-second 200 --hold");
    let mut tracer = node.tracer();
    eventually(SOON, "it launches", || {
        let readings = tracer.read(clock::boot());
        let hooked =
            readings.processes.values().any(|it| it.counts.launches() > 0 && it.fully_hooked);
        check(hooked, || format!("{readings:?}"))
    });
    let before = tracer.read(clock::boot());
    let mut at = clock::boot();
    for look_is_here in [true, false, false, false] {
        at = at + 400_000_000_000;
        let after = tracer.read(at);
        let (_, process) = only(&after, workload.tgid());
        assert_eq!(process.fully_hooked, !look_is_here, "{process:?}");
        // The process that is the reason lives: there is nothing more to be found.
        assert_eq!(after.tracing.lost["looks"], 1);
        assert!(after.tracing.unwatched_ns > before.tracing.unwatched_ns);
    }
}

#[test]
fn without_memory_hooks_a_process_rewrites_its_functions_under_the_agent() {
    for build in Build::ALL {
        let node = Node::new(build);
        let config = config::Cuda { memory_hooks: false, ..node.config(64, None) };
        let mut tracer = Tracer::start(&config, Path::new("/proc"));
        let mut workload = node.start("--patch-entry on-signal --launches-per-second 200 --hold");
        let checked = workload.check_patch();
        assert!(checked.works && checked.intercepted > 0, "{build:?} {checked:?}");
        let tracing = tracer.read(clock::boot()).tracing;
        let says = "cuda.memory_hooks is false";
        assert!(tracing.memory_held_back.iter().any(|it| it.contains(says)), "{tracing:?}");
        tracer.stop();
        assert!(workload.check_patch().works, "detached, {build:?}");
    }
}

/// A library with the name of UCX's memory hooks.
fn ucx(node: &Node) -> std::path::PathBuf {
    let path = node.folder().join("libucm.so.0");
    std::fs::copy("/lib/x86_64-linux-gnu/libm.so.6", &path)
        .or_else(|_| std::fs::copy("/lib/aarch64-linux-gnu/libm.so.6", &path))
        .or_else(|_| std::fs::copy("/lib64/libm.so.6", &path))
        .expect("this machine has a libm");
    path
}

#[test]
fn where_ucx_would_meet_a_hook_memory_hooks_go() {
    let node = Node::new(Build::Push);
    let mut tracer = node.tracer();
    assert!(memory_hooks(&tracer, &node) > 0);
    let mut workload = Workload::beside(&ucx(&node), &node.library(), "--rounds 2 --hold");
    until(&mut tracer, "memory hooks are off", |tracer, tracing| {
        let says = format!("process {} uses UCX", workload.tgid());
        tracing.memory_held_back.iter().any(|it| it.contains(&says))
            && memory_hooks(tracer, &node) == 0
    });
    workload.truth();
}

#[test]
fn where_hooks_are_behind_what_ucx_rewrites_they_stay() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer();
    let _workload = Workload::beside(&ucx(&node), &node.library(), "--rounds 2 --hold");
    for round in 1..4 {
        let tracing = tracer.read(clock::boot() + round * 6_000_000_000).tracing;
        assert_eq!(tracing.memory_held_back, Vec::<String>::new());
    }
    assert!(memory_hooks(&tracer, &node) > 0);
}
