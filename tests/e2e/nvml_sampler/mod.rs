//! The agent's NVML sampler against the stand-in library: what it reads, and what it does when a
//! device or the library does not answer.
//!
//! The sampler is told the time of each tick, so waits of the product cost no time here.
#![expect(clippy::unwrap_used, reason = "what a test needs is there, or the test fails")]

mod claims;
mod events;
mod figures;
mod fixtures;
mod gpm;
mod recordings;
mod rig;
mod samples;

use std::path::Path;
use std::time::Duration;

use agent::clock;
use agent::model::readings::{DeviceReading, Health, NvmlReadings, NvmlState};
use agent::model::units::BootNs;
use agent::samplers::holders::{Resolver, Told};
use agent::samplers::nvml::fill_processes;
use gpu_state::scenario::{Gpu, Scenario, State};

use crate::nvml_sampler::rig::{DEADLINE, Rig};

/// Codes of `nvml.h`.
const NOT_SUPPORTED: u32 = 3;
const FUNCTION_NOT_FOUND: u32 = 13;
const LIB_RM_VERSION_MISMATCH: u32 = 18;
const UNKNOWN: u32 = 999;

/// Devices whose threads no other test has.
const HUNG: u32 = 0x4711;
const RESET: u32 = 0x4712;
const REPLACED: u32 = 0x4713;

/// By index of the scenario, which is in the UUID.
fn device(readings: &NvmlReadings, index: u32) -> &DeviceReading {
    let uuid = Gpu::numbered(index).uuid;
    let found = readings.devices.iter().find(|(id, _)| *id.0 == *uuid);
    found.unwrap_or_else(|| panic!("no device {index} in {readings:#?}")).1
}

fn health(readings: &NvmlReadings, index: u32) -> Health {
    device(readings, index).health
}

/// The device stays in the reading, and nothing is said about its use.
fn assert_silent(reading: &DeviceReading) {
    assert_eq!(reading.counters, Default::default());
    assert!(!reading.instances.is_empty());
    for instance in &reading.instances {
        assert!(instance.busy.is_none() && instance.processes.is_none(), "{instance:?}");
        assert!(instance.memory_used_bytes.is_none(), "{instance:?}");
    }
}

fn state_text(readings: &NvmlReadings) -> &str {
    readings.state.text()
}

#[tokio::test]
async fn a_device_says_what_its_scenario_says() {
    let mut rig = Rig::new(Scenario::with_gpus(2));
    rig.change(|it| it.gpus[1].numa_node = Some(3));
    let readings = rig.read().await;
    assert_eq!(readings.state, NvmlState::Ok);
    let (reading, gpu) = (device(&readings, 1), &rig.scenario.gpus[1]);
    assert_eq!(reading.health, Health::Ok);
    let identity = &reading.identity;
    assert_eq!(identity.index, Some(1));
    assert_eq!(identity.model.as_deref(), Some(&*gpu.name));
    assert_eq!(identity.driver_version.as_deref(), Some(&*rig.scenario.driver_version));
    assert_eq!(identity.numa_node, Some(3));
    assert_eq!(identity.memory_total_bytes, Some(gpu.memory_mib << 20));
    assert_eq!(identity.power_limit_mw, Some(gpu.power_max_mw));
    assert!(identity.pci_bus_id.as_deref().is_some_and(|it| it.contains("11:00")), "{identity:?}");
    let counters = &reading.counters;
    assert_eq!(counters.busy.map(|it| it.get()), Some(0));
    assert_eq!(counters.power_mw, Some(gpu.power_floor_mw));
    assert_eq!(counters.memory_used_bytes, Some(0));
    assert_eq!(counters.memory_reserved_bytes, Some(gpu.reserved_mib << 20));
    assert!(counters.energy_mj.is_some() && counters.temperature_celsius.is_some());
    assert!(counters.sm_clock_mhz.is_some() && counters.memory_clock_mhz.is_some());
    let [instance] = &reading.instances[..] else { panic!("one instance") };
    assert_eq!(instance.id.mig, None);
    assert_eq!(instance.processes.as_deref(), Some(&[][..]));
    let stats = rig.sampler.stats();
    assert!(stats.errors.values().all(|it| *it == 0), "{stats:?}");
    assert!(stats.devices.values().all(|it| it.reads == 1 && it.last_read_ns.is_some()));
}

