//! What a device counts beside its use.

use agent::model::figures::{FABRIC_FAILED, Figure, Figures};
use gpu_state::scenario::{Engines, Fabric, Scenario, State};

use super::{FUNCTION_NOT_FOUND, UNKNOWN, device};
use crate::nvml_sampler::rig::Rig;

const NOT_KNOWN: u64 = u64::MAX;

/// A device whose fields, and no others, are these.
fn rig(fields: &[(u32, u64)]) -> Rig {
    let mut rig = Rig::new(Scenario::with_gpus(1));
    rig.change(|it| it.gpus[0].fields = fields.iter().map(|it| (it.0.to_string(), it.1)).collect());
    rig
}

async fn figures(rig: &mut Rig) -> Figures {
    device(&rig.after(10).await, 0).figures.clone()
}

#[tokio::test]
async fn figures_are_what_the_scenario_says() {
    let mut rig = rig(&[(74, 7), (82, 61), (94, 3), (138, 5), (197, 1_000), (253, 9), (230, 2)]);
    rig.change(|it| {
        let gpu = &mut it.gpus[0];
        gpu.engines = Engines { encoder: Some(12), optical_flow: Some(0), ..Engines::default() };
        gpu.bar1_mib = Some(64);
        gpu.fabric = Some(Fabric { state: 3, status: 0, health_mask: 1 });
        gpu.accounting_on = Some(true);
    });
    let figures = figures(&mut rig).await;
    for (figure, expected) in [
        (Figure::HeldByPowerCap, Some(7)),
        (Figure::HeldByPowerBrake, Some(9)),
        (Figure::HeldByHardwareThermal, None),
        (Figure::MemoryTemperature, Some(61)),
        (Figure::PcieReplays, Some(3)),
        (Figure::PcieTransmitted, Some(1_000)),
        (Figure::PcieReceived, None),
        (Figure::NvlinkTransmitted, Some(5 << 10)),
        (Figure::RecoveryAction, Some(2)),
        (Figure::EncoderBusy, Some(120_000)),
        (Figure::OpticalFlowBusy, Some(0)),
        (Figure::JpegBusy, None),
        (Figure::Bar1Total, Some(64 << 20)),
        (Figure::FabricState, Some(3)),
        (Figure::FabricDegraded, Some(1)),
        (Figure::AccountingOn, Some(1)),
    ] {
        assert_eq!(figures.get(figure), expected, "{figure:?}");
    }
    assert!(rig.sampler.stats().errors.values().all(|it| *it == 0));
}

/// 580.82 gave the numbers of the throttle counters to power smoothing.
#[tokio::test]
async fn a_newer_driver_is_asked_by_its_own_numbers() {
    for (driver, expected) in [("580.65.06", 1), ("580.82.07", 2), ("590.10.01", 2)] {
        let mut rig = rig(&[(251, 1), (269, 2)]);
        rig.change(|it| it.driver_version = driver.to_owned());
        let figures = figures(&mut rig).await;
        assert_eq!(figures.get(Figure::HeldBySoftwareThermal), Some(expected), "{driver}");
    }
}

#[tokio::test]
async fn what_is_not_known_is_absent_and_not_the_highest_number() {
    let mut rig = rig(&[(82, NOT_KNOWN), (197, NOT_KNOWN), (138, NOT_KNOWN), (144, 7)]);
    rig.change(|it| {
        it.gpus[0].engines.decoder = Some(2_147_483_632);
        it.gpus[0].bar1_used_mib = 1 << 30;
        it.gpus[0].fabric = Some(Fabric { state: 3, status: UNKNOWN, health_mask: 0 });
    });
    let figures = figures(&mut rig).await;
    for figure in [
        Figure::MemoryTemperature,
        Figure::PcieTransmitted,
        Figure::NvlinkTransmitted,
        Figure::RowRemapPending,
        Figure::DecoderBusy,
        Figure::Bar1Used,
        Figure::FabricDegraded,
    ] {
        assert_eq!(figures.get(figure), None, "{figure:?}");
    }
    assert_eq!(figures.get(Figure::FabricState), Some(FABRIC_FAILED));
}

#[tokio::test]
async fn an_old_driver_without_these_calls_has_no_figures_and_no_fault() {
    let mut rig = rig(&[]);
    for call in [
        "nvmlDeviceGetFieldValues",
        "nvmlDeviceGetJpgUtilization",
        "nvmlDeviceGetOfaUtilization",
        "nvmlDeviceGetGpuFabricInfoV",
    ] {
        rig.fail(call, FUNCTION_NOT_FOUND);
    }
    let figures = figures(&mut rig).await;
    assert_eq!((figures.get(Figure::JpegBusy), figures.get(Figure::EccOn)), (None, None));
    assert!(figures.get(Figure::Bar1Total).is_some());
    let stats = rig.sampler.stats();
    assert!(stats.errors.values().all(|it| *it == 0), "{stats:?}");
}

#[tokio::test]
async fn figures_are_read_every_ten_seconds_and_shown_in_between() {
    let mut rig = rig(&[(94, 1)]);
    let replays =
        |it: &agent::model::readings::NvmlReadings| device(it, 0).figures.get(Figure::PcieReplays);
    assert_eq!(replays(&rig.read().await), Some(1));
    rig.change(|it| *it.gpus[0].fields.get_mut("94").unwrap() = 2);
    assert_eq!(replays(&rig.after(9).await), Some(1));
    assert_eq!(replays(&rig.after(1).await), Some(2));
    // Not answered is not known, and not what was known before.
    rig.fail("nvmlDeviceGetFieldValues", UNKNOWN);
    assert_eq!(replays(&rig.after(10).await), None);
    assert_eq!(rig.sampler.stats().errors["fields"], 1);
    rig.change(|it| it.gpus[0].nvml_fails.clear());
    assert_eq!(replays(&rig.after(10).await), Some(2));
}

#[tokio::test]
async fn a_lost_device_has_no_figures_until_it_is_back() {
    let mut rig = rig(&[(94, 1)]);
    figures(&mut rig).await;
    rig.change(|it| it.gpus[0].state = State::Lost);
    assert_eq!(device(&rig.read().await, 0).figures, Figures::default());
    rig.change(|it| it.gpus[0].state = State::Ok);
    let readings = rig.until(|it| device(it, 0).figures != Figures::default()).await;
    assert_eq!(device(&readings, 0).figures.get(Figure::PcieReplays), Some(1));
}

#[tokio::test]
async fn traffic_goes_on_over_a_wrap_and_a_reset() {
    let mut rig = rig(&[(197, (1 << 32) - 10)]);
    let mut totals = Vec::new();
    for value in [(1 << 32) - 10, 5, 2, 4] {
        rig.change(|it| *it.gpus[0].fields.get_mut("197").unwrap() = value);
        totals.push(figures(&mut rig).await.get(Figure::PcieTransmitted).unwrap());
    }
    let wrapped = 1 << 32;
    assert_eq!(totals, [wrapped - 10, wrapped + 5, wrapped + 7, wrapped + 9]);
}
