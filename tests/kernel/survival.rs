//! Hooks and counts outlive the agent where they are pinned, and go where nobody needs them.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use agent::clock;
use agent::config;
use agent::model::ids::{Holder, HolderKind};
use agent::model::readings::{Counter, CudaCounts};
use agent::model::usage::{Accounted, CudaBaseline};
use agent::samplers::cuda::Tracer;
use agent::samplers::cuda::library::coverage::HookState;
use agent::samplers::cuda::pins::Removed;
use agent::samplers::cuda::pins::driver::{PinError, remove_all};
use tests::bpffs::BpfFs;
use tests::text::{BREAKPOINT, byte_in_memory};
use tests::wait::{check, eventually, now};

use crate::rig::{Build, Node, exited, only, without_wait};

const SOON: Duration = Duration::from_secs(5);

/// What detaching takes when something is wrong: it takes tens of milliseconds.
const HUNG: Duration = Duration::from_secs(10);

/// Later than a tracer keeps what a predecessor left and nobody asked for.
const LATER_NS: u64 = 20_000_000_000;

/// Whether a process has the breakpoint of a hook in its code.
fn is_hooked(node: &Node, tgid: u32, offset: u64) -> bool {
    byte_in_memory(tgid, &node.library(), offset) == BREAKPOINT
}

/// Where the first function is hooked.
fn an_offset(tracer: &Tracer) -> u64 {
    let hooks = tracer.coverage().remove(0).hooks;
    let offset = hooks.iter().find_map(|it| match it.state {
        HookState::Attached { offset, .. } => Some(offset),
        _ => None,
    });
    offset.expect("something is hooked")
}

#[test]
fn a_successor_goes_on_with_the_same_hooks_and_counts() {
    let (node, pins) = (Node::new(Build::Cmp), BpfFs::new());
    let mut tracer = node.pinning_tracer(&pins.pin_root());
    let mut workload = node.start("--launches-per-second 500 --hold");
    let before = only(&tracer.read(clock::boot()), workload.tgid()).0;
    let pinned = pins.pins();
    tracer.leave();
    let unwatched = workload.truth();
    let ended = node.run("--rounds 4");
    let mut tracer = node.pinning_tracer(&pins.pin_root());
    assert_eq!(pins.pins(), pinned, "nothing was attached anew");
    let readings = tracer.read(clock::boot());
    let (process, counted) = only(&readings, workload.tgid());
    assert_eq!(process, before);
    assert!(counted.counts.launches() >= unwatched.called("cuLaunchKernel"));
    assert!(counted.fully_hooked, "silence is evidence again");
    let (_, counted) = only(&readings, ended.tgid);
    assert!(counted.exited);
    assert_eq!(without_wait(counted.counts), ended.counts());
    workload.signal(nix::sys::signal::Signal::SIGTERM);
    let truth = workload.finish();
    assert_eq!(without_wait(exited(&mut tracer, truth.tgid).1.counts), truth.counts());
}

#[test]
fn a_successor_that_finds_every_row_taken_counts_nothing_of_its_own() {
    let (node, pins) = (Node::new(Build::Cmp), BpfFs::new());
    let start = || {
        let mut config = node.config(1, Some(&pins.pin_root()));
        config.budget = config::Cuda::default().budget;
        Tracer::start(&config, Path::new("/proc"))
    };
    let tracer = start();
    let mut workload = node.start("--rounds 3 --hold");
    let truth = workload.truth_of_rounds(3);
    tracer.leave();
    let readings = start().read(clock::boot());
    let costs = readings.tracing.hit_costs.expect("it was traced");
    assert!(costs.measured, "{costs:?}");
    assert!(readings.overflow.is_zero(), "{:?}", readings.overflow);
    assert_eq!(readings.tracing.lost["calls"], 0);
    assert_eq!(without_wait(only(&readings, truth.tgid).1.counts), truth.counts());
}

