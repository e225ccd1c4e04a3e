//! The agent is killed, replaced, stopped and paused under load: each launch counts once, and what is
//! left in the kernel is what shall be.
#![expect(clippy::unwrap_used, reason = "what a test needs is there, or the test fails")]

use std::path::Path;
use std::process;
use std::time::Duration;

use agent::control::client::ask;
use agent::control::{Answer, Command};
use agent::samplers::process::driver::boot_id;
use agent::spool::{BatchLimits, Spool};
use nix::sys::signal::Signal;
use prost::Message;
use proto::telemetry::v1::record::Kind;
use proto::telemetry::v1::{Record, Tile};
use tests::bpffs::BpfFs;
use tests::collector::Collector;
use tests::node::{Node, Setup};
use tests::program::run;
use tests::tenant::Tenant;
use tests::usage::conserved_wall;
use tests::wait::{check, eventually, now};

const SOON: Duration = Duration::from_secs(20);
const LAUNCHES: &str = "gleaner_tenant_cuda_launches_total";

/// What an agent that hangs is given before its successor gives up.
const HUNG: Duration = Duration::from_secs(8);

fn pinning(pins: &BpfFs) -> impl FnOnce(&mut Setup) {
    let pin_root = pins.pin_root();
    move |it| it.config.cuda.pin_root = pin_root
}

/// A node that reports, and whose hooks outlive its agent.
fn node(collector: &Collector, pins: &BpfFs) -> Node {
    Setup::gpus(1).reporting_to(collector).with(pinning(pins)).start()
}

fn busy(node: &Node, name: &str) -> Tenant {
    node.tenant(name, &["--launches-per-second=2000"])
}

/// Waits until the collector has so many launches, over all tenants.
#[track_caller]
fn until_arrived(collector: &Collector, launches: u64) {
    collector.until(SOON, "every launch has arrived once", |it| {
        let found: u64 = it.all(LAUNCHES, &[]).map(|it| it.value.parse::<u64>().unwrap()).sum();
        check(found == launches, || format!("{found} of {launches}"))
    });
}

#[test]
fn an_agent_that_is_killed_under_load_loses_no_launch_and_counts_none_twice() {
    let (collector, pins) = (Collector::start(), BpfFs::new());
    let mut node = node(&collector, &pins);
    let tenant = busy(&node, "steady");
    let mut launches = 0;
    for round in 0..10 {
        // Some end under the eyes of an agent that takes the news to its grave, some unseen.
        let before = busy(&node, "before");
        let between = busy(&node, "between");
        std::thread::sleep(Duration::from_millis(700 + 130 * round));
        launches += before.stop().launches();
        std::thread::sleep(Duration::from_millis(50));
        node.kill_agent();
        launches += between.stop().launches();
        launches += node.tenant("unseen", &["--launches=500"]).finish().launches();
        node.start_agent();
    }
    launches += tenant.stop().launches();
    until_arrived(&collector, launches);
}

#[test]
fn an_agent_that_is_killed_before_its_first_record_loses_no_launch() {
    let (collector, pins) = (Collector::start(), BpfFs::new());
    let mut node = Setup::gpus(1).reporting_to(&collector).with(pinning(&pins)).make();
    node.start_agent_unready();
    eventually(SOON, "the library is hooked", || {
        check(node.agent_log().contains("tracing CUDA calls"), || "not yet".to_owned())
    });
    let tenant = busy(&node, "steady");
    let launches = node.tenant("unseen", &["--launches=500"]).finish().launches();
    node.kill_agent();
    node.start_agent();
    until_arrived(&collector, launches + tenant.stop().launches());
}

#[test]
fn hand_overs_under_load_lose_nothing_and_leave_a_gap_of_a_moment() {
    let (collector, pins) = (Collector::start(), BpfFs::new());
    let mut node = node(&collector, &pins);
    let tenant = busy(&node, "steady");
    let mut launches = 0;
    for _ in 0..5 {
        let other = busy(&node, "other");
        std::thread::sleep(Duration::from_millis(1_300));
        let hooks = pins.library_links();
        let old = node.hand_over();
        assert_eq!(pins.library_links(), hooks, "nothing was attached anew");
        launches += other.stop().launches();
        assert!(old.stop().success());
        assert_eq!(pins.library_links(), hooks, "the old one removes nothing");
    }
    launches += tenant.stop().launches();
    until_arrived(&collector, launches);
    eventually(SOON, "tiles are contiguous but for a moment each", || {
        let usage = collector.usage()?;
        check(conserved_wall(&usage) > 6_000_000_000, || format!("{usage:?}"))?;
        let gaps = usage.unowned.iter().filter(|it| it.reason == "agent_down");
        let gap: u128 = gaps.map(|it| tests::usage::nanoseconds(it.time.unwrap())).sum();
        check(gap < 5 * 2_000_000_000, || format!("{gap} ns in five hand-overs"))
    });
}

