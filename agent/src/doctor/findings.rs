//! What is there and yet not as it should be, each with what to do about it.

use proto::names::action_name;
use serde::Serialize;

use crate::advice;
use crate::model::readings::{NvmlReadings, NvmlState, Tracing};
use crate::model::units::BootNs;
use crate::status::{HookGroup, Library, health_name};

/// Nothing is missing for it; something is dearer or less exact than it could be.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub what: String,
    pub fix: String,
}

impl Finding {
    pub(super) fn new(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { what: what.into(), fix: fix.into() }
    }
}

/// What the part for NVML says of all of them is not said again of each.
pub(super) fn of_devices(at: BootNs, nvml: &NvmlReadings) -> Vec<Finding> {
    if nvml.state != NvmlState::Ok {
        return Vec::new();
    }
    let found = nvml.devices.iter().filter_map(|(id, device)| {
        let suggestion = advice::suggestion(at, &nvml.state, device)?;
        let what = format!("GPU {} is {}: {}", id.0, health_name(device.health), suggestion.reason);
        let action = action_name(suggestion.action)?;
        Some(Finding::new(what, action.replace('_', " ")))
    });
    found.collect()
}

pub(super) fn of_tracing(tracing: &Tracing, libraries: &[Library]) -> Vec<Finding> {
    let mut findings: Vec<Finding> = libraries.iter().flat_map(of_library).collect();
    findings.extend(tracing.memory_held_back.iter().map(|it| {
        Finding::new(
            format!("memory calls are not counted: {it}"),
            "nothing: hooks would break a process that changed these functions. They are put on \
             when it has ended",
        )
    }));
    if let Some(what) = tracing.kernel_lacks {
        findings.push(Finding::new(what, "run Linux 6.6 or later where that matters"));
    }
    if let Some(sampling) = &tracing.sampling {
        findings.push(Finding::new(
            format!(
                "calls are sampled, counts scaled by {:.2}: {}",
                sampling.factor, sampling.reason
            ),
            "raise the budget of tracing where exact counts are worth it",
        ));
    }
    findings
}

fn of_library(library: &Library) -> Vec<Finding> {
    let path = &library.path;
    if let Some(error) = &library.error {
        let fix = "name another file in cuda.libraries, or leave this one out";
        return vec![Finding::new(format!("{path} is not traced: {error}"), fix)];
    }
    let mut findings = Vec::new();
    let sum = |of: fn(&HookGroup) -> usize| library.groups.iter().map(of).sum::<usize>();
    // Memory functions that are held back are a finding of their own.
    let held_back = |it: &&HookGroup| library.memory_held_back.is_some() && it.group == "memory";
    let wanting = library.groups.iter().filter(|it| !held_back(it));
    let unhooked: usize = wanting.map(|it| it.wanted - it.attached).sum();
    let slow = sum(|it| it.slow);
    if slow > 0 {
        findings.push(Finding::new(
            format!(
                "{path}: {slow} hooks are at instructions that the kernel must single-step, \
                     which makes a call about ten times as dear"
            ),
            "set cuda.attach_at = \"cheapest\" if it is not; `doctor --hooks` says why there is no \
             cheaper place",
        ));
    }
    if unhooked > 0 {
        findings.push(Finding::new(
            format!("{path}: {unhooked} functions are not hooked, their calls are not counted"),
            "`doctor --hooks` says why; report the driver's version",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::{of_devices, of_tracing};
    use crate::attribution::fixtures;
    use crate::model::readings::{Health, NvmlState, Sampling, Tracing};
    use crate::model::units::BootNs;
    use crate::status::{HookGroup, Library};

    fn library(attached: usize, slow: usize, error: Option<&str>) -> Library {
        let group = HookGroup { group: "launches".into(), attached, wanted: 8, slow, missing: 2 };
        Library {
            path: "/libcuda.so.1".to_owned(),
            error: error.map(str::to_owned),
            attached,
            wanted: 8,
            groups: vec![group],
            hooks: Vec::new(),
            found_in: None,
            memory_held_back: None,
        }
    }

    fn check(tracing: &Tracing, library: Library, expected: &[&str]) {
        let found = of_tracing(tracing, &[library]);
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (finding, expected) in found.iter().zip(expected) {
            assert!(finding.what.contains(expected) && !finding.fix.is_empty(), "{finding:?}");
        }
    }

    #[test]
    fn a_sick_device_is_found_with_what_to_do() {
        let mut nvml = fixtures::readings(9, 2).nvml;
        assert_eq!(of_devices(BootNs(9), &nvml), []);
        nvml.devices.get_mut(&fixtures::device(1)).unwrap().health = Health::ResetRequired;
        let [found] = &of_devices(BootNs(9), &nvml)[..] else { panic!("one finding") };
        assert!(found.what.contains(&*fixtures::device(1).0), "{found:?}");
        assert!(
            found.what.contains("is reset_required: ") && found.fix == "reset gpu",
            "{found:?}"
        );
        nvml.state = NvmlState::Absent("no NVIDIA driver".to_owned());
        assert_eq!(of_devices(BootNs(9), &nvml), []);
    }

    #[test]
    fn each_trouble_is_found_with_a_fix() {
        let fine = Tracing::default();
        check(&fine, library(8, 0, None), &[]);
        check(&fine, library(8, 3, None), &["3 hooks are at instructions"]);
        check(&fine, library(6, 0, None), &["2 functions are not hooked"]);
        check(&fine, library(0, 0, Some("is empty")), &["/libcuda.so.1 is not traced: is empty"]);
        let held = Tracing { memory_held_back: vec!["text changed".to_owned()], ..fine };
        check(&held, library(8, 0, None), &["memory calls are not counted: text changed"]);
        let old = Tracing { kernel_lacks: Some("an old kernel"), ..Tracing::default() };
        check(&old, library(8, 0, None), &["an old kernel"]);
        let sampling = Sampling { factor: 2.5, reason: "busy".to_owned() };
        let sampled = Tracing { sampling: Some(sampling), ..Tracing::default() };
        check(&sampled, library(8, 0, None), &["scaled by 2.50: busy"]);
    }
}
