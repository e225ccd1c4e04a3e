//! The calls that are tried, with and without hooks. Without a GPU all but one fail at once; none needs
//! more than integers and a buffer of its own.

use std::collections::BTreeMap;

use agent::model::readings::{Counter, CudaCounts};

/// One argument.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Argument {
    Value(u64),
    /// The address of room for what the call answers or copies.
    Room,
}

/// One function, called a few times: a prime number, so that a wrong sum shows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trial {
    pub(crate) symbol: &'static str,
    pub(crate) arguments: &'static [Argument],
    pub(crate) calls: u32,
    counts: Counts,
}

/// What the calls of a trial add.
#[derive(Clone, Copy, Debug)]
enum Counts {
    Nothing,
    Calls(Counter),
    /// And so many bytes for each, to the counter after it.
    Bytes(Counter, u64),
    /// A call that fails; which it may not do where there is a GPU.
    Failures(Counter),
}

use Argument::{Room, Value};
use Counts::{Bytes, Calls, Failures, Nothing};

/// In this order.
pub(crate) const TRIALS: [Trial; 11] = [
    trial("cuInit", &[Value(0)], 1, Nothing),
    trial("cuDriverGetVersion", &[Room], 3, Nothing),
    trial("cuMemAlloc_v2", &[Room, Value(4096)], 13, Failures(Counter::DeviceFailed)),
    trial("cuMemFree_v2", &[Value(4096)], 2, Nothing),
    trial("cuLaunchKernel", &[Value(0); 11], 7, Calls(Counter::KernelLaunches)),
    trial("cuLaunchKernel_ptsz", &[Value(0); 11], 5, Calls(Counter::KernelLaunches)),
    trial(
        "cuMemcpyHtoD_v2",
        &[Value(0), Room, Value(1009)],
        3,
        Bytes(Counter::HostToDeviceCalls, 1009),
    ),
    trial(
        "cuMemcpyDtoH_v2",
        &[Room, Value(0), Value(1013)],
        11,
        Bytes(Counter::DeviceToHostCalls, 1013),
    ),
    trial(
        "cuMemcpyPeer",
        &[Value(0), Value(0), Value(0), Value(0), Value(1019)],
        2,
        Bytes(Counter::PeerCalls, 1019),
    ),
    trial("cuCtxSynchronize", &[], 3, Calls(Counter::Synchronizations)),
    trial("cuStreamSynchronize", &[Value(0)], 2, Calls(Counter::Synchronizations)),
];

/// Bytes that a call may be given the address of.
pub(crate) const ROOM_BYTES: usize = 1024;

const fn trial(
    symbol: &'static str,
    arguments: &'static [Argument],
    calls: u32,
    counts: Counts,
) -> Trial {
    Trial { symbol, arguments, calls, counts }
}

/// What the kernel should have counted, given what each function answered.
pub(crate) fn expected(answers: &BTreeMap<String, i32>) -> CudaCounts {
    let mut counts = CudaCounts::default();
    for trial in &TRIALS {
        let Some(answer) = answers.get(trial.symbol) else { continue };
        let calls = u64::from(trial.calls);
        match trial.counts {
            Calls(counter) => counts[counter] += calls,
            Failures(counter) if *answer != 0 => counts[counter] += calls,
            Bytes(counter, bytes) => {
                counts[counter] += calls;
                counts[bytes_of(counter)] += calls * bytes;
            }
            Nothing | Failures(_) => {}
        }
    }
    counts
}

fn bytes_of(counter: Counter) -> Counter {
    match counter {
        Counter::HostToDeviceCalls => Counter::HostToDeviceBytes,
        Counter::DeviceToHostCalls => Counter::DeviceToHostBytes,
        Counter::PeerCalls => Counter::PeerBytes,
        other => other,
    }
}

/// Time is not known beforehand.
pub(crate) fn without_time(mut counts: CudaCounts) -> CudaCounts {
    for it in [Counter::SynchronizeWaitNs, Counter::BusyUpperNs, Counter::ModuleLoadNs] {
        counts[it] = 0;
    }
    counts
}
