//! Processes begin, become others, and end in every way; no count is lost or inherited.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::Duration;

use agent::clock;
use agent::samplers::cuda::Tracer;
use nix::sys::signal::Signal;
use tests::wait::{check, eventually};

use crate::rig::{Build, Node, exited, exits, next_pid_is, now, only, without_wait};
use crate::soak::nothing_is_left;

#[test]
fn a_final_reading_comes_exactly_once() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer();
    let truth = node.run("--rounds 5");
    exited(&mut tracer, truth.tgid);
    for _ in 0..3 {
        let readings = tracer.read(clock::boot());
        assert!(readings.processes.keys().all(|it| it.tgid != truth.tgid), "{readings:#?}");
    }
}

#[test]
fn short_lives_are_each_reported_once_while_others_run() {
    const WORKERS: usize = 4;
    const LIVES: usize = 12;
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer();
    let mut ended = Vec::new();
    let mut truths = std::thread::scope(|scope| {
        let one_after_another = || (0..LIVES).map(|_| node.run("--rounds 2")).collect::<Vec<_>>();
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(one_after_another)).collect();
        while !workers.iter().all(|it| it.is_finished()) {
            ended.extend(tracer.read(clock::boot()).processes.into_iter().filter(|it| it.1.exited));
        }
        workers.into_iter().flat_map(|it| it.join().expect("it ran")).collect::<Vec<_>>()
    });
    std::thread::sleep(Duration::from_millis(100));
    ended.extend(tracer.read(clock::boot()).processes);
    truths.sort_by_key(|it| it.tgid);
    ended.sort_by_key(|it| it.0.tgid);
    assert_eq!(ended.len(), WORKERS * LIVES);
    for ((process, reading), truth) in ended.iter().zip(&truths) {
        assert_eq!(process.tgid, truth.tgid);
        assert!(reading.exited);
        assert_eq!(without_wait(reading.counts), truth.counts());
    }
}

#[test]
fn identity_is_that_of_proc() {
    let node = Node::new(Build::Push);
    let mut tracer = node.tracer();
    let workload = node.start("--hold");
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", workload.tgid())).unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    let start_ticks: u64 = after_name.split_whitespace().nth(19).unwrap().parse().unwrap();
    let (process, reading) = only(&tracer.read(clock::boot()), workload.tgid());
    assert_eq!(process.start_ticks, start_ticks);
    assert_eq!(reading.uid, nix::unistd::getuid().as_raw());
}

#[test]
fn parent_and_child_count_apart() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer();
    let mut parent = node.start("--rounds 20 --fork");
    let truths = parent.finish_all();
    assert_eq!(truths.len(), 2, "both tell the truth");
    let ended = exits(&mut tracer, &[truths[0].tgid, truths[1].tgid]);
    for truth in &truths {
        assert_eq!(without_wait(ended[&truth.tgid].1.counts), truth.counts());
    }
}

#[test]
fn exec_ends_one_program_and_begins_another() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer();
    let library = node.library();
    let then = format!("--then=--library {} --rounds 3", library.display());
    let mut workload = node.start_with(&["--rounds", "10", &then]);
    let (tgid, truths) = (workload.tgid(), workload.finish_all());
    let mut replaced = tracer.read(clock::boot());
    let last = replaced.processes.pop_first().map(|(_, it)| it);
    let last = last.unwrap_or_else(|| exited(&mut tracer, tgid).1);
    assert_eq!(truths.len(), 2, "each program tells the truth");
    assert_eq!(replaced.replaced.len(), 1, "{:#?}", replaced.replaced);
    let (process, first) = &replaced.replaced[0];
    assert_eq!((process.tgid, first.exited), (tgid, false));
    assert_eq!(without_wait(first.counts), truths[0].counts());
    assert_eq!(without_wait(last.counts), truths[1].counts());
    assert!(last.exited);
}