#[tokio::test]
async fn two_nodes_in_one_process_do_not_mix() {
    let mut one = Rig::new(Scenario::with_gpus(1));
    let mut other = Rig::new(Scenario { gpus: vec![Gpu::numbered(7)], ..Scenario::default() });
    let (one, other) = (one.read().await, other.read().await);
    assert_eq!((one.devices.len(), other.devices.len()), (1, 1));
    assert_eq!((health(&one, 0), health(&other, 7)), (Health::Ok, Health::Ok));
}

#[tokio::test]
async fn a_lost_device_stays_visible_and_is_left_in_peace() {
    let mut rig = Rig::new(Scenario::with_gpus(2));
    rig.read().await;
    rig.change(|it| it.gpus[0].state = State::Lost);
    let readings = rig.read().await;
    assert_eq!((health(&readings, 0), health(&readings, 1)), (Health::Lost, Health::Ok));
    assert_silent(device(&readings, 0));
    assert_eq!(device(&readings, 0).identity.index, Some(0));

    rig.change(|it| it.gpus[0].state = State::Ok);
    let reads = |rig: &Rig| rig.sampler.stats().devices.values().map(|it| it.reads).min();
    let before = reads(&rig);
    assert_eq!(health(&rig.after(28).await, 0), Health::Lost);
    assert_eq!(reads(&rig), before);
    assert_eq!(health(&rig.after(2).await, 0), Health::Ok);
}

#[tokio::test]
async fn a_device_that_needs_a_reset_says_so() {
    let mut rig = Rig::new(Scenario::with_gpus(2));
    rig.read().await;
    rig.change(|it| it.gpus[1].state = State::ResetRequired);
    let readings = rig.read().await;
    assert_eq!((health(&readings, 0), health(&readings, 1)), (Health::Ok, Health::ResetRequired));
    assert_silent(device(&readings, 1));
}

#[tokio::test]
async fn when_all_are_lost_the_library_is_opened_afresh() {
    let gpus = [RESET, 1].map(Gpu::numbered).to_vec();
    let mut rig = Rig::new(Scenario { gpus, ..Scenario::default() });
    rig.read().await;
    assert_eq!(threads_of(RESET), 1);
    rig.change(|it| it.gpus.iter_mut().for_each(|it| it.state = State::Lost));
    let readings = rig.read().await;
    assert_eq!((health(&readings, RESET), health(&readings, 1)), (Health::Lost, Health::Lost));
    let readings = rig.after(30).await;
    assert_eq!((health(&readings, RESET), readings.state), (Health::Lost, NvmlState::Ok));
    until_no_thread_of(RESET).await;

    rig.change(|it| it.gpus.iter_mut().for_each(|it| it.state = State::Ok));
    rig.until(|it| health(it, RESET) == Health::Ok && health(it, 1) == Health::Ok).await;
}