#[test]
fn work_that_is_pending_at_a_restart_makes_no_other_program() {
    let (node, pins) = (Node::new(Build::Cmp), BpfFs::new());
    let mut tracer = node.pinning_tracer(&pins.pin_root());
    let mut workload = node.start("--launches 100 --hold");
    while workload.truth().called("cuLaunchKernel") < 100 {}
    let truth = workload.truth();
    let readings = tracer.read(clock::boot());
    let (process, counted) = only(&readings, truth.tgid);
    assert!(counted.counts[Counter::BusyUpperNs] > 0, "nobody has waited for its work");
    tracer.leave();
    let holder = Holder {
        kind: HolderKind::User,
        id: "0".into(),
        tenant: "0".into(),
        namespace: None,
        pod: None,
        container: None,
    };
    let accounted = Accounted { holder, counts: counted.counts, elsewhere: BTreeMap::new() };
    let baseline = CudaBaseline {
        epoch: readings.lineage.epoch,
        processes: BTreeMap::from([(process, accounted)]),
        ..CudaBaseline::default()
    };
    let config = node.config(64, Some(&pins.pin_root()));
    let mut tracer = Tracer::after(&config, Path::new("/proc"), Some(&baseline));
    let readings = tracer.read(clock::boot());
    assert!(!readings.lineage.unknown);
    assert_eq!(readings.lineage.ended, CudaCounts::default(), "it goes on");
    assert_eq!(readings.overflow, CudaCounts::default());
}

#[test]
fn what_an_agent_has_counted_and_not_recorded_is_not_known_to_be_recorded() {
    let (node, pins) = (Node::new(Build::Cmp), BpfFs::new());
    let mut tracer = node.pinning_tracer(&pins.pin_root());
    tracer.read(clock::boot());
    tracer.leave();
    let mut tracer = node.pinning_tracer(&pins.pin_root());
    assert!(!tracer.read(clock::boot()).lineage.unknown, "it counts from the beginning");
    tracer.note_recorded();
    tracer.leave();
    let mut tracer = node.pinning_tracer(&pins.pin_root());
    assert!(tracer.read(clock::boot()).lineage.unknown, "it may be in another spool");
}

#[test]
fn a_stop_leaves_no_pin_and_no_breakpoint() {
    let (node, pins) = (Node::new(Build::Cmp), BpfFs::new());
    let workload = node.start("--rounds 1 --hold");
    let tracer = node.pinning_tracer(&pins.pin_root());
    let offset = an_offset(&tracer);
    assert!(is_hooked(&node, workload.tgid(), offset));
    tracer.stop();
    assert_eq!(pins.pins(), [].into());
    assert!(!pins.pin_root().exists());
    eventually(SOON, "the code is as it was", || {
        check(!is_hooked(&node, workload.tgid(), offset), || "a breakpoint is left".to_owned())
    });
}

#[test]
fn what_a_dead_agent_left_can_be_removed_but_not_what_a_running_one_owns() {
    let (node, pins) = (Node::new(Build::Cmp), BpfFs::new());
    let workload = node.start("--rounds 1 --hold");
    let tracer = node.pinning_tracer(&pins.pin_root());
    let offset = an_offset(&tracer);
    let refused = remove_all(&pins.pin_root()).expect_err("it is in use");
    assert!(matches!(refused, PinError::Owned(_)), "{refused}");
    tracer.leave();
    assert!(is_hooked(&node, workload.tgid(), offset));
    let removed = remove_all(&pins.pin_root()).expect("nobody owns it");
    assert!(removed.links > 8 && removed.maps > 8, "{removed:?}");
    assert_eq!(pins.pins(), [].into());
    eventually(SOON, "the code is as it was", || {
        check(!is_hooked(&node, workload.tgid(), offset), || "a breakpoint is left".to_owned())
    });
    let again = remove_all(&pins.pin_root()).expect("there is nothing to do");
    assert_eq!(again, Removed::default());
}

#[test]
fn a_folder_that_others_may_write_is_not_trusted() {
    let (node, pins) = (Node::new(Build::Cmp), BpfFs::new());
    for (owner, mode) in [(0, 0o777), (12_345, 0o700)] {
        std::fs::create_dir(pins.pin_root()).expect("it can be made");
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(pins.pin_root(), permissions).expect("it is ours");
        std::os::unix::fs::chown(pins.pin_root(), Some(owner), None).expect("it is ours");
        let mut tracer = node.pinning_tracer(&pins.pin_root());
        let tracing = tracer.read(clock::boot()).tracing;
        assert!(tracing.unpinned.is_some_and(|it| it.contains("not trusted")), "{owner} {mode:o}");
        drop(tracer);
        std::fs::remove_dir(pins.pin_root()).expect("nothing was put there");
    }
}

