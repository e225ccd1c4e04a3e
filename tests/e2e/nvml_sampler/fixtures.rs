//! What a scrape says of the GPUs of each fixture, word for word, also under the names of dcgm-exporter.
//! The whole scrape passes promtool and keeps to what its families declare.
//!
//! A fixture is a scenario in `tests/scenarios/nvml`, and what it becomes before its last tick in a
//! second file where there is one. A difference rewrites the golden text and fails: read what it
//! wrote, then commit it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent::classify::Policy;
use agent::config::Allocations;
use agent::metrics::own::Own;
use agent::metrics::{Snapshot, render};
use agent::model::readings::{CudaCounts, CudaReadings, NvmlReadings, Readings};
use agent::model::units::BootNs;
use agent::pipeline::Pipeline;
use agent::samplers::nvml::NvmlStats;
use agent::spool::SpoolStatus;
use agent::uplink::encode::live_update;
use agent::uplink::link::LinkState;
use gpu_state::scenario::Scenario;
use proto::telemetry::v1::NodeIdentity;
use tests::prometheus::promtool_findings;
use tests::registry::{Server, findings};
use tests::scrape::Scrape;

use crate::nvml_sampler::rig::Rig;

/// What depends on when the test runs.
const MOVING: [&str; 3] = [
    "gleaner_gpu_energy_joules_total",
    "gleaner_gpu_sample_timestamp_seconds",
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
];
/// What the agent says of itself, and what depends on the machine: whether the listener has begun by
/// the last tick.
const LEFT_OUT: [&str; 4] =
    ["gleaner_agent_", "process_", "gleaner_gpu_xid_heard", "DCGM_FI_DEV_XID_ERRORS"];
/// As above, of a family.
const EVENTS: &str = "source=\"events\"";

/// What promtool says of names that are DCGM's.
const DCGM_NAMES: [&str; 3] = [
    "counter metrics should have \"_total\" suffix",
    "label names should be written in 'snake_case' not 'camelCase'",
    "metric name should not include type 'counter'",
];

/// Two samples of GPM are this far apart at least.
pub(crate) const APART: Duration = Duration::from_millis(150);

fn file(folder: &str, name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(name)
}

pub(crate) fn scenario(name: &str) -> Option<Scenario> {
    let path = file("scenarios/nvml", &format!("{name}.toml"));
    let text = std::fs::read_to_string(path).ok()?;
    Some(toml::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}")))
}

/// Everything between the sampler and a scrape.
pub(crate) fn scrape(nvml: NvmlReadings, stats: NvmlStats) -> String {
    let snapshot = Snapshot { dcgm_compat: true, ..snapshot(nvml, stats) };
    render(Some(&snapshot), &Own::register())
}

fn snapshot(nvml: NvmlReadings, stats: NvmlStats) -> Snapshot {
    let (policy, tile) = (Policy::new(Allocations::None), Duration::from_secs(10));
    let mut pipeline = Pipeline::new(policy, tile, BTreeMap::new(), None);
    let (cuda, holders) = (CudaReadings::default(), BTreeMap::new());
    let at = BootNs(1_000_000_000_000);
    pipeline.step(Readings { at, nvml, cuda, holders });
    let seen = pipeline.observation().unwrap();
    let identity = NodeIdentity { node: "n".to_owned(), ..NodeIdentity::default() };
    Snapshot {
        node: identity.node.clone(),
        live: live_update(&identity, seen, pipeline.since(), 0, 0),
        totals: pipeline.totals(at),
        overflow: CudaCounts::default(),
        hit_costs: None,
        nvml: stats,
        waiting_commands: 0,
        spool: SpoolStatus::default(),
        link: LinkState::unconnected("a fixture has no collector"),
        dcgm_compat: false,
    }
}

