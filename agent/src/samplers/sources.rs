//! Every source of the agent, read together into one `Readings`.
//!
//! A struct with one field per sampler is the registry. What happens between the answers (which
//! process is which, who holds it) is joined here; what they mean is not.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::Config;
use crate::model::ids::{Holder, ProcessId};
use crate::model::readings::{CudaReadings, NvmlReadings, Readings};
use crate::model::units::BootNs;
use crate::model::usage::CudaBaseline;
use crate::samplers::cuda::Tracer;
use crate::samplers::holders::{Resolver, Told};
use crate::samplers::nvml::{self, Sampler};

#[derive(Debug)]
pub struct Sources {
    pub nvml: Sampler,
    pub cuda: Tracer,
    pub holders: Resolver,
}

impl Sources {
    /// Never fails: a source that is missing says so in its readings.
    #[must_use]
    pub fn start(config: &Config, baseline: Option<&CudaBaseline>) -> Self {
        Self {
            nvml: Sampler::start(&config.nvml),
            cuda: Tracer::after(&config.cuda, &config.proc_root, baseline),
            holders: Resolver::new(&config.proc_root),
        }
    }

    pub async fn read(&mut self, at: BootNs) -> Readings {
        let mut nvml = self.nvml.read(at).await;
        nvml::fill_processes(&mut nvml, |tgid| self.holders.process_id(tgid));
        self.cuda.track(&listed(&nvml));
        let cuda = self.cuda.read(at);
        let holders = self.resolve(&nvml, &cuda);
        Readings { at, nvml, cuda, holders }
    }

    /// Detaches from the kernel.
    pub fn stop(self) {
        self.cuda.stop();
    }

    /// Ends without detaching what a successor can go on with. Returns whether there is something.
    pub fn leave(self) -> bool {
        self.cuda.leave()
    }

    fn resolve(&mut self, nvml: &NvmlReadings, cuda: &CudaReadings) -> BTreeMap<ProcessId, Holder> {
        self.holders.learn(&cuda.cgroups);
        let listed = processes(nvml).filter_map(|it| it.process).map(|it| (it, Told::default()));
        let mut told: BTreeMap<ProcessId, Told> = listed.collect();
        for (id, process) in &cuda.processes {
            told.insert(*id, Told { uid: Some(process.uid), cgroup: process.cgroup_id });
        }
        let live: BTreeSet<ProcessId> = told.keys().copied().collect();
        self.holders.retain(&live);
        told.into_iter()
            .filter_map(|(process, told)| Some((process, self.holders.resolve(process, told)?)))
            .collect()
    }
}

fn listed(nvml: &NvmlReadings) -> BTreeSet<u32> {
    processes(nvml).map(|it| it.tgid).collect()
}

fn processes(nvml: &NvmlReadings) -> impl Iterator<Item = &crate::model::readings::ProcessReading> {
    nvml.devices
        .values()
        .flat_map(|device| &device.instances)
        .filter_map(|instance| instance.processes.as_ref())
        .flatten()
}