#[tokio::test]
async fn a_hung_device_delays_nobody_and_comes_back() {
    let gpus = [0, HUNG, 2].map(Gpu::numbered).to_vec();
    let mut rig = Rig::new(Scenario { gpus, ..Scenario::default() });
    rig.read().await;
    rig.change(|it| it.gpus[1].hang_ms = 600_000);
    let started = clock::boot();
    let readings = rig.read().await;
    assert!(since(started) < 2 * DEADLINE, "{:?}", since(started));
    assert_eq!(health(&readings, HUNG), Health::Hung);
    assert_silent(device(&readings, HUNG));
    assert_eq!((health(&readings, 0), health(&readings, 2)), (Health::Ok, Health::Ok));

    // Its thread is known not to answer: the next ticks do not wait for it at all.
    let started = clock::boot();
    for _ in 0..10 {
        assert_eq!(health(&rig.read().await, HUNG), Health::Hung);
    }
    assert!(since(started) < DEADLINE, "{:?}", since(started));
    assert_eq!(threads_of(HUNG), 1);

    rig.change(|it| it.gpus[1].hang_ms = 0);
    let readings = rig.until(|it| health(it, HUNG) == Health::Ok).await;
    assert!(device(&readings, HUNG).counters.busy.is_some());
    assert_eq!(rig.sampler.stats().devices.values().map(|it| it.late).sum::<u64>(), 1);
}

#[tokio::test]
async fn a_device_that_hangs_from_the_start_hides_no_other() {
    let mut rig = Rig::new(Scenario::with_gpus(3));
    rig.change(|it| it.gpus[0].hang_ms = 600_000);
    let readings = rig.read().await;
    assert_eq!(readings.state, NvmlState::Ok);
    assert_eq!(readings.devices.len(), 2);
    assert_eq!((health(&readings, 1), health(&readings, 2)), (Health::Ok, Health::Ok));
    assert_eq!(rig.sampler.stats().unlisted, 1);
    rig.change(|it| it.gpus[0].hang_ms = 0);
    let readings = rig.until(|it| it.devices.len() == 3).await;
    assert_eq!(health(&readings, 0), Health::Ok);
    assert_eq!(rig.sampler.stats().unlisted, 0);
}

#[tokio::test]
async fn no_library_is_a_state_and_one_that_comes_later_is_found() {
    let mut rig = Rig::without_library(Scenario::with_gpus(1));
    let readings = rig.read().await;
    assert!(matches!(readings.state, NvmlState::Absent(_)), "{readings:?}");
    let text = state_text(&readings);
    assert!(text.starts_with("no NVIDIA driver: "), "{text}");
    assert!(text.contains("libnvidia-ml.so.1") && text.contains("are not metered"), "{text}");
    assert!(readings.devices.is_empty());
    assert_eq!(rig.sampler.stats().errors["open"], 0);

    rig.install();
    assert!(matches!(rig.read().await.state, NvmlState::Absent(_)));
    let readings = rig.after(5).await;
    assert_eq!((&readings.state, health(&readings, 0)), (&NvmlState::Ok, Health::Ok));
}

#[tokio::test]
async fn a_library_that_cannot_be_used_has_failed() {
    let mut rig = Rig::without_library(Scenario::with_gpus(1));
    std::fs::write(rig.folder.path().join("libnvidia-ml.so.1"), "not a library").unwrap();
    let readings = rig.read().await;
    assert!(matches!(readings.state, NvmlState::Failed(_)), "{readings:?}");
    assert_eq!(rig.sampler.stats().errors["open"], 1);

    let mut rig = Rig::new(Scenario::with_gpus(1));
    rig.change(|it| it.nvml_init_fails = Some(UNKNOWN));
    let readings = rig.read().await;
    assert!(matches!(readings.state, NvmlState::Failed(_)), "{readings:?}");
    rig.change(|it| it.nvml_init_fails = None);
    assert_eq!(rig.after(5).await.state, NvmlState::Ok);
}

#[tokio::test]
async fn a_driver_that_is_replaced_is_opened_again() {
    let gpus = [REPLACED, 1].map(Gpu::numbered).to_vec();
    let mut rig = Rig::new(Scenario { gpus, ..Scenario::default() });
    rig.read().await;
    rig.fail("nvmlDeviceGetUtilizationRates", LIB_RM_VERSION_MISMATCH);
    let readings = rig.read().await;
    assert!(matches!(readings.state, NvmlState::Replaced(_)), "{readings:?}");
    assert_silent(device(&readings, REPLACED));
    let readings = rig.read().await;
    assert!(matches!(readings.state, NvmlState::Replaced(_)), "{readings:?}");
    for index in [REPLACED, 1] {
        assert_eq!(health(&readings, index), Health::Degraded);
        assert_silent(device(&readings, index));
    }
    rig.change(|it| it.gpus[0].nvml_fails.clear());
    until_no_thread_of(REPLACED).await;
    let well = |it: &NvmlReadings| [REPLACED, 1].iter().all(|at| health(it, *at) == Health::Ok);
    assert_eq!(rig.until(well).await.state, NvmlState::Ok);
}

