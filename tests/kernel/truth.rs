//! The workload tells the truth: what it says of itself adds up, whatever it was told to do. No
//! tracer here.

use std::collections::BTreeMap;

use crate::rig::{Build, Held, Node};

/// What every process of these tests holds to its end: the memory that copies go between.
const BUFFERS: u64 = 128 << 10;

#[test]
fn what_was_freed_was_allocated() {
    for build in Build::ALL {
        let truth = Node::new(build).run("--rounds 3 --extra --legacy --nested --recursive");
        for (kind, functions) in [
            ("managed", &["cuMemAllocManaged"][..]),
            ("virtual", &["cuMemCreate"]),
            ("stream_ordered", &["cuMemAllocAsync", "cuMemAllocFromPoolAsync"]),
            ("host", &["cuMemAllocHost_v2", "cuMemHostAlloc", "cuMemHostRegister_v2"]),
        ] {
            let all = functions.iter().chain(LEGACY_HOST.iter().filter(|_| kind == "host"));
            let (calls, bytes) = all.fold((0, 0), |(calls, bytes), it| {
                (calls + truth.succeeded(it), bytes + truth.sum(it, |it| it.bytes))
            });
            let freed = truth.freed(kind);
            // Each handle of physical memory is released for itself.
            let retained = truth.succeeded("cuMemRetainAllocationHandle");
            let calls = calls + if kind == "virtual" { retained } else { 0 };
            assert_eq!((freed.calls, freed.bytes), (calls, bytes), "{build:?} {kind}");
        }
        let expected = Held { live_bytes: BUFFERS, ..truth.memory };
        assert_eq!(truth.memory, expected, "{build:?}");
        assert_eq!((truth.memory.host_bytes, truth.memory.stream_ordered_bytes), (0, 0));
        assert_eq!(truth.memory.peak_bytes, BUFFERS + 34_019, "{build:?}: the nested allocation");
        assert_eq!(truth.memory.host_peak_bytes, 26_003, "{build:?}");
    }
}

const LEGACY_HOST: [&str; 2] = ["cuMemAllocHost", "cuMemHostRegister"];

#[test]
fn calls_fail_as_the_driver_lets_them() {
    let truth = Node::new(Build::Push).run("--rounds 5 --fail");
    let failed = |symbol| truth.sum(symbol, |it| it.failed);
    let out_of_memory = |symbol| truth.sum(symbol, |it| it.out_of_memory);
    for (symbol, failures, of_memory) in [
        ("cuMemAlloc_v2", 4, 1),
        ("cuMemAllocManaged", 2, 1),
        ("cuMemAllocPitch_v2", 2, 1),
        ("cuMemCreate", 2, 1),
        ("cuMemAllocHost_v2", 1, 1),
        ("cuMemFree_v2", 2, 0),
        ("cuMemFreeAsync", 1, 0),
        ("cuMemHostUnregister", 1, 0),
        ("cuLaunchKernel", 1, 0),
        ("cuCtxSynchronize", 1, 0),
    ] {
        let got = (failed(symbol), out_of_memory(symbol));
        assert_eq!(got, (5 * failures, 5 * of_memory), "{symbol}");
    }
    assert_eq!(truth.freed("imported").calls, 10, "nothing, and what is somebody else's");
}

#[test]
fn the_devices_share_what_there_is() {
    let truth = Node::new(Build::Cmp).run("--rounds 8 --devices 0,1 --contexts 2 --threads 2");
    let parts = [truth.on(0), truth.on(1)];
    for symbol in ["cuLaunchKernel", "cuMemcpyHtoD_v2", "cuMemAlloc_v2", "cuStreamSynchronize"] {
        let apart: Vec<u64> = parts.iter().map(|it| it.called(symbol)).collect();
        assert!(apart.iter().all(|it| *it > 0), "{symbol} {apart:?}");
        assert_eq!(apart.iter().sum::<u64>(), truth.called(symbol), "{symbol}");
    }
    assert!(parts.iter().all(|it| it.memory.live_bytes == BUFFERS), "{parts:?}");
}

#[test]
fn queued_device_time_is_known_where_kernels_say_how_long_they_run() {
    let node = Node::new(Build::Push);
    let truth = node.run("--launches 30 --kernel-us 700 --synchronize-every 10");
    assert_eq!(truth.busy_ns, Some(30 * 700_000));
    assert_eq!(node.run("--launches 30").busy_ns, None);
}

#[test]
fn children_count_together() {
    let node = Node::new(Build::Cmp);
    node.change(|it| it.release_ms = 0);
    let truth = node.run("--churn 40 --at-a-time 4 --launches 7 --rounds 1");
    assert_eq!(truth.called("cuInit"), 40);
    assert_eq!(truth.called("cuLaunchKernel"), 40 * 8);
    assert_eq!(truth.sum("cuMemcpyPeer", |it| it.bytes), 40 * 15_013);
}

#[test]
fn patched_functions_work() {
    for build in Build::ALL {
        let node = Node::new(build);
        let mut workload = node.start("--rounds 2 --hold --patch-entry before");
        let before = workload.checked();
        assert!(before.works && before.intercepted >= 2, "{build:?} {before:?}");
        let mut workload = node.start("--rounds 2 --hold --patch-entry on-signal");
        let first = workload.check_patch();
        let second = workload.check_patch();
        assert!(first.works && second.works, "{build:?} {first:?} {second:?}");
        assert_eq!(second.results, [0, 0]);
        assert!(second.intercepted >= first.intercepted + 2, "{build:?} {first:?} {second:?}");
    }
}

#[test]
fn launches_are_told_by_the_tenth_of_a_second() {
    let node = Node::new(Build::Push);
    let mut workload = node.start("--flat-out 600ms --hold");
    let slices: Vec<_> = (0..3).map_while(|_| workload.slice()).collect();
    assert_eq!(slices.len(), 3);
    for pair in slices.windows(2) {
        let apart = pair[1].boot_ns - pair[0].boot_ns;
        assert!(apart.abs_diff(pair[1].nanoseconds) < 10_000_000, "{pair:?}");
    }
    let seen: u64 = slices.iter().map(|it| it.launches).sum();
    assert!(seen > 0 && seen <= workload.truth().called("cuLaunchKernel"));
}

#[test]
fn every_symbol_has_its_own_count() {
    let node = Node::new(Build::Cmp);
    let plain = node.run("--rounds 2 --extra");
    let variants = node.run("--rounds 2 --extra --per-thread");
    let asked = node.run("--rounds 2 --extra --legacy --proc-address");
    let named = node.run("--rounds 2 --extra --legacy");
    let counts = |truth: &crate::rig::Truth| -> BTreeMap<String, u64> {
        truth.names().map(|it| (it.to_owned(), truth.called(it))).collect()
    };
    assert_eq!(counts(&asked), counts(&named));
    assert!(variants.names().any(|it| it.ends_with("_ptds")));
    let base = |name: &str| name.trim_end_matches("_ptds").trim_end_matches("_ptsz").to_owned();
    let based: BTreeMap<_, _> =
        variants.names().map(|it| (base(it), variants.called(&base(it)))).collect();
    assert_eq!(based, counts(&plain));
}
