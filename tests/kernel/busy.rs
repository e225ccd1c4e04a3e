//! The upper bound of the busy time: never less than the time that kernels ran, and no more where
//! each wait ends all work.

use std::time::Duration;

use agent::clock;
use agent::model::readings::{Counter, CudaCounts};
use nix::sys::signal::Signal;

use crate::rig::{Build, Node, exited, only};

const KERNEL: Duration = Duration::from_millis(5);

fn busy(counts: &CudaCounts) -> Duration {
    Duration::from_nanos(counts[Counter::BusyUpperNs])
}

/// The bound after so many launches of 5 ms each.
fn bound(options: &str) -> Duration {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer();
    let truth = node.run(&format!("--kernel-us {} {options}", KERNEL.as_micros()));
    busy(&exited(&mut tracer, truth.tgid).1.counts)
}

#[test]
fn a_wait_after_each_launch_makes_the_bound_tight() {
    let bound = bound("--launches 20 --launches-per-second 50 --synchronize-every 1");
    assert!(bound >= KERNEL * 20, "{bound:?}");
    assert!(bound < KERNEL * 20 + Duration::from_millis(100), "{bound:?} of 400 ms are idle");
}

#[test]
fn without_a_wait_work_is_pending_until_the_end() {
    let bound = bound("--launches 20 --launches-per-second 50");
    assert!(bound >= Duration::from_millis(300), "{bound:?} of 400 ms");
}

#[test]
fn a_launch_of_another_thread_keeps_the_span_open() {
    let options = "--launches 200 --launches-per-second 1000 --threads 4 --synchronize-every 1";
    let bound = bound(options);
    assert!(bound >= KERNEL * 200, "{bound:?}");
}

#[test]
fn of_a_process_that_is_older_than_the_hooks_no_wait_ends_all_work() {
    let node = Node::new(Build::Cmp);
    let mut workload = node.start("--launches-per-second 200 --synchronize-every 1 --hold");
    while workload.truth().called("cuLaunchKernel") == 0 {}
    let mut tracer = node.tracer();
    let attached = clock::boot();
    std::thread::sleep(Duration::from_millis(300));
    let at = clock::boot();
    let bound = busy(&only(&tracer.read(at), workload.tgid()).1.counts);
    let since = Duration::from_nanos(at.since(attached));
    assert!(bound >= since, "{bound:?} of {since:?}: its streams are not known");
    workload.signal(Signal::SIGTERM);
    let (ended, truth) = (clock::boot(), workload.finish());
    let last = busy(&exited(&mut tracer, truth.tgid).1.counts);
    assert!(last >= Duration::from_nanos(ended.since(attached)), "{last:?}");
}

#[test]
fn a_span_that_is_open_grows_with_the_clock() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer();
    let mut workload = node.start("--launches 1 --hold");
    while workload.truth().called("cuLaunchKernel") == 0 {}
    let at = clock::boot();
    let first = busy(&only(&tracer.read(at), workload.tgid()).1.counts);
    let later = busy(&only(&tracer.read(at + 1_000_000_000), workload.tgid()).1.counts);
    assert_eq!(later - first, Duration::from_secs(1));
}