/// Every tile in the spool of a node whose agent has stopped, in the order of their numbers.
fn tiles(node: &Node) -> Vec<Tile> {
    let config = node.config.clone().parse().unwrap();
    let boot_id = boot_id(Path::new("/proc")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let limits = BatchLimits { records: 10_000, bytes: 64 << 20 };
    let batch = runtime.block_on(async {
        let spool = Spool::open(&config.spool, &boot_id).unwrap();
        let batch = spool.handle().next_batch(1, limits).await.unwrap().unwrap();
        spool.close(SOON).await;
        batch
    });
    let records = batch.records.iter().map(|it| Record::decode(&*it.payload).unwrap());
    let tile = |it: Record| match it.kind {
        Some(Kind::Tile(tile)) => Some(tile),
        _ => None,
    };
    records.filter_map(tile).collect()
}

#[test]
fn each_tile_begins_where_the_one_before_it_ended_whichever_agent_made_it() {
    let pins = BpfFs::new();
    let mut node = Setup::gpus(1).with(pinning(&pins)).start();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(1_300));
        assert!(node.hand_over().stop().success());
    }
    std::thread::sleep(Duration::from_millis(1_300));
    assert!(node.stop_agent().success());
    let tiles = tiles(&node);
    assert!(tiles.len() > 6, "{tiles:?}");
    for pair in tiles.windows(2) {
        assert_eq!(pair[0].end_ns, pair[1].start_ns, "{pair:?}");
        assert!(pair[1].start_ns < pair[1].end_ns, "{pair:?}");
    }
}

