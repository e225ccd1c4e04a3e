//! What a process does on which of its devices.

use agent::clock;
use agent::model::readings::{Counter, CudaProcess};

use crate::rig::{Build, Node, Truth, only, without_wait};

/// Of a workload that has made all its calls and lives.
fn read(options: &str, rounds: u64, devices: usize) -> (CudaProcess, Truth) {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer();
    let mut workload = node.start(&format!("{options} --hold"));
    let truth = workload.truth_of_rounds(rounds);
    assert_eq!(truth.devices.len(), devices, "{options}");
    (only(&tracer.read(clock::boot()), truth.tgid).1, truth)
}

#[test]
fn a_process_with_one_device_has_a_home_and_nothing_elsewhere() {
    let (process, truth) = read("--rounds 5 --device 1", 5, 0);
    let home = process.home.expect("it has a context");
    assert_eq!(home.ordinal, Some(1));
    assert!(home.uuid.is_some(), "it has asked for it");
    assert_eq!(process.elsewhere, []);
    assert_eq!(without_wait(process.counts), truth.counts());
}

#[test]
fn calls_count_for_the_device_of_their_threads_context() {
    for (options, rounds) in
        [("--rounds 12 --devices 0,1", 12), ("--rounds 12 --devices 1,0 --threads 4", 48)]
    {
        let (process, truth) = read(options, rounds, 2);
        assert_eq!(without_wait(process.counts), truth.counts(), "{options}");
        let home = process.home.and_then(|it| it.ordinal).expect("it has a context");
        assert_eq!(process.elsewhere.len(), 1, "{options}: {:?}", process.elsewhere);
        let (other, part) = process.elsewhere[0];
        assert_eq!(other.ordinal, Some(1 - home), "{options}");
        let told = truth.on(1 - home);
        assert_eq!(part.launches(), told.counts().launches(), "{options}");
        for counter in
            [Counter::HostToDeviceBytes, Counter::DeviceAllocatedBytes, Counter::Synchronizations]
        {
            assert_eq!(part[counter], told.counts()[counter], "{options} {counter:?}");
        }
    }
}
