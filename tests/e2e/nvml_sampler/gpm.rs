//! How much of a device and of its MIG instances works.

use std::time::Duration;

use agent::model::figures::Figure;
use agent::model::readings::{InstanceReading, MigIdentity, NvmlReadings};
use agent::model::units::Percent;
use gpu_state::scenario::{MigInstance, Scenario};

use super::{Health, NOT_SUPPORTED, UNKNOWN, device, health};
use crate::nvml_sampler::rig::Rig;

fn metrics(values: &[(u32, u32)]) -> std::collections::BTreeMap<String, u32> {
    values.iter().map(|it| (it.0.to_string(), it.1)).collect()
}

fn part(index: u32, gpu_instance: u32, graphics: u32) -> MigInstance {
    MigInstance {
        uuid: format!("MIG-{index}"),
        profile: "1g.10gb".to_owned(),
        gpu_instance,
        memory_mib: 9_856,
        gpm: Some(metrics(&[(1, graphics), (2, 1_000)])),
        ..MigInstance::default()
    }
}

/// A tick that is far enough from the one before.
async fn read(rig: &mut Rig) -> NvmlReadings {
    tokio::time::sleep(Duration::from_millis(120)).await;
    rig.read().await
}

fn instances(readings: &NvmlReadings) -> &[InstanceReading] {
    &device(readings, 0).instances
}

#[tokio::test]
async fn a_device_says_how_much_of_it_works_from_the_second_tick_on() {
    let mut rig = Rig::new(Scenario::with_gpus(1));
    rig.change(|it| it.gpus[0].gpm = Some(metrics(&[(2, 43_500), (5, 250), (60, 2_000)])));
    let readings = rig.read().await;
    assert_eq!(instances(&readings)[0].figures, Default::default());
    // A probe every thirty seconds loses no tick.
    for seconds in [1, 30, 1] {
        tokio::time::sleep(Duration::from_millis(120)).await;
        let readings = rig.after(seconds).await;
        let figures = &instances(&readings)[0].figures;
        assert_eq!(figures.get(Figure::SmActive), Some(435_000));
        assert_eq!(figures.get(Figure::TensorActive), Some(2_500));
        assert_eq!(figures.get(Figure::NvlinkReceiveRate), Some(2 << 20));
        assert_eq!(figures.get(Figure::DramActive), None);
    }
}

#[tokio::test]
async fn a_device_without_these_counters_is_asked_once_per_probe() {
    let mut rig = Rig::new(Scenario::with_gpus(1));
    for _ in 0..2 {
        let readings = read(&mut rig).await;
        assert_eq!(instances(&readings)[0].figures, Default::default());
        assert_eq!(health(&readings, 0), Health::Ok);
    }
    let stats = rig.sampler.stats();
    assert!(stats.devices.values().all(|it| it.not_asked.contains(&"gpm")));
    assert!(stats.errors.values().all(|it| *it == 0));
}

#[tokio::test]
async fn each_mig_instance_has_its_own_use() {
    let mut rig = Rig::new(Scenario::with_gpus(1));
    rig.change(|it| {
        let shared = MigInstance { compute_instance: 1, ..part(3, 9, 0) };
        it.gpus[0].mig = Some(vec![part(0, 7, 98_000), part(1, 8, 10), part(2, 9, 0), shared]);
    });
    read(&mut rig).await;
    let readings = read(&mut rig).await;
    let busy: Vec<_> = instances(&readings).iter().map(|it| it.busy).collect();
    // The last two share a GPU instance: whose use it is, is not known.
    assert_eq!(busy, [Percent::new(98), Percent::new(1), None, None]);
    let mig = MigIdentity {
        profile: Some("1g.10gb".into()),
        gpu_instance: Some(8),
        compute_instance: Some(0),
    };
    assert_eq!(instances(&readings)[1].mig, Some(mig));
    assert_eq!(device(&readings, 0).counters.busy, None);
    assert_eq!(device(&readings, 0).identity.mig_on, Some(true));
    assert_eq!(health(&readings, 0), Health::Ok);
}

#[tokio::test]
async fn an_instance_that_cannot_be_measured_is_not_idle() {
    let mut rig = Rig::new(Scenario::with_gpus(1));
    rig.change(|it| it.gpus[0].mig = Some(vec![part(0, 7, 0)]));
    read(&mut rig).await;
    assert_eq!(instances(&read(&mut rig).await)[0].busy, Percent::new(0));
    rig.fail("nvmlGpmMigSampleGet", UNKNOWN);
    let readings = read(&mut rig).await;
    assert_eq!((instances(&readings)[0].busy, health(&readings, 0)), (None, Health::Degraded));

    // As on an A100.
    rig.fail("nvmlGpmMigSampleGet", NOT_SUPPORTED);
    read(&mut rig).await;
    let readings = read(&mut rig).await;
    assert_eq!((instances(&readings)[0].busy, health(&readings, 0)), (None, Health::Ok));
}

#[tokio::test]
async fn a_layout_that_changes_is_followed() {
    let mut rig = Rig::new(Scenario::with_gpus(1));
    rig.change(|it| it.gpus[0].mig = Some(vec![part(0, 7, 50_000), part(1, 8, 0)]));
    read(&mut rig).await;
    assert_eq!(instances(&read(&mut rig).await).len(), 2);
    rig.change(|it| it.gpus[0].mig = Some(vec![part(5, 7, 20_000)]));
    read(&mut rig).await;
    let readings = read(&mut rig).await;
    let [instance] = instances(&readings) else { panic!("one instance") };
    assert_eq!((instance.id.mig.as_deref(), instance.busy), (Some("MIG-5"), Percent::new(20)));
}
