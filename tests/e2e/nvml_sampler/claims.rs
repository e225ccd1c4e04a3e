//! What each fixture is there for, in values: a golden text alone would be rewritten with a mistake.

use agent::model::figures::Figure;
use agent::model::readings::{DeviceReading, Health, NvmlReadings};

use super::fixtures::reading;

fn device<'a>(readings: &'a NvmlReadings, uuid: &str) -> &'a DeviceReading {
    let found = readings.devices.iter().find(|(id, _)| *id.0 == *uuid);
    found.unwrap_or_else(|| panic!("no {uuid} in {readings:#?}")).1
}

/// Of each instance, in percent.
fn busy(device: &DeviceReading) -> Vec<Option<u8>> {
    device.instances.iter().map(|it| it.busy.map(|it| it.get())).collect()
}

/// What the processes of the only instance used.
fn weights(device: &DeviceReading) -> Vec<Option<u64>> {
    let processes = device.instances[0].processes.as_ref().expect("the driver has a list");
    processes.iter().map(|it| it.sm_weight).collect()
}

#[tokio::test]
async fn a_mig_instance_is_as_busy_as_its_own_counters_say() {
    let seven = reading("mig-seven").await;
    let seven = device(&seven, "GPU-mig");
    assert_eq!(seven.counters.busy, None, "the device's own figure says nothing of an instance");
    let idle = Some(0);
    assert_eq!(busy(seven), [Some(98), Some(1), idle, idle, idle, idle, idle]);
    // Two share the counters of one GPU instance, which do not say which of them worked.
    let mixed = reading("mig-mixed").await;
    assert_eq!(busy(device(&mixed, "GPU-mig")), [Some(60), None, None, Some(0)]);
    assert_eq!(busy(device(&mixed, "GPU-whole")), [Some(0)]);
}

#[tokio::test]
async fn clients_of_a_busy_mps_server_are_not_idle() {
    let readings = reading("mps").await;
    assert_eq!(weights(device(&readings, "GPU-mps")), [Some(80), None, None]);
}

#[tokio::test]
async fn a_pair_that_takes_turns_is_weighed_three_to_one() {
    let readings = reading("time-sliced").await;
    assert_eq!(weights(device(&readings, "GPU-shared")), [Some(69), Some(23)]);
}

#[tokio::test]
async fn a_virtual_gpu_has_what_it_has_and_is_well() {
    let readings = reading("vgpu").await;
    let device = device(&readings, "GPU-vgpu");
    assert_eq!((device.health, busy(device)), (Health::Ok, vec![Some(10)]));
    let counters = &device.counters;
    assert_eq!((counters.power_mw, counters.energy_mj), (None, None));
    assert_eq!((counters.temperature_celsius, counters.sm_clock_mhz), (None, None));
    assert_eq!(device.figures.get(Figure::EncoderBusy), Some(50_000));
}

#[tokio::test]
async fn an_older_driver_tells_of_processes_by_the_older_call() {
    let readings = reading("t4").await;
    let device = device(&readings, "GPU-t4");
    assert_eq!((device.health, weights(device)), (Health::Ok, vec![Some(33), Some(0)]));
    assert_eq!(device.instances[0].figures.get(Figure::SmActive), None);
    assert_eq!(device.figures.get(Figure::RetiredPagesPending), Some(1));
}

#[tokio::test]
async fn blackwells_zero_is_not_measured() {
    let readings = reading("blackwell").await;
    assert_eq!(weights(device(&readings, "GPU-b200")), [Some(75)]);
}

#[tokio::test]
async fn not_found_is_that_nobody_was_active() {
    let readings = reading("idle").await;
    let device = device(&readings, "GPU-idle");
    assert_eq!((device.health, weights(device)), (Health::Ok, vec![Some(0)]));
}

#[tokio::test]
async fn garbage_is_unknown_and_never_idle() {
    let readings = reading("garbage").await;
    let device = device(&readings, "GPU-garbage");
    // 1: not a percentage; 2: no sample; 3: a sample from the end of time.
    assert_eq!(weights(device), [None, Some(0), None]);
    assert_eq!(busy(device), [None]);
    let processes = device.instances[0].processes.as_ref().expect("the driver has a list");
    let memory: Vec<_> = processes.iter().map(|it| it.memory_bytes).collect();
    assert_eq!(memory, [None, None, Some(10 << 20)]);
}

#[tokio::test]
async fn a_size_with_all_bits_set_is_not_known() {
    let readings = reading("memory-unknown").await;
    let device = device(&readings, "GPU-unknown");
    assert_eq!(device.counters.memory_used_bytes, None);
    assert_eq!(device.instances[0].memory_total_bytes, None);
    let processes = device.instances[0].processes.as_ref().expect("the driver has a list");
    assert_eq!(processes[0].memory_bytes, None);
}

#[tokio::test]
async fn traffic_goes_on_over_a_wrap_and_other_counters_begin_anew() {
    let readings = reading("wrap").await;
    let figures = &device(&readings, "GPU-wrap").figures;
    let wrapped = (1 << 32) + 4;
    assert_eq!(figures.get(Figure::PcieTransmitted), Some(wrapped));
    assert_eq!(figures.get(Figure::PcieReceived), Some(5_010));
    assert_eq!(figures.get(Figure::EccVolatileCorrected), Some(3));
}

#[tokio::test]
async fn of_a_reading_in_which_a_gpu_falls_off_the_bus_nothing_is_kept() {
    let readings = reading("falls-off").await;
    let lost = device(&readings, "GPU-falls");
    assert_eq!((lost.health, &lost.counters), (Health::Lost, &Default::default()));
    assert_eq!(lost.instances[0].processes, None, "not an empty list");
    assert_eq!(device(&readings, "GPU-stays").health, Health::Ok);
}

#[tokio::test]
async fn a_call_that_hangs_delays_no_other_device() {
    let readings = reading("hangs").await;
    let hung = device(&readings, "GPU-hangs");
    assert_eq!((hung.health, hung.instances[0].busy), (Health::Hung, None));
    assert_eq!(busy(device(&readings, "GPU-answers")), [Some(0)]);
}
