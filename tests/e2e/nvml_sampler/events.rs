//! Errors that the driver reports by number.

use agent::model::readings::{NvmlReadings, Xid};
use gpu_state::scenario::{Scenario, State};

use super::{LIB_RM_VERSION_MISMATCH, NOT_SUPPORTED, device};
use crate::nvml_sampler::rig::Rig;

fn xids(readings: &NvmlReadings, index: u32) -> Vec<(u64, u64)> {
    let seen = |it: &Xid| (it.code, it.count);
    device(readings, index).xids.iter().map(seen).collect()
}

fn gaps(rig: &Rig) -> u64 {
    rig.sampler.stats().event_gaps.values().sum()
}

/// A node whose devices are listened for.
async fn rig(scenario: Scenario) -> Rig {
    let mut rig = Rig::new(scenario);
    rig.until(|it| !it.devices.is_empty() && it.devices.values().all(|it| it.hears_xids)).await;
    rig
}

#[tokio::test]
async fn errors_are_counted_by_number_from_the_first_one_that_was_heard() {
    let mut scenario = Scenario::with_gpus(2);
    // Before the agent listened.
    scenario.gpus[1].xids = vec![13];
    let mut rig = rig(scenario).await;
    rig.change(|it| it.gpus[1].xids.extend([79, 31, 79]));
    let readings = rig.until(|it| xids(it, 1).iter().map(|it| it.1).sum::<u64>() == 3).await;
    assert_eq!(xids(&readings, 1), [(31, 1), (79, 2)]);
    assert_eq!(xids(&readings, 0), []);
    let last = device(&readings, 1).xids[0].last_real_ns;
    assert!((agent::clock::real_ns() - last) < 60_000_000_000, "{last}");
    assert_eq!(gaps(&rig), 0);
}

#[tokio::test]
async fn a_device_that_is_lost_is_not_listened_for_and_keeps_what_was_heard() {
    let mut rig = rig(Scenario::with_gpus(2)).await;
    rig.change(|it| it.gpus[0].xids.push(79));
    rig.until(|it| xids(it, 0) == [(79, 1)]).await;
    rig.change(|it| it.gpus[0].state = State::Lost);
    let readings = rig.until(|it| !device(it, 0).hears_xids).await;
    assert_eq!(xids(&readings, 0), [(79, 1)]);
    assert!(device(&readings, 1).hears_xids);
    assert_eq!((gaps(&rig), rig.sampler.stats().event_gaps["lost"]), (1, 1));
}

#[tokio::test]
async fn a_driver_that_was_replaced_is_listened_to_again_and_the_gap_is_counted() {
    let mut rig = rig(Scenario::with_gpus(1)).await;
    rig.fail("nvmlDeviceGetUtilizationRates", LIB_RM_VERSION_MISMATCH);
    rig.until(|it| !device(it, 0).hears_xids).await;
    rig.change(|it| it.gpus[0].nvml_fails.clear());
    rig.until(|it| device(it, 0).hears_xids).await;
    rig.change(|it| it.gpus[0].xids.push(48));
    let readings = rig.until(|it| !xids(it, 0).is_empty()).await;
    assert_eq!(xids(&readings, 0), [(48, 1)]);
    assert_eq!((gaps(&rig), rig.sampler.stats().event_gaps["closed"]), (1, 1));
}

#[tokio::test]
async fn a_driver_without_events_is_no_gap_and_no_fault() {
    let mut rig = Rig::new(Scenario::with_gpus(1));
    rig.fail("nvmlDeviceRegisterEvents", NOT_SUPPORTED);
    for _ in 0..20 {
        assert!(!device(&rig.read().await, 0).hears_xids);
    }
    assert_eq!(gaps(&rig), 0);
    assert!(rig.sampler.stats().errors.values().all(|it| *it == 0));
}