#[tokio::test]
async fn what_a_device_does_not_have_is_absent_and_no_fault() {
    for code in [NOT_SUPPORTED, FUNCTION_NOT_FOUND] {
        let mut rig = Rig::new(Scenario::with_gpus(1));
        for call in
            ["nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetComputeRunningProcesses_v3"]
        {
            rig.fail(call, code);
        }
        let readings = rig.read().await;
        let reading = device(&readings, 0);
        assert_eq!((reading.health, reading.counters.energy_mj), (Health::Ok, None));
        assert_eq!(reading.instances[0].processes, None);
        assert!(reading.counters.busy.is_some() && reading.counters.power_mw.is_some());
        let stats = rig.sampler.stats();
        assert!(stats.errors.values().all(|it| *it == 0), "{stats:?}");
        let not_asked = &stats.devices.values().next().unwrap().not_asked;
        assert!(not_asked.contains(&"energy") && not_asked.contains(&"compute_processes"));
    }
}

#[tokio::test]
async fn a_call_that_starts_to_fail_loses_its_value_only() {
    let mut rig = Rig::new(Scenario::with_gpus(1));
    rig.read().await;
    rig.fail("nvmlDeviceGetPowerUsage", UNKNOWN);
    let readings = rig.read().await;
    assert_eq!(health(&readings, 0), Health::Ok);
    assert_eq!(device(&readings, 0).counters.power_mw, None);
    assert_eq!(rig.sampler.stats().errors["power"], 1);

    rig.fail("nvmlDeviceGetUtilizationRates", UNKNOWN);
    let readings = rig.read().await;
    assert_eq!(health(&readings, 0), Health::Degraded);
    assert_eq!(device(&readings, 0).instances[0].busy, None);
    assert_eq!(device(&readings, 0).instances[0].memory_used_bytes, Some(0));

    rig.fail("nvmlDeviceGetComputeRunningProcesses_v3", UNKNOWN);
    assert_eq!(device(&rig.read().await, 0).instances[0].processes, None);
    rig.change(|it| it.gpus[0].nvml_fails.clear());
    assert_eq!(health(&rig.read().await, 0), Health::Ok);
}

#[tokio::test]
async fn an_old_driver_counts_reserved_memory_as_used() {
    let mut rig = Rig::new(Scenario::with_gpus(1));
    rig.fail("nvmlDeviceGetMemoryInfo_v2", FUNCTION_NOT_FOUND);
    let readings = rig.read().await;
    let counters = &device(&readings, 0).counters;
    assert_eq!(counters.memory_used_bytes, Some(rig.scenario.gpus[0].reserved_mib << 20));
    assert_eq!(counters.memory_reserved_bytes, None);
}

