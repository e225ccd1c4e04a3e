//! The simulated node does what a real one does, as far as the tests rely on it.
#![expect(clippy::unwrap_used, reason = "what a test needs is there, or the test fails")]

use std::path::Path;
use std::time::Duration;

use gpu_state::node::Node as Driver;
use tests::artefacts::Build;
use tests::node::Setup;
use tests::program::run;
use tests::wait::{check, eventually};

const SOON: Duration = Duration::from_secs(5);
const MIB: u64 = 1 << 20;

/// Sum of the sizes of one round's copies: one of each kind, each a prime of its own.
const ROUND_COPIED: u64 =
    7_001 + 8_009 + 9_001 + 10_007 + 11_003 + 12_007 + 13_001 + 14_009 + 15_013 + 16_001;

#[test]
fn every_build_answers_every_call_the_same() {
    for build in [Build::Cmp, Build::Push, Build::Endbr64] {
        for variant in
            [&[][..], &["--per-thread"], &["--proc-address"], &["--per-thread", "--proc-address"]]
        {
            let node = Setup::gpus(1).with(|it| it.build = Some(build)).make();
            let arguments = [&["--rounds=5", "--threads=2"], variant].concat();
            let truth = node.tenant("t", &arguments).finish();
            assert!(truth.0.values().all(|it| it.failed == 0), "{build:?} {variant:?}: {truth:?}");
            assert_eq!(truth.launches(), 30, "{build:?} {variant:?}");
            assert_eq!(truth.copied_bytes(), 10 * ROUND_COPIED, "{build:?} {variant:?}");
            let per_thread =
                truth.0.keys().filter(|it| it.contains("_pts") || it.contains("_ptds"));
            assert_eq!(per_thread.count() > 0, variant.contains(&"--per-thread"), "{truth:?}");
        }
    }
}

#[test]
fn memory_comes_back_when_the_driver_lets_it_go() {
    let node = Setup::gpus(1).with(|it| it.scenario.release_ms = 600).make();
    let driver = Driver::open(node.folder()).unwrap();
    let empty = driver.memory(0).unwrap();
    let tenant = node.tenant("t", &["--memory-mib=2000", "--hold"]);
    let listed = driver.processes(0).unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].pid, tenant.pid());
    assert!(listed[0].memory_bytes >= 2_400 * MIB, "the context and what it allocated");
    tenant.kill();
    assert_eq!(driver.processes(0).unwrap(), [], "gone from the list at once");
    assert!(driver.memory(0).unwrap().used_bytes >= 2_400 * MIB, "and its memory not yet");
    eventually(SOON, "the memory is back", || {
        let now = driver.memory(0).unwrap();
        check(now == empty, || format!("{now:?}"))
    });
}

#[test]
fn work_that_a_killed_process_had_queued_is_dropped() {
    let node = Setup::gpus(1).make();
    let driver = Driver::open(node.folder()).unwrap();
    let tenant = node.tenant("t", &["--launches=1000000", "--kernel-us=50000"]);
    eventually(SOON, "the device is busy", || {
        let busy = driver.busy_percent(0).unwrap();
        check(busy == 100, || format!("{busy} %"))
    });
    tenant.kill();
    assert_eq!(driver.processes(0).unwrap(), []);
    eventually(Duration::from_millis(600), "the device is idle", || {
        let busy = driver.busy_percent(0).unwrap();
        check(busy == 0, || format!("{busy} %"))
    });
}

#[test]
fn two_processes_share_a_device_as_their_work_differs() {
    let node = Setup::gpus(1).make();
    let driver = Driver::open(node.folder()).unwrap();
    let more = node.tenant("more", &["--launches-per-second=60", "--kernel-us=10000"]);
    let less = node.tenant("less", &["--launches-per-second=60", "--kernel-us=2500"]);
    std::thread::sleep(Duration::from_millis(1_500));
    let samples = driver.process_samples(0, 0).unwrap();
    let of = |pid: u32| f64::from(samples.iter().find(|it| it.pid == pid).unwrap().sm_percent);
    let ratio = of(more.pid()) / of(less.pid());
    assert!((3.0..5.0).contains(&ratio), "{ratio}: {samples:?}");
}

#[test]
fn a_device_gives_no_more_memory_than_it_has() {
    let node = Setup::gpus(1).with(|it| it.scenario.gpus[0].memory_mib = 4_000).make();
    let _holder = node.tenant("holder", &["--memory-mib=2000", "--hold"]);
    let refused = run(&node.workload(&["--memory-mib=2000"]));
    let wanted = "cuMemAlloc_v2 of 2097152000 bytes returned 2";
    assert!(refused.errors.contains(wanted), "{refused:?}");
}

#[test]
fn a_child_makes_calls_of_its_own() {
    let said = launches_said(&["--fork", "--launches=5"]);
    assert_eq!(said.len(), 2, "{said:?}");
    assert_ne!(said[0].0, said[1].0);
    assert!(said.iter().all(|(_, launches)| *launches == 5), "{said:?}");
}

#[test]
fn another_program_in_the_same_process_begins_anew() {
    let library = Setup::gpus(1).make();
    let then = format!("--library {} --launches=7", library.cuda_library().display());
    let said = launches_said(&["--launches=5", "--then", &then]);
    assert_eq!(said.iter().map(|it| it.1).collect::<Vec<_>>(), [5, 7]);
    assert_eq!(said[0].0, said[1].0, "the same process");
}

/// PID and launches of every truth that a workload with these arguments prints.
fn launches_said(arguments: &[&str]) -> Vec<(u64, u64)> {
    let node = Setup::gpus(1).make();
    let said = run(&node.workload(arguments)).output;
    let lines = said.lines().map(|it| serde_json::from_str::<serde_json::Value>(it).unwrap());
    let truths = lines.filter(|it| it["event"] == "truth");
    let launches =
        |it: &serde_json::Value| it["calls"]["cuLaunchKernel"]["calls"].as_u64().unwrap();
    truths.map(|it| (it["pid"].as_u64().unwrap(), launches(&it))).collect()
}

#[test]
fn a_panic_leaves_no_process_group_or_folder_behind() {
    let mut left = Vec::new();
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let node = Setup::gpus(1).start();
        let tenant = node.tenant("t", &["--hold"]);
        let group = std::fs::read_to_string(format!("/proc/{}/cgroup", tenant.pid())).unwrap();
        let group = group.lines().find_map(|it| it.strip_prefix("0::/")).unwrap().to_owned();
        let mounts = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(|it| format!("{it}/{group}"));
        assert!(mounts.iter().any(|it| Path::new(it).exists()), "{mounts:?}");
        left.extend(mounts);
        left.push(format!("/proc/{}", tenant.pid()));
        left.push(node.folder().display().to_string());
        panic!("as a failed test does");
    }));
    panic.unwrap_err();
    for path in left {
        assert!(!Path::new(&path).exists(), "{path} is left");
    }
}
