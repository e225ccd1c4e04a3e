//! What drivers say of the use by each process, and what they say wrongly.

use agent::model::readings::ProcessReading;
use gpu_state::scenario::{List, Row, SampleRow, Scenario};

use super::{FUNCTION_NOT_FOUND, Health, UNKNOWN, device, health};
use crate::nvml_sampler::rig::Rig;

const NEWER: &str = "nvmlDeviceGetProcessesUtilizationInfo";
const OLDER: &str = "nvmlDeviceGetProcessUtilization";
const BLANK: u32 = 2_147_483_632;

fn row(pid: u32, memory_mib: Option<u64>) -> Row {
    Row { pid, memory_mib, ..Row::default() }
}

/// A device that lists processes 7 and 8 and has these samples.
fn rig(samples: &[(u32, u32)]) -> Rig {
    let mut rig = Rig::new(Scenario::with_gpus(1));
    rig.change(|it| {
        it.gpus[0].processes = vec![row(7, Some(100)), row(8, None)];
        let sample = |it: &(u32, u32)| SampleRow { pid: it.0, sm: it.1, at_us: None };
        it.gpus[0].samples = samples.iter().map(sample).collect();
    });
    rig
}

async fn listed(rig: &mut Rig) -> Vec<ProcessReading> {
    device(&rig.read().await, 0).instances[0].processes.clone().unwrap()
}

async fn weights(rig: &mut Rig) -> Vec<Option<u64>> {
    listed(rig).await.iter().map(|it| it.sm_weight).collect()
}

#[tokio::test]
async fn either_call_weighs_the_processes() {
    let mut newer = rig(&[(7, 30), (8, 10), (7, 5)]);
    assert_eq!(weights(&mut newer).await, [Some(35), Some(10)]);
    let mut older = rig(&[(7, 30), (8, 10), (7, 5)]);
    older.fail(NEWER, FUNCTION_NOT_FOUND);
    for _ in 0..2 {
        assert_eq!(weights(&mut older).await, [Some(35), Some(10)]);
    }
    assert_eq!(older.sampler.stats().errors.values().sum::<u64>(), 0);
}

/// HAMi#2015: with driver 580 on Blackwell the older call answers, and says 0.
#[tokio::test]
async fn the_older_calls_zero_is_not_believed_where_there_is_a_newer_one() {
    let mut rig = rig(&[(7, 30)]);
    rig.change(|it| it.gpus[0].legacy_samples_are_zero = true);
    for _ in 0..3 {
        assert_eq!(weights(&mut rig).await, [Some(30), Some(0)]);
    }
    // Nor where the newer one fails.
    rig.fail(NEWER, UNKNOWN);
    assert_eq!(weights(&mut rig).await, [None, None]);
    assert_eq!(health(&rig.after(40).await, 0), Health::Degraded);
}

#[tokio::test]
async fn an_idle_device_has_no_samples_and_its_processes_did_nothing() {
    for missing in [OLDER, NEWER] {
        let mut rig = rig(&[]);
        rig.fail(missing, FUNCTION_NOT_FOUND);
        for _ in 0..2 {
            assert_eq!(weights(&mut rig).await, [Some(0), Some(0)], "without {missing}");
        }
        assert_eq!(health(&rig.read().await, 0), Health::Ok);
    }
}

#[tokio::test]
async fn rows_that_cannot_be_true_are_not_idleness() {
    let mut rig = rig(&[(0, 90), (7, BLANK), (8, 3)]);
    rig.change(|it| {
        it.gpus[0].samples.push(SampleRow { pid: 9, sm: 50, at_us: Some(u64::MAX) });
        it.gpus[0].processes.push(row(0, Some(5)));
        it.gpus[0].processes.push(row(9, Some(1 << 40)));
    });
    for _ in 0..2 {
        let seen: Vec<_> = listed(&mut rig).await;
        let seen: Vec<_> = seen.iter().map(|it| (it.tgid, it.memory_bytes, it.sm_weight)).collect();
        assert_eq!(seen, [(7, Some(100 << 20), None), (8, None, Some(3)), (9, None, None)]);
    }
}

#[tokio::test]
async fn graphics_and_mps_processes_are_listed_too() {
    let mut rig = rig(&[]);
    rig.change(|it| {
        it.gpus[0].processes.push(Row { list: List::Graphics, ..row(11, Some(5)) });
        it.gpus[0].processes.push(Row { list: List::Mps, ..row(12, Some(6)) });
    });
    let pids: Vec<_> = listed(&mut rig).await.iter().map(|it| it.tgid).collect();
    assert_eq!(pids, [7, 8, 11, 12]);
}