#[test]
fn hooks_in_a_library_that_is_no_longer_traced_go() {
    let (node, pins) = (Node::new(Build::Cmp), BpfFs::new());
    let tracer = node.pinning_tracer(&pins.pin_root());
    tracer.leave();
    let mut other = Node::without_driver().pinning_tracer(&pins.pin_root());
    assert!(!pins.library_links().is_empty(), "the library may be found yet");
    other.read(clock::boot() + LATER_NS);
    assert_eq!(pins.library_links(), [].into());
}

#[test]
fn what_an_agent_of_another_abi_left_is_replaced() {
    let (node, pins) = (Node::new(Build::Cmp), BpfFs::new());
    node.pinning_tracer(&pins.pin_root()).leave();
    let current = pins.pin_root().join(format!("v{}", agent_ebpf::ABI));
    std::fs::rename(&current, pins.pin_root().join("v4000000000")).expect("it can be renamed");
    let old = pins.pins();
    let mut tracer = node.pinning_tracer(&pins.pin_root());
    assert!(pins.pins().values().all(|it| !old.values().any(|old| old == it)), "{old:?}");
    assert!(pins.pins().keys().all(|it| it.starts_with(current.to_str().unwrap())));
    let truth = node.run("--rounds 4");
    assert_eq!(without_wait(exited(&mut tracer, truth.tgid).1.counts), truth.counts());
}

#[test]
fn a_link_that_is_not_what_its_name_says_is_replaced() {
    let (node, pins) = (Node::new(Build::Cmp), BpfFs::new());
    node.pinning_tracer(&pins.pin_root()).leave();
    let links = pins.library_links();
    let find =
        |part: &str| links.keys().find(|it| it.contains(part)).expect("it is pinned").clone();
    let (launches, copies) = (find("-Launches-cuda_launch-"), find("-Copies-cuda_sum-"));
    std::fs::rename(&launches, &copies).expect("it can be renamed");
    let mut tracer = node.pinning_tracer(&pins.pin_root());
    let truth = node.run("--rounds 4");
    assert_eq!(without_wait(exited(&mut tracer, truth.tgid).1.counts), truth.counts());
}

#[test]
fn an_incomplete_set_of_maps_is_replaced_with_all_hooks() {
    let (node, pins) = (Node::new(Build::Cmp), BpfFs::new());
    node.pinning_tracer(&pins.pin_root()).leave();
    let old = pins.pins();
    let counters = old.keys().find(|it| it.ends_with("/maps/COUNTERS")).expect("it is pinned");
    std::fs::remove_file(counters).expect("root may");
    let mut tracer = node.pinning_tracer(&pins.pin_root());
    assert!(pins.pins().values().all(|it| !old.values().any(|old| old == it)));
    let truth = node.run("--rounds 4");
    assert_eq!(without_wait(exited(&mut tracer, truth.tgid).1.counts), truth.counts());
}

#[test]
fn programs_of_another_build_are_replaced_and_go_on_with_the_same_counts() {
    let (node, pins) = (Node::new(Build::Cmp), BpfFs::new());
    let tracer = node.pinning_tracer(&pins.pin_root());
    let mut workload = node.start("--memory-mib 3 --rounds 20 --hold");
    let before = workload.truth_of_rounds(20);
    tracer.leave();
    for path in pins.pins().keys().filter(|it| it.contains("/links/")) {
        let (of_build, since) = path.rsplit_once('-').expect("a name has parts");
        let (of_any, _build) = of_build.rsplit_once('-').expect("a name has parts");
        std::fs::rename(path, format!("{of_any}-{:016x}-{since}", 7)).expect("root may");
    }
    let part = |which: &str| -> Vec<(String, u64)> {
        pins.pins().into_iter().filter(|(path, _)| path.contains(which)).collect()
    };
    let (links, maps) = (part("/links/"), part("/maps/"));
    let mut tracer = node.pinning_tracer(&pins.pin_root());
    assert_eq!(part("/maps/"), maps, "counts go on");
    let replaced = part("/links/");
    assert_eq!(replaced.len(), links.len());
    assert!(replaced.iter().all(|(_, it)| !links.iter().any(|(_, old)| old == it)));
    let (_, counted) = only(&tracer.read(clock::boot()), before.tgid);
    assert_eq!(without_wait(counted.counts), before.counts());
    assert_eq!(counted.memory, None, "calls went unseen for a moment");
    let truth = node.run("--rounds 4");
    assert_eq!(without_wait(exited(&mut tracer, truth.tgid).1.counts), truth.counts());
}

