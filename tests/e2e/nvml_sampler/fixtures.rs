//! What a scrape says of the GPUs of each fixture, word for word.
//!
//! A fixture is a scenario in `tests/scenarios/nvml`, and what it becomes before its last tick in a
//! second file where there is one. A difference rewrites the golden text and fails: read what it
//! wrote, then commit it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent::classify::Policy;
use agent::config::Allocations;
use agent::model::readings::{CudaReadings, NvmlReadings, Readings};
use agent::model::units::BootNs;
use agent::pipeline::Pipeline;
use agent::uplink::encode::live_update;
use gpu_state::scenario::Scenario;
use proto::exposition::Text;
use proto::series;
use proto::telemetry::v1::NodeIdentity;
use tests::prometheus::promtool_findings;

use crate::nvml_sampler::rig::Rig;

/// What depends on when the test runs.
const MOVING: &str = "gleaner_gpu_energy_joules_total";
/// Whether the listener has begun by the last tick depends on the machine.
const LEFT_OUT: &str = "gleaner_gpu_xid_heard";

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
pub(crate) fn scrape(at: u64, nvml: NvmlReadings) -> String {
    let (policy, tile) = (Policy::new(Allocations::None), Duration::from_secs(10));
    let mut pipeline = Pipeline::new(policy, tile, BTreeMap::new(), None);
    let (cuda, holders) = (CudaReadings::default(), BTreeMap::new());
    pipeline.step(Readings { at: BootNs(at), nvml, cuda, holders });
    let seen = pipeline.observation().unwrap();
    let identity = NodeIdentity { node: "n".to_owned(), ..NodeIdentity::default() };
    let update = live_update(&identity, seen, pipeline.since(), 0, 0);
    let mut text = Text::default();
    series::write_live(&mut text, &[("n", &update)]);
    text.into_body()
}

pub(crate) fn settled(body: &str) -> String {
    let line = |line: &str| match line.starts_with(MOVING) {
        true => format!("{} 1\n", line.rsplit_once(' ').unwrap().0),
        false => format!("{line}\n"),
    };
    body.lines().filter(|it| !it.contains(LEFT_OUT)).map(line).collect()
}

/// The golden text.
pub(crate) fn golden(name: &str) -> String {
    std::fs::read_to_string(file("golden", &format!("{name}.prom"))).unwrap()
}

/// The last of three ticks: what the fixture became is read by it alone.
pub(crate) async fn reading(name: &str) -> NvmlReadings {
    let mut rig = Rig::new(scenario(name).unwrap());
    rig.read().await;
    tokio::time::sleep(APART).await;
    rig.read().await;
    if let Some(then) = scenario(&format!("{name}.then")) {
        rig.change(|it| *it = then);
    }
    tokio::time::sleep(APART).await;
    rig.after(10).await
}

async fn check(name: &str) {
    let body = scrape(1_000_000_000_000, reading(name).await);
    assert_eq!(promtool_findings(&body), "", "{name}");

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
