//! The driver is let go on request: nothing of the agent holds it, nothing is offered or guessed
//! meanwhile, and what comes after is read afresh.
#![expect(clippy::unwrap_used, reason = "what a test needs is there, or the test fails")]

use std::path::Path;
use std::time::Duration;

use gpu_state::node::DEVICE;
use gpu_state::scenario::MigInstance;
use tests::collector::Collector;
use tests::node::{Node, Setup};
use tests::program::{Said, run};
use tests::scrape::Scrape;
use tests::wait::{check, eventually};

const SOON: Duration = Duration::from_secs(15);

fn command(node: &Node, arguments: &[&str]) -> Said {
    run(&node.agent_command(&[&["nvml"], arguments].concat()))
}

/// What of the driver the agent has mapped and open.
fn held(node: &mut Node) -> Vec<String> {
    let process = format!("/proc/{}", node.agent().pid());
    let maps = std::fs::read_to_string(format!("{process}/maps")).unwrap();
    let mapped = maps.lines().filter(|it| it.ends_with("libnvidia-ml.so.1"));
    let files = std::fs::read_dir(format!("{process}/fd")).unwrap();
    let files = files.filter_map(|it| std::fs::read_link(it.unwrap().path()).ok());
    let device = Path::new(DEVICE).as_os_str();
    let open = files.filter(|it| it.file_name() == Some(device));
    mapped.map(str::to_owned).chain(open.map(|it| it.display().to_string())).collect()
}

#[track_caller]
fn until_free(node: &mut Node) {
    eventually(SOON, "nothing of the driver is held", || {
        let held = held(node);
        check(held.is_empty(), || format!("{held:?}"))
    });
}

#[track_caller]
fn until_health(node: &Node, gpu: usize, state: &str) {
    let labels = [("gpu_uuid", node.gpu_uuid(gpu)), ("state", state)];
    node.until(SOON, &format!("GPU {gpu} is {state}"), |it| {
        let value = it.value("gleaner_gpu_health_state", &labels);
        check(value == Some(1.0), || format!("{value:?}"))
    });
}

fn info(scrape: &Scrape, node: &Node, label: &str) -> Option<String> {
    scrape.label("gleaner_gpu_info", &[("gpu_uuid", node.gpu_uuid(0))], label)
}

fn instance(number: u32) -> MigInstance {
    MigInstance {
        uuid: format!("MIG-{number}"),
        profile: "3g.40gb".to_owned(),
        gpu_instance: number,
        memory_mib: 40_000,
        ..MigInstance::default()
    }
}

#[test]
fn a_released_driver_is_free_and_what_comes_after_is_read_afresh() {
    let collector = Collector::start();
    let mut node = Setup::gpus(2).reporting_to(&collector).start();
    let scheduler = collector.scheduler();
    scheduler.until_offered(SOON, node.gpu_uuid(0));
    assert!(!held(&mut node).is_empty());

    let said = command(&node, &["release", "--for", "8s"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.output.contains("nothing of this agent holds the driver"), "{said:?}");
    assert_eq!(held(&mut node), [""; 0]);
    until_health(&node, 0, "released");
    node.until_class(SOON, 0, "unknown");
    scheduler.until_not_offered(SOON, node.gpu_uuid(0));
    let message = node.until_part(SOON, "nvml", "disabled");
    assert!(message.contains("released until"), "{message}");
    node.change(|it| {
        "570.124.06".clone_into(&mut it.driver_version);
        it.gpus[0].mig = Some(vec![instance(1), instance(2)]);
    });

    until_health(&node, 0, "ok");
    node.until(SOON, "what changed is read", |it| {
        let found = (info(it, &node, "driver_version"), info(it, &node, "mig"));
        let expected = (Some("570.124.06".to_owned()), Some("on".to_owned()));
        let device = [("gpu_uuid", node.gpu_uuid(0))];
        let classes = it.all("gleaner_gpu_class", &device);
        let instances: Vec<_> = classes.filter_map(|it| it.labels.get("mig_uuid")).collect();
        check(found == expected && instances == ["MIG-1", "MIG-2"], || {
            format!("{found:?} {instances:?}")
        })
    });
    let released = [("share", "unobserved"), ("reason", "released")];
    let both = [0, 1].map(|gpu| {
        let labels = [&released[..], &[("gpu_uuid", node.gpu_uuid(gpu))]].concat();
        node.metrics().sum("gleaner_gpu_seconds_total", &labels).unwrap_or(0.0)
    });
    assert!(both.iter().all(|it| (7.0..12.0).contains(it)), "{both:?} s");
    scheduler.until_offered(SOON, node.gpu_uuid(1));
    assert!(!held(&mut node).is_empty());
}

#[test]
fn doctor_does_not_open_what_an_agent_has_let_go() {
    let mut node = Setup::gpus(1).start();
    assert_eq!(command(&node, &["release", "--for", "10m"]).code, Some(0));
    // The driver would not come up: who asks it finds that out.
    node.change(|it| it.nvml_init_fails = Some(999));
    let said = run(&node.agent_command(&["doctor"]));
    let line = said.output.lines().find(|it| it.contains(" nvml "));
    let line = line.unwrap_or_else(|| panic!("{said:?}"));
    assert!(line.starts_with("off") && line.contains("released until"), "{line}");
    assert_eq!(said.code, Some(0), "{said:?}");
}

#[test]
fn a_release_ends_by_hand_too_and_once() {
    let mut node = Setup::gpus(1).start();
    assert_eq!(command(&node, &["take"]).code, Some(69));
    assert_eq!(command(&node, &["release", "--for", "24h"]).code, Some(0));
    assert_eq!(held(&mut node), [""; 0]);
    assert_eq!(command(&node, &["take"]).code, Some(0));
    until_health(&node, 0, "ok");
    node.until_class(SOON, 0, "free");
    assert_eq!(command(&node, &["take"]).code, Some(69));
}

#[test]
fn a_device_inside_a_call_is_named_and_holds_the_driver_until_it_returns() {
    let mut node = Setup::gpus(2).start();
    node.change(|it| it.gpus[1].hang_ms = 600_000);
    until_health(&node, 1, "hung");
    let said = command(&node, &["release", "--for", "10m"]);
    assert_eq!(said.code, Some(75), "{said:?}");
    let hung = format!("GPU {} is still inside a call", node.gpu_uuid(1));
    let parts = [hung.as_str(), "the driver cannot be unloaded until that returns"];
    assert!(parts.iter().all(|it| said.errors.contains(it)), "{said:?}");
    assert!(!said.errors.contains(node.gpu_uuid(0)), "{said:?}");
    until_health(&node, 0, "released");
    let message = node.until_part(SOON, "nvml", "disabled");
    assert!(message.contains(&hung), "{message}");

    node.change(|it| it.gpus[1].hang_ms = 0);
    until_free(&mut node);
    until_health(&node, 1, "released");
    eventually(SOON, "the status says so", || {
        let message = node.until_part(SOON, "nvml", "disabled");
        check(message.contains("nothing of this agent holds the driver"), || message)
    });
    assert_eq!(command(&node, &["take"]).code, Some(0));
    until_health(&node, 1, "ok");
}
