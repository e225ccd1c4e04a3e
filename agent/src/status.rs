//! `/status`: what the agent sees and how it is doing, as JSON for people and for tests.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use proto::names::action_name;
use serde::{Deserialize, Serialize};

use crate::accounting::Observation;
use crate::advice;
use crate::health::Part;
use crate::model::ids::InstanceId;
use crate::model::readings::{DeviceReading, Health};
use crate::model::units::BootNs;
use crate::model::usage::HolderView;
use crate::samplers::cuda::hooks::Group;
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
    /// Absent = there is nothing to do.
    pub suggestion: Option<Suggestion>,
    pub instances: Vec<Instance>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Suggestion {
    pub action: Option<&'static str>,
    pub reason: &'static str,
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
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Library {
    pub path: String,
    /// Why it could not be hooked at all.
    pub error: Option<String>,
    /// The process that led to it; absent where `cuda.libraries` did.
    pub found_in: Option<String>,
    /// Why its memory functions are not hooked, where hooks could do harm.
    pub memory_held_back: Option<String>,
    pub attached: usize,
    pub wanted: usize,
    /// By what they serve.
    pub groups: Vec<HookGroup>,
    /// Symbol, offset from its entry, and why there.
    pub hooks: Vec<Hook>,
}

/// Hooks of a library that are attached and detached together.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HookGroup {
    pub group: Cow<'static, str>,
    pub attached: usize,
    /// Functions that this driver has.
    pub wanted: usize,
    /// Of the attached: at an instruction that the kernel must single-step.
    pub slow: usize,
    /// Functions that this driver lacks, which no program can call.
    pub missing: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hook {
    pub symbol: Cow<'static, str>,
    pub group: Cow<'static, str>,
    /// Bytes from the entry of the function; absent where nothing is attached.
    pub offset: Option<u8>,
    pub slow: bool,
    /// The function that has the same address, and whose hook counts this one's calls.
    pub same_as: Option<Cow<'static, str>>,
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
        suggestion: advice::suggestion(at, &seen.readings.nvml.state, reading)
            .map(|it| Suggestion { action: action_name(it.action), reason: it.reason }),
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

#[must_use]
pub fn health_name(health: Health) -> &'static str {
    match health {
        Health::Ok => "ok",
        Health::Degraded => "degraded",
        Health::Hung => "hung",
        Health::Lost => "lost",
        Health::ResetRequired => "reset_required",
        Health::Released => "released",
    }
}

#[must_use]
pub fn libraries(coverage: &[LibraryCoverage]) -> Vec<Library> {
    coverage.iter().map(library).collect()
}

fn library(coverage: &LibraryCoverage) -> Library {
    let groups: Vec<HookGroup> =
        Group::ALL.into_iter().map(|it| group(it, &coverage.hooks)).collect();
    Library {
        path: coverage.path.display().to_string(),
        error: coverage.error.clone(),
        found_in: coverage.found_in.clone(),
        memory_held_back: coverage.held_back.clone(),
        attached: groups.iter().map(|it| it.attached).sum(),
        wanted: groups.iter().map(|it| it.wanted).sum(),
        groups,
        hooks: coverage.hooks.iter().map(hook).collect(),
    }
}

fn group(group: Group, hooks: &[HookCoverage]) -> HookGroup {
    let count = |holds: fn(&HookState) -> bool| {
        hooks.iter().filter(|it| it.group == group && holds(&it.state)).count()
    };
    HookGroup {
        group: group.as_str().into(),
        attached: count(|it| matches!(it, HookState::Attached { .. } | HookState::SameAs(_))),
        wanted: count(|it| !matches!(it, HookState::Missing)),
        slow: count(|it| matches!(it, HookState::Attached { slow: true, .. })),
        missing: count(|it| matches!(it, HookState::Missing)),
    }
}

fn hook(hook: &HookCoverage) -> Hook {
    let (offset, slow, reason) = match hook.state {
        HookState::Attached { skip, slow, reason, .. } => (Some(skip), slow, reason.to_string()),
        HookState::Off => (None, false, "off at this moment".to_owned()),
        HookState::Missing => (None, false, "this driver does not have it".to_owned()),
        HookState::SameAs(other) => (None, false, format!("same address as {other}")),
        HookState::Unreadable => (None, false, "the symbol points outside the file".to_owned()),
        HookState::Refused(form) => {
            (None, false, format!("the kernel accepts no probe on {form}, with which it begins"))
        }
    };
    let same_as = match hook.state {
        HookState::SameAs(other) => Some(other.into()),
        _ => None,
    };
    let (symbol, group) = (hook.symbol.into(), hook.group.as_str().into());
    Hook { symbol, group, offset, slow, same_as, reason }
}

impl fmt::Display for Library {
    /// The file, and a line for each group that it has functions of.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(error) = &self.error {
            return writeln!(f, "{}: {error}", self.path);
        }
        writeln!(f, "{}: {} of {} functions hooked", self.path, self.attached, self.wanted)?;
        for it in self.groups.iter().filter(|it| it.wanted + it.missing > 0) {
            write!(f, "  {:<10} {} of {} attached", it.group, it.attached, it.wanted)?;
            if it.slow > 0 {
                write!(f, ", {} of them slow", it.slow)?;
            }
            if it.missing > 0 {
                write!(f, "; this driver lacks {}", it.missing)?;
            }
            writeln!(f)?;
        }
        if let Some(found_in) = &self.found_in {
            writeln!(f, "  found in {found_in}")?;
        }
        if let Some(why) = &self.memory_held_back {
            writeln!(f, "  memory calls are not counted: {why}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let offset = self.offset.map_or_else(|| "-".to_owned(), |it| format!("+{it}"));
        let slow = if self.slow { "slow" } else { "" };
        write!(f, "  {:<34} {offset:<5} {slow:<5} {}", self.symbol, self.reason)
    }
}