#[test]
fn live_memory_stays_known_over_a_restart() {
    let (node, pins) = (Node::new(Build::Cmp), BpfFs::new());
    let tracer = node.pinning_tracer(&pins.pin_root());
    let mut workload = node.start("--memory-mib 3 --rounds 20 --hold");
    let truth = workload.truth_of_rounds(20);
    tracer.leave();
    let mut tracer = node.pinning_tracer(&pins.pin_root());
    let (_, process) = only(&tracer.read(clock::boot()), truth.tgid);
    let memory = process.memory.expect("every call was seen, by one agent or the other");
    assert_eq!(
        (memory.live_bytes, memory.peak_bytes, memory.host_bytes),
        (truth.memory.live_bytes, truth.memory.peak_bytes, truth.memory.host_bytes)
    );
}

#[test]
fn maps_of_another_bound_go_on_and_the_status_says_so() {
    let (node, pins) = (Node::new(Build::Cmp), BpfFs::new());
    let config = node.config(128, Some(&pins.pin_root()));
    let larger = || Tracer::start(&config, Path::new("/proc"));
    let tracer = node.pinning_tracer(&pins.pin_root());
    let mut workload = node.start("--rounds 4 --hold");
    let truth = workload.truth_of_rounds(4);
    tracer.leave();
    let mut tracer = larger();
    let readings = tracer.read(clock::boot());
    let said = readings.tracing.kept_bounds.clone().expect("it says why");
    assert!(said.starts_with("there is room for 64 processes"), "{said}");
    assert_eq!(without_wait(only(&readings, truth.tgid).1.counts), truth.counts());
    tracer.stop();
    assert_eq!(larger().read(clock::boot()).tracing.kept_bounds, None);
}

#[test]
fn an_agent_whose_maps_another_one_has_taken_counts_no_more() {
    let (node, pins) = (Node::new(Build::Cmp), BpfFs::new());
    let mut old = node.pinning_tracer(&pins.pin_root());
    assert!(old.read(clock::boot()).tracing.on);
    // Nobody but who owns the folder may take them: so they come into another one.
    let elsewhere = pins.pin_root().with_file_name("elsewhere");
    let version = format!("v{}", agent_ebpf::ABI);
    std::fs::create_dir(&elsewhere).expect("root may");
    std::fs::rename(pins.pin_root().join(&version), elsewhere.join(&version)).expect("root may");
    let mut new = node.pinning_tracer(&elsewhere);
    let truth = node.run("--rounds 4");
    for _ in 0..2 {
        let tracing = old.read(clock::boot()).tracing;
        assert!(!tracing.on && tracing.reason.contains("has taken the hooks over"), "{tracing:?}");
    }
    assert_eq!(without_wait(exited(&mut new, truth.tgid).1.counts), truth.counts());
}

#[test]
fn hooks_in_many_processes_go_without_a_hang() {
    let (node, pins) = (Node::new(Build::Cmp), BpfFs::new());
    let workloads: Vec<_> = (0..64).map(|_| node.start("--rounds 1 --hold")).collect();
    let tracer = node.pinning_tracer(&pins.pin_root());
    let offset = an_offset(&tracer);
    let begun = now();
    tracer.stop();
    assert!(begun.elapsed() < HUNG, "{:?}", begun.elapsed());
    assert!(workloads.iter().all(|it| !is_hooked(&node, it.tgid(), offset)));
}

/// Calls are counted all the same, and the reason says what is missing.
fn check_unpinned(node: &Node, pin_root: &Path, reason: &str) {
    let mut tracer = node.pinning_tracer(pin_root);
    let tracing = tracer.read(clock::boot()).tracing;
    let said = tracing.unpinned.expect("nothing is pinned");
    assert!(tracing.on && said.contains(reason), "{said}");
    let truth = node.run("--rounds 4");
    assert_eq!(without_wait(exited(&mut tracer, truth.tgid).1.counts), truth.counts());
}

#[test]
fn without_a_place_for_pins_calls_are_counted_all_the_same() {
    let (node, pins) = (Node::new(Build::Cmp), BpfFs::new());
    let plain = tempfile::tempdir().unwrap();
    check_unpinned(&node, &plain.path().join("gleaner"), "is not in a bpf file system");
    let _owner = Node::without_driver().pinning_tracer(&pins.pin_root());
    check_unpinned(&node, &pins.pin_root(), "a running agent owns what is pinned");
}
