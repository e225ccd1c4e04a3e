//! `/status`: what the agent sees and how it is doing, as JSON for people and for tests.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::accounting::Observation;
use crate::health::Part;
use crate::model::ids::InstanceId;
use crate::model::readings::{DeviceReading, Health};
use crate::model::units::BootNs;
use crate::model::usage::HolderView;
use crate::samplers::cuda::library::coverage::{HookCoverage, HookState, LibraryCoverage};

#[derive(Clone, Debug, Serialize)]
pub struct Status {
    pub version: &'static str,
    pub cluster: String,
    pub node: String,
    pub boot_id: String,
    pub parts: Vec<Part>,
    pub devices: Vec<Device>,
    pub libraries: Vec<Library>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Device {
    pub gpu_uuid: String,
    pub index: Option<u32>,
    pub model: Option<String>,
    pub health: &'static str,
    pub instances: Vec<Instance>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Instance {
    pub mig_uuid: Option<String>,
    pub class: &'static str,
    pub class_age_seconds: f64,
    pub reason: String,
    /// Absent = the driver gave no process list.
    pub holders: Option<Vec<Holder>>,
    pub unresolved_processes: u32,
}

#[derive(Clone, Debug, Serialize)]
pub struct Holder {
    pub tenant: String,
    pub id: String,
    pub processes: u32,
    pub memory_bytes: Option<u64>,
}

/// One libcuda file and its hooks.
#[derive(Clone, Debug, Serialize)]
pub struct Library {
    pub path: String,
    /// Why it could not be hooked at all.
    pub error: Option<String>,
    pub attached: usize,
    pub wanted: usize,
    /// Symbol, offset from its entry, and why there.
    pub hooks: Vec<Hook>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Hook {
    pub symbol: &'static str,
    /// Bytes from the entry of the function.
    pub offset: Option<u8>,
    pub reason: String,
}

#[must_use]
pub fn devices(seen: &Observation, since: &BTreeMap<InstanceId, BootNs>) -> Vec<Device> {
    let at = seen.readings.at;
    let device = |reading: &DeviceReading, uuid: &str| Device {
        gpu_uuid: uuid.to_owned(),
        index: reading.identity.index,
        model: reading.identity.model.as_deref().map(ToOwned::to_owned),
        health: health_name(reading.health),
        instances: reading
            .instances
            .iter()
            .filter_map(|it| instance(seen, &it.id, at.since(*since.get(&it.id)?)))
            .collect(),
    };
    seen.readings.nvml.devices.iter().map(|(id, reading)| device(reading, &id.0)).collect()
}

fn instance(seen: &Observation, id: &InstanceId, age_ns: u64) -> Option<Instance> {
    let (verdict, view) = (seen.verdicts.get(id)?, seen.views.get(id)?);
    Some(Instance {
        mig_uuid: id.mig.as_deref().map(ToOwned::to_owned),
        class: verdict.class.as_str(),
        class_age_seconds: std::time::Duration::from_nanos(age_ns).as_secs_f64(),
        reason: verdict.reason.to_owned(),
        holders: view.holders.as_ref().map(|it| it.iter().map(holder).collect()),
        unresolved_processes: view.unresolved_processes,
    })
}

fn holder(view: &HolderView) -> Holder {
    Holder {
        tenant: view.holder.tenant.to_string(),
        id: view.holder.id.to_string(),
        processes: view.processes,
        memory_bytes: view.memory_bytes,
    }
}

fn health_name(health: Health) -> &'static str {
    match health {
        Health::Ok => "ok",
        Health::Degraded => "degraded",
        Health::Hung => "hung",
        Health::Lost => "lost",
        Health::ResetRequired => "reset_required",
    }
}

#[must_use]
pub fn libraries(coverage: &[LibraryCoverage]) -> Vec<Library> {
    coverage.iter().map(library).collect()
}

fn library(coverage: &LibraryCoverage) -> Library {
    let attached =
        |it: &&HookCoverage| matches!(it.state, HookState::Attached { .. } | HookState::SameAs(_));
    let wanted = |it: &&HookCoverage| !matches!(it.state, HookState::Missing);
    Library {
        path: coverage.path.display().to_string(),
        error: coverage.error.clone(),
        attached: coverage.hooks.iter().filter(attached).count(),
        wanted: coverage.hooks.iter().filter(wanted).count(),
        hooks: coverage.hooks.iter().map(hook).collect(),
    }
}

fn hook(hook: &HookCoverage) -> Hook {
    let (offset, reason) = match hook.state {
        HookState::Attached { skip, slow: false, .. } => {
            (Some(skip), "the kernel emulates this instruction".to_owned())
        }
        HookState::Attached { skip, slow: true, .. } => {
            (Some(skip), "slow: the kernel must single-step this instruction".to_owned())
        }
        HookState::Off => (None, "off at this moment".to_owned()),
        HookState::Missing => (None, "this driver does not have it".to_owned()),
        HookState::SameAs(other) => (None, format!("another name of {other}")),
        HookState::Unreadable => (None, "the symbol points outside the file".to_owned()),
    };
    Hook { symbol: hook.symbol, offset, reason }
}