pub(crate) fn settled(body: &str) -> String {
    let is_of = |line: &str, families: &[&str]| {
        let line = line.trim_start_matches("# HELP ").trim_start_matches("# TYPE ");
        families.iter().any(|it| line.starts_with(it))
    };
    let settle = |line: &str| match !line.starts_with('#') && is_of(line, &MOVING) {
        true => format!("{} 1\n", line.rsplit_once(' ').unwrap().0),
        false => format!("{line}\n"),
    };
    let is_kept = |line: &&str| !is_of(line, &LEFT_OUT) && !line.contains(EVENTS);
    body.lines().filter(is_kept).map(settle).collect()
}

/// What we name ourselves is clean, and DCGM's names have only the faults that they bring.
fn check_with_promtool(name: &str, native: &str, both: &str) {
    assert_eq!(promtool_findings(native), "", "{name}");
    let found = promtool_findings(both);
    let foreign = |line: &&str| {
        let fault = line.split_once(' ').filter(|(name, _)| name.starts_with("DCGM_"));
        !fault.is_some_and(|(_, what)| DCGM_NAMES.contains(&what))
    };
    let foreign: Vec<&str> = found.lines().filter(foreign).collect();
    assert_eq!(foreign, ["exit status: 3"], "{name}");
}

/// The golden text.
pub(crate) fn golden(name: &str) -> String {
    std::fs::read_to_string(file("golden", &format!("{name}.prom"))).unwrap()
}

async fn last_tick(name: &str) -> (Rig, NvmlReadings) {
    let mut rig = Rig::new(scenario(name).unwrap());
    rig.read().await;
    tokio::time::sleep(APART).await;
    rig.read().await;
    if let Some(then) = scenario(&format!("{name}.then")) {
        rig.change(|it| *it = then);
    }
    tokio::time::sleep(APART).await;
    let readings = rig.after(10).await;
    (rig, readings)
}

/// The last of three ticks: what the fixture became is read by it alone.
pub(crate) async fn reading(name: &str) -> NvmlReadings {
    last_tick(name).await.1
}

async fn check(name: &str) {
    let (rig, readings) = last_tick(name).await;
    let (mut snapshot, own) = (snapshot(readings, rig.sampler.stats()), Own::register());
    let native = render(Some(&snapshot), &own);
    assert!(!native.contains("DCGM_"), "they are served on demand only");
    snapshot.dcgm_compat = true;
    let body = render(Some(&snapshot), &own);
    check_with_promtool(name, &native, &body);
    let undeclared = findings(&Scrape::parse(body.clone()).unwrap(), Server::Agent);
    assert_eq!(undeclared, Vec::<String>::new(), "{name}");

    let golden = file("golden", &format!("{name}.prom"));
    let fresh = settled(&body);
    if std::fs::read_to_string(&golden).ok().as_ref() != Some(&fresh) {
        std::fs::write(&golden, &fresh).unwrap();
        panic!("{} was not what a scrape says, and is rewritten", golden.display());
    }
}

#[tokio::test]
async fn mig_seven() {
    check("mig-seven").await;
}

#[tokio::test]
async fn mig_mixed() {
    check("mig-mixed").await;
}

#[tokio::test]
async fn mps() {
    check("mps").await;
}

#[tokio::test]
async fn time_sliced() {
    check("time-sliced").await;
}

#[tokio::test]
async fn vgpu() {
    check("vgpu").await;
}

#[tokio::test]
async fn t4() {
    check("t4").await;
}

#[tokio::test]
async fn blackwell() {
    check("blackwell").await;
}

#[tokio::test]
async fn idle() {
    check("idle").await;
}

#[tokio::test]
async fn garbage() {
    check("garbage").await;
}

#[tokio::test]
async fn memory_unknown() {
    check("memory-unknown").await;
}

#[tokio::test]
async fn wrap_and_reset() {
    check("wrap").await;
}

#[tokio::test]
async fn energy_reset() {
    check("energy-reset").await;
}

#[tokio::test]
async fn falls_off_the_bus() {
    check("falls-off").await;
}

#[tokio::test]
async fn hangs() {
    check("hangs").await;
}