#[test]
fn before_a_successor_that_counts_otherwise_all_hooks_are_detached() {
    let (collector, pins) = (Collector::start(), BpfFs::new());
    let mut node = node(&collector, &pins);
    let mut launches = node.tenant("before", &["--launches=500"]).finish().launches();
    let socket = node.config.spool.path.join("admin.sock");
    let command = Command::Handover { abi: agent_ebpf::ABI + 1, version: "next".to_owned() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answer = runtime.block_on(ask(&socket, &command, SOON)).unwrap();
    let Answer::Done(text) = answer else { panic!("{answer:?}") };
    assert!(text.contains("all hooks are detached, all records are in the spool"), "{text}");
    assert_eq!(pins.pins(), [].into());
    assert!(node.stop_agent().success());
    node.tenant("between", &["--launches=500"]).finish();
    node.start_agent();
    launches += node.tenant("after", &["--launches=500"]).finish().launches();
    until_arrived(&collector, launches);
}

#[test]
fn another_user_may_not_ask_even_where_the_socket_is_open() {
    use std::os::unix::fs::PermissionsExt;
    let (collector, pins) = (Collector::start(), BpfFs::new());
    let node = node(&collector, &pins);
    let folder = &node.config.spool.path;
    for (path, mode) in [(folder.clone(), 0o755), (folder.join("admin.sock"), 0o666)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    for arguments in [&["trace", "pause", "--for", "10m"][..], &["trace", "resume"]] {
        let asked = node.agent_command(arguments);
        let mut other = process::Command::new("setpriv");
        other.args(["--reuid=65533", "--regid=65533", "--clear-groups"]);
        other.arg(asked.get_program()).args(asked.get_args());
        let said = run(&other);
        assert!(said.code != Some(0) && said.errors.contains("user 65533 may not ask"), "{said:?}");
    }
    node.until_part(SOON, "tracing", "active");
    assert!(!pins.library_links().is_empty());
}

#[test]
fn a_stop_leaves_nothing_in_the_kernel() {
    let (collector, pins) = (Collector::start(), BpfFs::new());
    let mut node = node(&collector, &pins);
    assert!(!pins.library_links().is_empty());
    assert!(node.stop_agent().success());
    assert_eq!(pins.pins(), [].into());
}

#[test]
fn detach_removes_what_a_killed_agent_left_and_refuses_while_one_runs() {
    let (collector, pins) = (Collector::start(), BpfFs::new());
    let mut node = node(&collector, &pins);
    let refused = run(&node.agent_command(&["detach"]));
    assert_eq!(refused.code, Some(69));
    assert!(refused.errors.contains("a running agent owns what is pinned"), "{}", refused.errors);
    node.kill_agent();
    assert!(!pins.library_links().is_empty());
    let root = pins.pin_root().display().to_string();
    let removed = run(&node.agent_command(&["detach", "--pin-root", &root]));
    assert_eq!(removed.code, Some(0));
    assert!(removed.output.starts_with("removed "), "{}", removed.output);
    assert_eq!(pins.pins(), [].into());
    let again = run(&node.agent_command(&["detach"]));
    assert_eq!(again.code, Some(0));
    assert!(again.output.starts_with("nothing is pinned"), "{}", again.output);
}

#[test]
fn an_agent_that_hangs_is_named_and_left_alone() {
    let (collector, pins) = (Collector::start(), BpfFs::new());
    let mut node = node(&collector, &pins);
    node.agent().send(Signal::SIGSTOP);
    let asked = now();
    let refused = run(&node.agent_command(&[]));
    assert!(asked.elapsed() < HUNG, "{:?}", asked.elapsed());
    assert_eq!(refused.code, Some(69));
    assert!(refused.errors.contains("did not answer within 5 s"), "{}", refused.errors);
    assert!(!pins.library_links().is_empty());
    node.agent().send(Signal::SIGCONT);
    assert!(node.stop_agent().success());
}

#[test]
fn of_two_successors_one_wins() {
    let (collector, pins) = (Collector::start(), BpfFs::new());
    let mut node = node(&collector, &pins);
    let tenant = busy(&node, "t");
    let [mut one, mut two] = node.other_agents();
    eventually(SOON, "one of them serves, and the other one has ended or handed over", || {
        let ended = [&mut one, &mut two].into_iter().filter_map(|it| it.ended()).count();
        let handed = [&one, &two].iter().filter(|it| it.log().contains("handed over")).count();
        check(ended + handed == 1, || {
            format!("{ended} ended, {handed} handed over: {}\n{}", one.log(), two.log())
        })?;
        tests::scrape::get(&node.url("/readyz")).map(drop)
    });
    until_arrived(&collector, tenant.stop().launches());
    drop((one, two));
    assert!(node.stop_agent().success());
}

/// `gleaner-agent trace …`.
fn trace(node: &Node, arguments: &[&str]) -> tests::program::Said {
    run(&node.agent_command(&[&["trace"], arguments].concat()))
}

#[test]
fn a_pause_takes_all_hooks_off_and_nothing_is_known_meanwhile() {
    let (collector, pins) = (Collector::start(), BpfFs::new());
    let node = node(&collector, &pins);
    let tenant = busy(&node, "t");
    node.until(SOON, "launches are counted", |it| {
        check(it.count(LAUNCHES, &[("tenant", "t")]) > Some(100), || "none".to_owned())
    });
    let said = trace(&node, &["pause", "--for", "10m"]);
    assert_eq!(said.code, Some(0), "{}", said.errors);
    assert!(said.output.starts_with("tracing is paused until "), "{}", said.output);
    assert_eq!(pins.pins(), [].into());
    let reason = node.until_part(SOON, "tracing", "failed");
    assert!(reason.starts_with("paused until "), "{reason}");
    let on = |it: &tests::scrape::Scrape| it.sum("gleaner_tracing_on", &[]);
    node.until(SOON, "it is off", |it| check(on(it) == Some(0.0), || format!("{:?}", on(it))));
    let frozen = node.metrics().count(LAUNCHES, &[("tenant", "t")]);
    assert!(frozen > Some(100), "what was counted is kept: {frozen:?}");
    let said = trace(&node, &["resume"]);
    assert_eq!(said.code, Some(0), "{}", said.errors);
    node.until(SOON, "it is on", |it| check(on(it) == Some(1.0), || format!("{:?}", on(it))));
    assert!(!pins.library_links().is_empty());
    let said = trace(&node, &["resume"]);
    assert_eq!((said.code, said.errors.trim()), (Some(69), "gleaner-agent: tracing is not paused"));
    drop(tenant);
}

#[test]
fn a_pause_ends_by_itself() {
    let (collector, pins) = (Collector::start(), BpfFs::new());
    let node = node(&collector, &pins);
    assert_eq!(trace(&node, &["pause", "--for", "1s"]).code, Some(0));
    assert_eq!(pins.pins(), [].into());
    node.until_part(SOON, "tracing", "active");
    assert!(!pins.library_links().is_empty());
}

#[test]
fn a_user_with_the_two_capabilities_pins_and_goes_on() {
    const USER: &str = "65532";
    let (collector, pins) = (Collector::start(), BpfFs::new());
    let mut node = Setup::gpus(1).reporting_to(&collector).with(pinning(&pins)).make();
    let spool = &node.config.spool.path;
    std::fs::create_dir(spool).unwrap();
    for folder in [node.folder(), spool] {
        std::os::unix::fs::chown(folder, Some(65_532), Some(65_532)).unwrap();
    }
    let capable = || {
        let mut command = process::Command::new("setpriv");
        let capabilities = "-all,+bpf,+perfmon";
        command.args(["--reuid", USER, "--regid", USER, "--clear-groups"]);
        for set in ["--inh-caps", "--ambient-caps", "--bounding-set"] {
            command.args([set, capabilities]);
        }
        command
    };
    node.start_agent_under(capable());
    eventually(SOON, "it is ready", || tests::scrape::get(&node.url("/status")).map(drop));
    node.until_part(SOON, "tracing", "active");
    let tenant = node.tenant_of_user(65_532, &["--launches-per-second=500"]);
    let hooks = pins.library_links();
    assert!(!hooks.is_empty());
    node.kill_agent();
    node.start_agent_under(capable());
    node.until_part(SOON, "tracing", "active");
    assert_eq!(pins.library_links(), hooks, "nothing was attached anew");
    until_arrived(&collector, tenant.stop().launches());
    assert!(node.stop_agent().success());
    assert_eq!(pins.pins(), [].into());
}
