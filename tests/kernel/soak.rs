//! Thousands of processes that live for a moment: every call of theirs is counted, with an owner or
//! without, and nothing of them stays in the kernel.

use std::time::Duration;

use agent::clock;
use agent::model::readings::{CudaCounts, CudaReadings};
use agent::samplers::cuda::Tracer;
use tests::wait::{check, eventually};

use crate::maps::entries_in_maps;
use crate::rig::{Build, Node, Truth, now, without_wait};

/// How often an agent looks at most, when it is woken.
const TICK: Duration = Duration::from_millis(100);

/// What was read of processes that ended.
#[derive(Default)]
struct Seen {
    ended: u64,
    counts: CudaCounts,
    overflow: CudaCounts,
    lost: u64,
}

impl Seen {
    fn add(&mut self, readings: CudaReadings) {
        for process in readings.processes.into_values().filter(|it| it.exited) {
            self.ended += 1;
            self.counts = self.counts.plus(&process.counts);
        }
        self.overflow = readings.overflow;
        self.lost = readings.tracing.losses();
    }
}

/// Lets children do this work while the tracer reads, and gives their truth and what was read.
fn churn(node: &Node, tracer: &mut Tracer, options: &str) -> (Truth, Seen) {
    // The driver keeps the memory of the dead for a while, and there are many of them.
    node.change(|it| it.release_ms = 0);
    let mut seen = Seen::default();
    let truth = std::thread::scope(|scope| {
        let work = scope.spawn(|| node.run(options));
        while !work.is_finished() {
            seen.add(tracer.read(clock::boot()));
            std::thread::sleep(TICK);
        }
        work.join().expect("the workload does its work")
    });
    eventually(Duration::from_secs(5), "the last one is gone", || {
        let readings = tracer.read(clock::boot());
        let left = readings.processes.len();
        seen.add(readings);
        check(left == 0, || format!("{left} processes are left"))
    });
    (truth, seen)
}

/// What programs leave in the kernel goes some time after they ended. The thread of this test has
/// calibrated the hooks, and lives.
pub(crate) fn nothing_is_left(tracer: &mut Tracer) {
    eventually(Duration::from_secs(20), "nothing is left in the kernel", || {
        tracer.read(clock::boot());
        let left = entries_in_maps();
        check(left <= 1, || format!("{left} entries"))
    });
}

#[test]
fn ten_thousand_short_lives_are_counted_to_the_last_call() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer_for(1_024);
    let began = now();
    let (truth, seen) = churn(&node, &mut tracer, "--churn 10000 --at-a-time 8 --launches 3");
    assert_eq!(seen.ended, 10_000, "each is reported once; took {:?}", began.elapsed());
    assert_eq!(without_wait(seen.counts), truth.counts());
    assert!(seen.overflow.is_zero());
    assert_eq!(seen.lost, 0);
    nothing_is_left(&mut tracer);
}

#[test]
fn what_finds_no_room_is_counted_without_an_owner() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer_for(2);
    let options = "--churn 1500 --at-a-time 8 --rounds 1 --launches 40";
    let (truth, seen) = churn(&node, &mut tracer, options);
    assert!(!seen.overflow.is_zero() && seen.lost > 0, "there was room for two of eight");
    let counted = seen.counts.plus(&seen.overflow);
    assert_eq!(without_wait(counted), truth.counts());
    assert!(seen.ended > 0, "some have found room");
    nothing_is_left(&mut tracer);
}
