//! What `gleaner-agent record` writes of each fixture, replayed: the same scrape as of the fixture
//! itself, but for the names that are stand-ins.

use std::time::Duration;

use gpu_state::scenario::{NAME, Scenario};
use tests::artefacts::artefact;
use tests::daemon::Daemon;
use tests::wait::{check, eventually};

use super::fixtures::{APART, golden, scenario, scrape, settled};
use crate::nvml_sampler::rig::Rig;

const LENGTH: Duration = Duration::from_secs(2);
const SOON: Duration = Duration::from_secs(20);

/// Starts the recorder on a node, and gives it with its file once there are readings in it.
fn recorder(rig: &Rig) -> (Daemon, std::path::PathBuf) {
    let folder = rig.folder.path();
    let [config, file, log] = ["agent.toml", "recorded.toml", "log"].map(|it| folder.join(it));
    let library = folder.join("libnvidia-ml.so.1");
    let text = format!("tick_ms = 200\n[nvml]\nlibrary = {library:?}\ndeadline_ms = 300\n");
    std::fs::write(&config, text).unwrap();
    let mut command = std::process::Command::new(artefact("gleaner-agent"));
    command.arg("--config").arg(config).arg("record");
    command.arg(format!("--for={}s", LENGTH.as_secs())).arg(&file);
    let daemon = Daemon::start(&command, &log);
    eventually(SOON, "the first reading is in the file", || {
        let text = std::fs::read_to_string(&file).map_err(|it| it.to_string())?;
        check(text.contains("[[gpus]]"), || text)
    });
    (daemon, file)
}

/// The fixture's names as the recording has them.
fn renamed(mut text: String, scenario: &Scenario) -> String {
    let stand_in =
        |kind: &str, index: usize| format!("{kind}-00000000-0000-4000-8000-{index:012x}");
    let instances = scenario.gpus.iter().flat_map(|it| it.mig.iter().flatten());
    for (index, instance) in instances.enumerate() {
        text = text
            .replace(&format!("\"{}\"", instance.uuid), &format!("\"{}\"", stand_in("MIG", index)));
    }
    for (index, gpu) in scenario.gpus.iter().enumerate() {
        text =
            text.replace(&format!("\"{}\"", gpu.uuid), &format!("\"{}\"", stand_in("GPU", index)));
    }
    text
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines
}

async fn replays(name: &str) {
    let mut rig = Rig::new(scenario(name).unwrap());
    let (mut daemon, file) = recorder(&rig);
    tokio::time::sleep(2 * APART).await;
    if let Some(then) = scenario(&format!("{name}.then")) {
        rig.change(|it| *it = then);
    }
    assert!(daemon.wait(SOON).success(), "{}", daemon.log());
    let recorded = std::fs::read_to_string(file).unwrap();
    let original = std::mem::take(&mut rig.scenario);

    let mut replay = Rig::new(Scenario::default());
    std::fs::write(replay.folder.path().join(NAME), &recorded).unwrap();
    replay.read().await;
    tokio::time::sleep(APART).await;
    replay.read().await;
    tokio::time::sleep(LENGTH).await;
    let readings = replay.after(10).await;
    let body = settled(&scrape(readings, replay.sampler.stats()));
    let expected = renamed(golden(name), &original);
    assert_eq!(sorted(&body), sorted(&expected), "{name}:\n{recorded}");
}

#[tokio::test]
async fn mig() {
    replays("mig-seven").await;
    replays("mig-mixed").await;
}

#[tokio::test]
async fn shared() {
    replays("mps").await;
    replays("time-sliced").await;
}

#[tokio::test]
async fn what_devices_lack() {
    replays("vgpu").await;
    replays("t4").await;
}

#[tokio::test]
async fn blackwell() {
    replays("blackwell").await;
}

#[tokio::test]
async fn idle() {
    replays("idle").await;
}

#[tokio::test]
async fn what_cannot_be_true() {
    replays("garbage").await;
    replays("memory-unknown").await;
}

#[tokio::test]
async fn wrap_and_reset() {
    replays("wrap").await;
    replays("energy-reset").await;
}

#[tokio::test]
async fn falls_off_the_bus() {
    replays("falls-off").await;
}

#[tokio::test]
async fn hangs() {
    replays("hangs").await;
}
