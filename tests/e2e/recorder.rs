//! `gleaner-agent record`: a file that users can send, and what is not in it.
//!
//! That it replays as it was recorded is tested with the fixtures (`nvml_sampler/recordings.rs`).
#![expect(clippy::unwrap_used, reason = "what a test needs is there, or the test fails")]

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use gpu_state::node::Node as Driver;
use gpu_state::scenario::Scenario;
use nix::sys::signal::Signal;
use recording::Recorded;
use tests::daemon::Daemon;
use tests::node::{Node, Setup};
use tests::program::run;
use tests::wait::{check, eventually};

const SOON: Duration = Duration::from_secs(20);
/// Has no name and no files anywhere.
const NOBODY: u32 = 65_533;
/// No process has such a PID: the kernel's largest is 4194304.
const STAND_INS: u32 = 5_000_001;

/// A node with names of its own.
fn setup() -> Setup {
    Setup::gpus(2).named("a-very-own-name").with(|it| {
        it.config.cuda.enabled = false;
        for (gpu, number) in it.scenario.gpus.iter_mut().zip([7, 8]) {
            gpu.uuid = format!("GPU-4b1d3c5e-000{number}-4a2f-9f6e-00000000000{number}");
            gpu.pci_bus_id = format!("00000000:3{number}:00.0");
        }
    })
}

fn file(node: &Node) -> PathBuf {
    node.folder().join("recorded.toml")
}

fn recorded(scenario: &Scenario) -> impl Iterator<Item = &Recorded> {
    scenario.gpus.iter().map(|it| it.recorded.as_ref().unwrap())
}

/// PIDs that a recording has in process lists and samples.
fn pids(scenario: &Scenario) -> Vec<u32> {
    let listed = recorded(scenario).flat_map(|it| it.compute.iter().flatten().map(|row| row.0));
    let steps = scenario.steps.iter().flat_map(|it| it.samples.values().flatten());
    listed.chain(steps.map(|it| it.0)).collect()
}

/// Every text in it.
fn texts(value: &toml::Value) -> Vec<String> {
    match value {
        toml::Value::String(text) => vec![text.clone()],
        toml::Value::Array(all) => all.iter().flat_map(texts).collect(),
        toml::Value::Table(table) => table.values().flat_map(texts).collect(),
        _ => Vec::new(),
    }
}

fn read(path: &PathBuf) -> (Scenario, Vec<String>) {
    let text = std::fs::read_to_string(path).unwrap();
    let table: toml::Table = text.parse().unwrap();
    let scenario = toml::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    (scenario, texts(&toml::Value::Table(table)))
}

fn record(node: &Node, arguments: &[&str]) -> Command {
    let path = file(node);
    node.agent_command(&[&["record", path.to_str().unwrap()], arguments].concat())
}

#[test]
fn nobody_is_named_in_a_recording_beside_a_running_agent() {
    let node = setup().start();
    let tenant = node.tenant("private", &["--launches-per-second=100"]);
    let said = run(&record(&node, &["--for=1s"]));
    assert_eq!(said.code, Some(0), "{said:?}");
    let (scenario, texts) = read(&file(&node));
    assert_eq!(scenario.gpus.len(), 2);
    let listed = pids(&scenario);
    assert!(!listed.is_empty() && listed.iter().all(|it| *it >= STAND_INS), "{listed:?}");

    let host = nix::unistd::gethostname().unwrap().into_string().unwrap();
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().name;
    let bus = "00000000:38:00.0";
    let folder = node.folder().to_str().unwrap();
    for name in [&node.name, "private", "workload", &host, &user, node.gpu_uuid(1), bus, folder] {
        assert!(texts.iter().all(|it| !it.contains(name)), "{name} is in {texts:?}");
    }
    assert_eq!(node.status()["devices"].as_array().unwrap().len(), 2, "the agent goes on");

    // Unless that is asked for.
    std::fs::remove_file(file(&node)).unwrap();
    assert_eq!(run(&record(&node, &["--for=1s", "--with-identities"])).code, Some(0));
    let (scenario, texts) = read(&file(&node));
    assert!(pids(&scenario).contains(&tenant.pid()));
    for name in [node.gpu_uuid(1), bus] {
        assert!(texts.iter().any(|it| it == name), "{name} is not in {texts:?}");
    }
    for name in [&node.name, "private", "workload"] {
        assert!(texts.iter().all(|it| !it.contains(name)), "{name} is in {texts:?}");
    }
}

#[test]
fn the_first_lines_say_what_is_in_it_and_what_is_not() {
    let node = setup().make();
    assert_eq!(run(&record(&node, &["--for=1s"])).code, Some(0));
    let text = std::fs::read_to_string(file(&node)).unwrap();
    let head: Vec<_> = text.lines().take_while(|it| it.starts_with('#')).collect();
    assert!(head.iter().any(|it| it.starts_with("# It has: ")), "{head:?}");
    assert!(head.iter().any(|it| it.starts_with("# It does not have: ")), "{head:?}");
}

#[test]
fn a_file_that_is_there_is_left_as_it_is() {
    let node = setup().make();
    std::fs::write(file(&node), "mine").unwrap();
    let said = run(&record(&node, &["--for=1s"]));
    assert_eq!(said.code, Some(64), "{said:?}");
    assert!(said.errors.contains("is there already"), "{said:?}");
    assert_eq!(std::fs::read_to_string(file(&node)).unwrap(), "mine");
}

#[test]
fn without_a_driver_there_is_no_recording() {
    let node = setup().with(|it| it.scenario.nvml_init_fails = Some(9)).make();
    let said = run(&record(&node, &["--for=1s"]));
    assert_eq!(said.code, Some(69), "{said:?}");
    assert!(said.errors.contains("no NVIDIA driver: the kernel driver is not loaded"), "{said:?}");
    assert!(!file(&node).exists());
}

#[test]
fn it_stops_when_told_to_with_what_it_has() {
    let mut node = setup().make();
    let log = node.folder().join("log");
    let mut recorder = Daemon::start(&record(&node, &["--for=1h"]), &log);
    eventually(SOON, "the devices are in it", || {
        let text = std::fs::read_to_string(file(&node)).map_err(|it| it.to_string())?;
        check(text.contains("[[gpus]]"), || text)
    });
    node.change(|it| {
        it.gpus[1].nvml_fails.insert("nvmlDeviceGetPowerUsage".to_owned(), 15);
    });
    eventually(SOON, "the loss is in it", || {
        let text = std::fs::read_to_string(file(&node)).map_err(|it| it.to_string())?;
        check(text.contains("power = 15"), || text)
    });
    recorder.send(Signal::SIGINT);
    assert!(recorder.wait(SOON).success(), "{}", recorder.log());
    assert!(recorder.log().contains("stopped early"), "{}", recorder.log());
    let (scenario, _) = read(&file(&node));
    assert_eq!(scenario.gpus.len(), 2);
}

#[test]
fn it_needs_no_privilege() {
    let node = setup().make();
    // Somebody who may has opened the node before.
    drop(Driver::open(node.folder()).unwrap());
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("recorded.toml");
    std::os::unix::fs::chown(place.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let inner = node.agent_command(&["record", "--for=1s", path.to_str().unwrap()]);
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")]);
    command.args(["--clear-groups", "--bounding-set=-all"]);
    command.arg(inner.get_program()).args(inner.get_args());
    let said = run(&command);
    assert_eq!(said.code, Some(0), "{said:?}");
    let (scenario, _) = read(&path);
    assert!(recorded(&scenario).all(|it| it.power_mw.is_some()), "{scenario:?}");
}
