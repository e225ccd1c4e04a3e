//! A node of its own with a sampler that reads it.
#![expect(clippy::unwrap_used, reason = "what a test needs is there, or the test fails")]

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use agent::config;
use agent::model::readings::NvmlReadings;
use agent::model::units::BootNs;
use agent::samplers::nvml::Sampler;
use gpu_state::scenario::Scenario;
use tempfile::TempDir;
use tests::artefacts::artefact;

pub(crate) const DEADLINE: Duration = Duration::from_millis(1_500);
const SECOND: u64 = 1_000_000_000;

/// A node with its own copy of the libraries, and a sampler that reads it.
pub(crate) struct Rig {
    pub(crate) folder: TempDir,
    pub(crate) scenario: Scenario,
    pub(crate) sampler: Sampler,
    second: u64,
}

/// A process of a tenant; ends with the value.
pub(crate) struct Tenant(pub(crate) Child);

impl Rig {
    pub(crate) fn new(scenario: Scenario) -> Self {
        let rig = Self::without_library(scenario);
        rig.install();
        rig
    }

    pub(crate) fn without_library(scenario: Scenario) -> Self {
        let folder = tempfile::tempdir().unwrap();
        scenario.write(folder.path()).unwrap();
        let library = folder.path().join("libnvidia-ml.so.1");
        let sampler = Sampler::start(&config::Nvml { library, deadline: DEADLINE });
        Self { folder, scenario, sampler, second: 1_000 }
    }

    pub(crate) fn install(&self) {
        let library = self.folder.path().join("libnvidia-ml.so.1");
        std::fs::copy(artefact("libnvml_stub.so"), library).unwrap();
        let library = self.folder.path().join("libcuda.so.1");
        std::fs::copy(artefact("libcuda_stub_cmp.so"), library).unwrap();
    }

    pub(crate) fn change(&mut self, change: impl FnOnce(&mut Scenario)) {
        change(&mut self.scenario);
        self.scenario.write(self.folder.path()).unwrap();
    }

    pub(crate) fn fail(&mut self, call: &str, code: u32) {
        self.change(|it| {
            it.gpus[0].nvml_fails.insert(call.to_owned(), code);
        });
    }

    pub(crate) async fn read(&mut self) -> NvmlReadings {
        self.after(1).await
    }

    /// One tick, so many seconds after the one before.
    pub(crate) async fn after(&mut self, seconds: u64) -> NvmlReadings {
        self.second += seconds;
        self.sampler.read(BootNs(self.second * SECOND)).await
    }

    /// Ticks of a second until the reading is as wanted; what takes real time gets it.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&NvmlReadings) -> bool) -> NvmlReadings {
        for _ in 0..200 {
            let readings = self.read().await;
            if wanted(&readings) {
                return readings;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("not within 200 ticks; now {:#?}", self.read().await);
    }

    pub(crate) fn tenant(&self, arguments: &[&str]) -> Tenant {
        let mut command = Command::new(artefact("workload"));
        command.arg("--library").arg(self.folder.path().join("libcuda.so.1"));
        Tenant(command.args(arguments).stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}