#[tokio::test]
async fn processes_are_listed_with_their_memory_and_weighed_by_their_use() {
    let mut rig = Rig::new(Scenario::with_gpus(1));
    let work = ["--kernel-us", "4000", "--memory-mib", "64", "--launches-per-second"];
    let busy = rig.tenant(&[&work[..], &["150"]].concat());
    let light = rig.tenant(&[&work[..], &["50"]].concat());
    let idle = rig.tenant(&["--memory-mib", "64", "--hold"]);
    let listed = |it: &NvmlReadings| device(it, 0).instances[0].processes.clone().unwrap();
    rig.until(|it| listed(it).len() == 3).await;

    let mut weights = [0, 0, 0];
    let tenants = [&busy, &light, &idle].map(|it| it.0.id());
    for _ in 0..12 {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let processes = listed(&rig.read().await);
        for (sum, tenant) in weights.iter_mut().zip(tenants) {
            let process = processes.iter().find(|it| it.tgid == tenant).unwrap();
            *sum += process.sm_weight.unwrap();
            assert!(process.memory_bytes.is_some_and(|it| it >= 64 << 20), "{process:?}");
        }
    }
    let [busy, light, idle] = weights;
    let ratio = f64::from(u32::try_from(busy).unwrap()) / f64::from(u32::try_from(light).unwrap());
    assert!((2.4..3.6).contains(&ratio), "3 to 1, got {busy} to {light}");
    assert_eq!(idle, 0);
}

#[tokio::test]
async fn work_that_was_counted_is_not_counted_again() {
    let mut rig = Rig::new(Scenario::with_gpus(1));
    let _tenant = rig.tenant(&["--kernel-us", "4000", "--launches", "50", "--hold"]);
    let weight = |it: &NvmlReadings| match device(it, 0).instances[0].processes.as_deref() {
        Some([process]) => process.sm_weight,
        _ => None,
    };
    rig.until(|it| weight(it).is_some_and(|it| it > 0)).await;
    // The burst takes half as long.
    tokio::time::sleep(Duration::from_millis(400)).await;
    rig.until(|it| device(it, 0).counters.busy.is_some_and(|it| it.get() == 0)).await;
    // The last buckets of the burst, and then nothing although it was less than a second ago.
    rig.read().await;
    assert_eq!(weight(&rig.read().await), Some(0));
}

#[tokio::test]
async fn without_samples_a_process_is_not_idle_but_unknown() {
    let mut rig = Rig::new(Scenario::with_gpus(1));
    rig.fail("nvmlDeviceGetProcessesUtilizationInfo", UNKNOWN);
    let tenant = rig.tenant(&["--launches-per-second", "100"]);
    let listed = |it: &NvmlReadings| device(it, 0).instances[0].processes.clone().unwrap();
    let readings = rig.until(|it| !listed(it).is_empty()).await;
    let [process] = listed(&readings)[..] else { panic!("one process") };
    assert_eq!((process.tgid, process.sm_weight, process.sm), (tenant.0.id(), None, None));
    assert_eq!(health(&readings, 0), Health::Degraded);
}

#[tokio::test]
async fn processes_get_their_lives_and_their_holders() {
    let mut rig = Rig::new(Scenario::with_gpus(1));
    let tenant = rig.tenant(&["--hold"]);
    let listed = |it: &NvmlReadings| device(it, 0).instances[0].processes.clone().unwrap();
    let mut readings = rig.until(|it| !listed(it).is_empty()).await;
    let mut resolver = Resolver::new(Path::new("/proc"));
    fill_processes(&mut readings, |tgid| resolver.process_id(tgid));
    let process = listed(&readings)[0].process.unwrap();
    assert_eq!(process.tgid, tenant.0.id());
    let holder =
        std::iter::repeat_with(|| resolver.resolve(process, Told::default())).flatten().next();
    assert!(!holder.unwrap().tenant.is_empty());
    drop(tenant);
    assert_eq!(resolver.process_id(process.tgid), None);
}

fn since(started: BootNs) -> Duration {
    Duration::from_nanos(clock::boot().since(started))
}

/// A closed library has no thread: each would keep it loaded.
async fn until_no_thread_of(index: u32) {
    for _ in 0..200 {
        if threads_of(index) == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the device still has a thread");
}

/// Threads of this process that call NVML about the device; they bear the end of its UUID.
fn threads_of(index: u32) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm"));
    let names = tasks.filter_map(|it| name(it.unwrap()).ok());
    names.filter(|it| it.trim_end() == format!("nvml-{index:08x}")).count()
}
