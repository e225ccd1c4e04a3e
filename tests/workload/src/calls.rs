//! The calls that `--rounds` makes: every one that an observer may count, each with a size of its own.
//! The sizes are distinct primes, so that a wrong argument or a wrong name shows in the sums.

use Side::{Device, Host};

/// One kind of call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) symbol: &'static str,
    /// What is appended for the per-thread-default-stream variant; empty = there is none.
    pub(crate) per_thread: &'static str,
    pub(crate) shape: Shape,
    /// Of the call, in bytes; 0 = it has no size.
    pub(crate) bytes: usize,
}

/// The arguments, and what must be undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Launch,
    LaunchEx,
    LaunchCooperative,
    LaunchGraph,
    Allocate,
    AllocateManaged,
    /// `bytes` is the width of a row.
    AllocatePitch,
    AllocateAsync,
    AllocateFromPool,
    CreateHandle,
    Copy(Side, Side),
    CopyAsync(Side, Side),
    CopyPeer,
    CopyPeerAsync,
    /// Waits for everything.
    Wait,
    WaitForStream,
    WaitForEvent,
}

/// Where a copy goes to, or comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Host,
    Device,
}

/// Rows of the pitched allocation.
pub(crate) const ROWS: usize = 3;

const fn call(symbol: &'static str, per_thread: &'static str, shape: Shape, bytes: usize) -> Call {
    Call { symbol, per_thread, shape, bytes }
}

pub(crate) const CALLS: [Call; 23] = [
    call("cuLaunchKernel", "_ptsz", Shape::Launch, 0),
    call("cuLaunchKernelEx", "_ptsz", Shape::LaunchEx, 0),
    call("cuLaunchCooperativeKernel", "_ptsz", Shape::LaunchCooperative, 0),
    call("cuGraphLaunch", "_ptsz", Shape::LaunchGraph, 0),
    call("cuMemAlloc_v2", "", Shape::Allocate, 1_009),
    call("cuMemAllocManaged", "", Shape::AllocateManaged, 2_003),
    call("cuMemAllocPitch_v2", "", Shape::AllocatePitch, 3_001),
    call("cuMemAllocAsync", "_ptsz", Shape::AllocateAsync, 4_001),
    call("cuMemAllocFromPoolAsync", "_ptsz", Shape::AllocateFromPool, 5_003),
    call("cuMemCreate", "", Shape::CreateHandle, 6_007),
    call("cuMemcpyHtoD_v2", "_ptds", Shape::Copy(Device, Host), 7_001),
    call("cuMemcpyDtoH_v2", "_ptds", Shape::Copy(Host, Device), 8_009),
    call("cuMemcpyDtoD_v2", "_ptds", Shape::Copy(Device, Device), 9_001),
    call("cuMemcpyHtoDAsync_v2", "_ptsz", Shape::CopyAsync(Device, Host), 10_007),
    call("cuMemcpyDtoHAsync_v2", "_ptsz", Shape::CopyAsync(Host, Device), 11_003),
    call("cuMemcpyDtoDAsync_v2", "_ptsz", Shape::CopyAsync(Device, Device), 12_007),
    call("cuMemcpy", "_ptds", Shape::Copy(Device, Host), 13_001),
    call("cuMemcpyAsync", "_ptsz", Shape::CopyAsync(Host, Device), 14_009),
    call("cuMemcpyPeer", "_ptds", Shape::CopyPeer, 15_013),
    call("cuMemcpyPeerAsync", "_ptsz", Shape::CopyPeerAsync, 16_001),
    call("cuStreamSynchronize", "_ptsz", Shape::WaitForStream, 0),
    call("cuEventSynchronize", "", Shape::WaitForEvent, 0),
    call("cuCtxSynchronize", "", Shape::Wait, 0),
];

/// What undoes the allocating calls, and the variant of each.
pub(crate) const UNDO: [(&str, &str); 3] =
    [("cuMemFree_v2", ""), ("cuMemFreeAsync", "_ptsz"), ("cuMemRelease", "")];

/// What makes a process ready to call the others.
pub(crate) const PREPARE: [&str; 9] = [
    "cuInit",
    "cuDeviceGet",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuEventCreate",
    "cuEventRecord",
];

#[cfg(test)]
mod tests {
    use super::CALLS;
    use std::collections::BTreeSet;

    #[test]
    fn the_sizes_are_distinct_primes() {
        let sizes: Vec<usize> = CALLS.iter().map(|it| it.bytes).filter(|it| *it > 0).collect();
        assert_eq!(sizes.iter().collect::<BTreeSet<_>>().len(), sizes.len());
        for size in sizes {
            assert!((2..size).take_while(|it| it * it <= size).all(|it| size % it != 0), "{size}");
        }
    }
}
