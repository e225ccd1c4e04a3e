//! What becomes of answers in a recording: by values.

use std::collections::BTreeMap;
use std::sync::Arc;

use recording::{Device, Step, Word};

use super::capture::{Capture, Page};
use crate::model::ids::DeviceId;
use crate::model::readings::{DeviceReading, Health, Identity, NvmlReadings, NvmlState, Xid};
use crate::samplers::nvml::answers::{Answers, Call, Listed, Refusal, Report, Sample};
use crate::samplers::nvml::probe::{Facts, Plan};

const BEGAN_US: u64 = 1_700_000_000_000_000;

fn id(name: &str) -> DeviceId {
    DeviceId(Arc::from(name))
}

fn report(answers: Answers) -> Report {
    let facts = Facts { mig_on: Some(false), missing: [].into(), host_pids: true };
    Report {
        at: crate::model::units::BootNs(0),
        spent_ns: 0,
        durations: Vec::new(),
        now_us: BEGAN_US,
        plan: Plan::from_facts(&facts),
        answers,
        identity: None,
    }
}

fn readings(devices: &[(&str, Health)], state: NvmlState) -> NvmlReadings {
    let reading = |health| DeviceReading {
        at: crate::model::units::BootNs(0),
        health,
        identity: Identity::default(),
        counters: Default::default(),
        figures: Default::default(),
        xids: Vec::new(),
        hears_xids: true,
        inside_since: None,
        sources: BTreeMap::new(),
        instances: Vec::new(),
    };
    let devices = devices.iter().map(|(name, health)| (id(name), reading(*health)));
    NvmlReadings { state, sees_processes: true, devices: devices.collect() }
}

fn ok(name: &str) -> NvmlReadings {
    readings(&[(name, Health::Ok)], NvmlState::Ok)
}

fn power(milliwatts: u32) -> Answers {
    Answers { power_mw: Some(milliwatts), ..Answers::default() }
}

/// One device that answers, then this; the change of the second tick.
fn second(answers: Answers) -> Step {
    let mut capture = Capture::new(false, BEGAN_US);
    capture.tick(0, &ok("GPU-a"), &[(id("GPU-a"), report(power(70_000)))]);
    capture.tick(1_000, &ok("GPU-a"), &[(id("GPU-a"), report(answers))]).step
}

fn change(step: &Step) -> String {
    step.gpus.get("0").map(|it| it.to_string()).unwrap_or_default()
}

#[test]
fn a_step_has_only_what_changed() {
    assert_eq!(change(&second(power(70_000))), "");
    assert_eq!(change(&second(power(80_000))).trim(), "[recorded]\npower_mw = 80000");
}

#[test]
fn a_refusal_is_written_with_the_drivers_code_and_so_is_its_end() {
    let refused = Answers {
        codes: [(Call::Power, 999)].into(),
        ..Answers::refused(Call::Power, Refusal::Failed)
    };
    let mut capture = Capture::new(false, BEGAN_US);
    let mut steps = Vec::new();
    for (at_ms, answers) in [(0, power(1)), (1_000, refused), (2_000, power(1))] {
        steps.push(capture.tick(at_ms, &ok("GPU-a"), &[(id("GPU-a"), report(answers))]).step);
    }
    assert_eq!(change(&steps[1]).trim(), "[recorded.refused]\npower = 999");
    assert_eq!(change(&steps[2]).trim(), "[recorded.refused]\npower = 0");
}

