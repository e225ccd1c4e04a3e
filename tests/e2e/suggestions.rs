//! What people can do about a device in trouble is said on the node and at the centre alike, and goes
//! when the trouble does. (`failures` has the suggestion of each state.)
#![expect(clippy::unwrap_used, reason = "what a test needs is there, or the test fails")]

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use serde_json::Value;
use tests::artefacts::artefact;
use tests::collector::Collector;
use tests::node::{Node, Setup};
use tests::program::run;
use tests::scrape::Scrape;
use tests::wait::{check, eventually};

const SOON: Duration = Duration::from_secs(15);
const ACTION: &str = "gleaner_gpu_suggested_action";

/// A code of `nvml.h`.
const LIB_RM_VERSION_MISMATCH: u32 = 18;
const UNKNOWN: u32 = 999;

fn action(scrape: &Scrape, uuid: &str) -> Option<String> {
    scrape.label(ACTION, &[("gpu_uuid", uuid)], "action")
}

#[track_caller]
fn until_suggested(node: &Node, gpu: usize, wanted: Option<&str>) {
    let uuid = node.gpu_uuid(gpu);
    node.until(SOON, &format!("{wanted:?} is suggested for GPU {gpu}"), |it| {
        let found = action(it, uuid);
        check(found.as_deref() == wanted, || format!("{found:?}"))
    });
}

/// Of the library that the agent has mapped now.
fn mapped_inode(node: &mut Node) -> Option<u64> {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", node.agent().pid())).unwrap();
    let line = maps.lines().find(|it| it.ends_with("libnvidia-ml.so.1"))?;
    line.split_whitespace().nth(4)?.parse().ok()
}

#[test]
fn a_driver_that_is_replaced_underneath_is_opened_again_once_its_library_is_there() {
    let mut node = Setup::gpus(2).start();
    node.change(|it| {
        let fails = &mut it.gpus[0].nvml_fails;
        fails.insert("nvmlDeviceGetUtilizationRates".to_owned(), LIB_RM_VERSION_MISMATCH);
        it.nvml_init_fails = Some(LIB_RM_VERSION_MISMATCH);
    });
    let message = node.until_part(SOON, "nvml", "failed");
    assert!(message.contains("Finish the upgrade"), "{message}");
    for gpu in [0, 1] {
        until_suggested(&node, gpu, Some("finish_upgrade"));
        node.until_class(SOON, gpu, "unknown");
    }
    // It stays so when the library is opened anew, and the new one is another file.
    let library = node.folder().join("libnvidia-ml.so.1");
    let old = std::fs::metadata(&library).unwrap().ino();
    let next = node.folder().join("next");
    std::fs::copy(artefact("libnvml_stub.so"), &next).unwrap();
    std::fs::rename(&next, &library).unwrap();
    let new = std::fs::metadata(&library).unwrap().ino();
    assert_ne!(old, new);
    node.change(|it| {
        it.gpus[0].nvml_fails.clear();
        it.nvml_init_fails = None;
        "570.124.06".clone_into(&mut it.driver_version);
    });
    for gpu in [0, 1] {
        until_suggested(&node, gpu, None);
        node.until_class(SOON, gpu, "free");
    }
    assert_eq!(mapped_inode(&mut node), Some(new));
    let version = [("gpu_uuid", node.gpu_uuid(1)), ("driver_version", "570.124.06")];
    assert_eq!(node.metrics().all("gleaner_gpu_info", &version).count(), 1);
}

#[test]
fn a_suggestion_is_said_to_people_and_programs_on_the_node_and_at_the_centre() {
    let collector = Collector::start();
    let mut node = Setup::gpus(2).reporting_to(&collector).start();
    node.change(|it| {
        it.gpus[1].fields.insert("230".to_owned(), 2);
    });
    // Figures are read every ten seconds.
    until_suggested(&node, 1, Some("reboot_node"));
    until_suggested(&node, 0, None);
    let device = &node.status()["devices"][1];
    assert_eq!(device["suggestion"]["action"], "reboot_node", "{device}");
    assert_eq!(node.status()["devices"][0]["suggestion"], Value::Null);
    collector.until(SOON, "the collector has it too", |it| {
        let found = action(it, node.gpu_uuid(1));
        check(found.as_deref() == Some("reboot_node"), || format!("{found:?}"))
    });
    eventually(SOON, "`top --json` says it", || {
        let said = run(&collector.client(&["top", "--once", "--json"]));
        let fleet: Value = serde_json::from_str(&said.output).map_err(|it| it.to_string())?;
        let gpus = &fleet["nodes"][0]["gpus"];
        let found = (&gpus[0]["suggestion"], &gpus[1]["suggestion"]["action"]);
        check(found == (&Value::Null, &"reboot_node".into()), || format!("{gpus}"))
    });
    let doctor = run(&node.agent_command(&["doctor"]));
    let says = format!("GPU {} is ok: the driver asks for a reboot", node.gpu_uuid(1));
    assert!(doctor.output.contains(&says), "{doctor:?}");
    assert!(doctor.output.contains("to do: reboot node"), "{doctor:?}");
}

#[test]
fn a_device_that_answers_in_part_has_its_log_read() {
    let mut node = Setup::gpus(2).start();
    node.change(|it| {
        let fails = &mut it.gpus[0].nvml_fails;
        fails.insert("nvmlDeviceGetUtilizationRates".to_owned(), UNKNOWN);
    });
    until_suggested(&node, 0, Some("read_log"));
    until_suggested(&node, 1, None);
    node.change(|it| it.gpus[0].nvml_fails.clear());
    until_suggested(&node, 0, None);
}