#[test]
fn what_was_done_before_a_kill_is_kept() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer();
    let mut workload = node.start("--launches 1000000000 --threads 2");
    std::thread::sleep(Duration::from_millis(200));
    let truth = workload.truth();
    let tgid = truth.tgid;
    workload.kill();
    let (_, process) = exited(&mut tracer, tgid);
    assert!(process.counts.launches() >= truth.called("cuLaunchKernel"));
    assert_eq!(tracer.read(clock::boot()).tracing.losses(), 0);
}

#[test]
fn a_kill_in_the_middle_of_calls_leaves_nothing() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer();
    let waiting = "--launches 100000 --kernel-us 50000 --synchronize-every 1 --threads 4";
    let workload = node.start(waiting);
    let tgid = workload.tgid();
    eventually(Duration::from_secs(5), "each of four threads waits for its kernel", || {
        let launches = only(&tracer.read(clock::boot()), tgid).1.counts.launches();
        check(launches >= 4, || format!("{launches} launches"))
    });
    workload.kill();
    assert!(exited(&mut tracer, tgid).1.counts.launches() >= 4);
    nothing_is_left(&mut tracer);
}

#[test]
fn the_end_of_one_thread_is_not_the_end_of_the_process() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer();
    let mut workload = node.start("--rounds 5 --threads 8 --hold");
    std::thread::sleep(Duration::from_millis(500));
    let truth = workload.truth();
    let threads = std::fs::read_dir(format!("/proc/{}/task", truth.tgid)).unwrap().count();
    assert_eq!(threads, 1, "the working threads have ended");
    let (_, process) = only(&tracer.read(clock::boot()), truth.tgid);
    assert!(!process.exited);
    assert_eq!(without_wait(process.counts), truth.counts());
}

#[test]
fn a_reused_tgid_starts_clean() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer();
    let first = node.run("--rounds 7");
    let (before, _) = exited(&mut tracer, first.tgid);
    let second = loop {
        next_pid_is(first.tgid);
        let workload = node.start("--rounds 3");
        if workload.tgid() == first.tgid {
            break workload.finish();
        }
    };
    let (after, process) = exited(&mut tracer, second.tgid);
    assert_eq!(after.tgid, before.tgid);
    assert!(after.start_ticks > before.start_ticks);
    assert_eq!(without_wait(process.counts), second.counts());
}

#[test]
fn events_wake_the_one_who_waits() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let workload = node.start("--rounds 1 --hold");
        assert!(wakes(&mut tracer, 2_000).await, "a new CUDA process");
        while wakes(&mut tracer, 500).await {}
        workload.signal(Signal::SIGTERM);
        let killed = now();
        assert!(wakes(&mut tracer, 2_000).await, "its exit");
        assert!(killed.elapsed() < Duration::from_millis(500), "after {:?}", killed.elapsed());
    });
}

#[test]
fn only_the_first_launch_after_a_silence_wakes() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let options = ["--launches-per-second", "500", "--phases", "busy 1s, idle 2s"];
        let _workload = node.start_with(&options);
        let begun = now();
        let mut wakes_seen = 0;
        while begun.elapsed() < Duration::from_secs(7) {
            wakes_seen += u32::from(wakes(&mut tracer, 100).await);
        }
        // New, first launch, and one launch after each of two silences; more would be per launch.
        assert!((3..=5).contains(&wakes_seen), "woke {wakes_seen} times in 7 s");
    });
}

#[test]
fn a_tracked_process_without_calls_is_reported_and_its_exit_wakes() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer();
    let mut silent = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
    tracer.track(&BTreeSet::from([silent.id()]));
    let (_, process) = only(&tracer.read(clock::boot()), silent.id());
    assert!(process.counts.is_zero() && !process.fully_hooked && !process.exited);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    silent.kill().unwrap();
    assert!(runtime.block_on(wakes(&mut tracer, 2_000)), "its exit");
    silent.wait().unwrap();
    assert!(exited(&mut tracer, silent.id()).1.exited);
}

async fn wakes(tracer: &mut Tracer, within_ms: u64) -> bool {
    tokio::time::timeout(Duration::from_millis(within_ms), tracer.changed()).await.is_ok()
}