#[test]
fn samples_are_told_once_by_stand_ins_and_relative_to_the_beginning() {
    let samples = |rows: &[(u32, u64)]| {
        let sample = |(pid, at_us): &(u32, u64)| Sample { pid: *pid, at_us: *at_us, sm: 40 };
        Answers { samples: Some(rows.iter().map(sample).collect()), ..Answers::default() }
    };
    let mut capture = Capture::new(false, BEGAN_US);
    let mut tick = |at_ms, answers| {
        let page = capture.tick(at_ms, &ok("GPU-a"), &[(id("GPU-a"), report(answers))]);
        page.step.samples.get("0").cloned().unwrap_or_default()
    };
    let first = tick(0, samples(&[(77, BEGAN_US - 5), (0, BEGAN_US)]));
    assert_eq!(first, [(5_000_001, -5, 40), (0, 0, 40)]);
    // The driver's ring has the old one still; the last one is from the end of time.
    let second = tick(1_000, samples(&[(77, BEGAN_US - 5), (77, BEGAN_US + 9), (78, u64::MAX)]));
    assert_eq!(second, [(5_000_001, 9, 40), (5_000_002, i64::MAX, 40)]);
}

#[test]
fn lists_are_no_answer_where_processes_cannot_be_seen() {
    let listed = Answers {
        compute: Some(vec![Listed { pid: 7, memory: u64::MAX }]),
        samples: Some(vec![Sample { pid: 7, at_us: BEGAN_US, sm: 1 }]),
        ..Answers::default()
    };
    let first = |host_pids| {
        let facts = Facts { mig_on: Some(false), missing: [].into(), host_pids };
        let report = Report { plan: Plan::from_facts(&facts), ..report(listed.clone()) };
        let mut capture = Capture::new(false, BEGAN_US);
        let Page { gpus, step } = capture.tick(0, &ok("GPU-a"), &[(id("GPU-a"), report)]);
        (gpus[0].recorded.compute.clone(), step.samples.len())
    };
    assert_eq!(first(true), (Some(vec![(5_000_001, Word(u64::MAX))]), 1));
    assert_eq!(first(false), (None, 0));
}

#[test]
fn a_device_that_does_not_answer_hangs_until_it_does() {
    let mut capture = Capture::new(false, BEGAN_US);
    let hung = readings(&[("GPU-a", Health::Hung)], NvmlState::Ok);
    capture.tick(0, &ok("GPU-a"), &[(id("GPU-a"), report(power(1)))]);
    let steps = [
        capture.tick(1_000, &hung, &[]).step,
        capture.tick(2_000, &hung, &[]).step,
        capture.tick(3_000, &ok("GPU-a"), &[(id("GPU-a"), report(power(1)))]).step,
    ];
    let hangs = steps.each_ref().map(|it| change(it).trim().to_owned());
    assert_eq!(hangs, ["hang_ms = 86400000", "", "hang_ms = 0"]);
}

#[test]
fn a_device_that_comes_later_was_not_to_be_found_before() {
    let mut capture = Capture::new(false, BEGAN_US);
    capture.tick(0, &ok("GPU-a"), &[(id("GPU-a"), report(power(1)))]);
    let both = readings(&[("GPU-a", Health::Ok), ("GPU-b", Health::Ok)], NvmlState::Ok);
    let page = capture.tick(1_000, &both, &[(id("GPU-b"), report(power(2)))]);
    let [Device { recorded, .. }] = &page.gpus[..] else { panic!("one new device") };
    assert_eq!(recorded.refused, BTreeMap::from([("handle".to_owned(), 6)]));
    let later = page.step.gpus["1"].to_string();
    assert!(later.contains("handle = 0") && later.contains("power_mw = 2"), "{later}");
}

#[test]
fn errors_and_a_driver_that_goes_are_told() {
    let mut capture = Capture::new(false, BEGAN_US);
    let mut now = ok("GPU-a");
    capture.tick(0, &now, &[(id("GPU-a"), report(power(1)))]);
    let device = now.devices.get_mut(&id("GPU-a")).unwrap();
    device.xids = vec![Xid { code: 79, count: 2, last_real_ns: 0 }];
    now.state = NvmlState::Absent("gone".to_owned());
    let step = capture.tick(1_000, &now, &[]).step;
    assert_eq!((change(&step).trim(), step.nvml_init_fails), ("xids = [79, 79]", Some(9)));
    now.state = NvmlState::Ok;
    assert_eq!(capture.tick(2_000, &now, &[]).step.nvml_init_fails, Some(0));
}
