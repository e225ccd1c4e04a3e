//! What the kernel should have counted of what a workload says that it did.

use agent::model::readings::{Counter, CudaCounts};

use crate::rig::{Called, Truth};

/// Calls and bytes of copies: what was asked for, whatever came of it.
const COPIES: [(Counter, Counter, &[&str]); 5] = [
    (
        Counter::HostToDeviceCalls,
        Counter::HostToDeviceBytes,
        &["cuMemcpyHtoD_v2", "cuMemcpyHtoDAsync_v2", "cuMemcpyHtoD", "cuMemcpyHtoDAsync"],
    ),
    (
        Counter::DeviceToHostCalls,
        Counter::DeviceToHostBytes,
        &["cuMemcpyDtoH_v2", "cuMemcpyDtoHAsync_v2", "cuMemcpyDtoH", "cuMemcpyDtoHAsync"],
    ),
    (
        Counter::DeviceToDeviceCalls,
        Counter::DeviceToDeviceBytes,
        &["cuMemcpyDtoD_v2", "cuMemcpyDtoDAsync_v2", "cuMemcpyDtoD", "cuMemcpyDtoDAsync"],
    ),
    (Counter::UnknownCalls, Counter::UnknownBytes, &["cuMemcpy", "cuMemcpyAsync"]),
    (Counter::PeerCalls, Counter::PeerBytes, &["cuMemcpyPeer", "cuMemcpyPeerAsync"]),
];

/// Those that are counted on demand only.
const EXTRA_COPIES: [(Counter, Counter, &[&str]); 6] = [
    (
        Counter::Memsets,
        Counter::MemsetBytes,
        &[
            "cuMemsetD8_v2",
            "cuMemsetD16_v2",
            "cuMemsetD32_v2",
            "cuMemsetD8Async",
            "cuMemsetD16Async",
            "cuMemsetD32Async",
            "cuMemsetD8",
            "cuMemsetD16",
            "cuMemsetD32",
        ],
    ),
    (Counter::HostToDeviceCalls, Counter::HostToDeviceBytes, &["cuMemcpy2D_v2", "cuMemcpy3D_v2"]),
    (
        Counter::DeviceToHostCalls,
        Counter::DeviceToHostBytes,
        &["cuMemcpy2DUnaligned_v2", "cuMemcpy3DAsync_v2"],
    ),
    (Counter::DeviceToDeviceCalls, Counter::DeviceToDeviceBytes, &["cuMemcpy2DAsync_v2"]),
    (Counter::PeerCalls, Counter::PeerBytes, &["cuMemcpy3DPeer", "cuMemcpy3DPeerAsync"]),
    (
        Counter::UnknownCalls,
        Counter::UnknownBytes,
        &["cuMemcpyBatchAsync", "cuMemcpyBatchAsync_v2"],
    ),
];

/// What is counted for every call.
const ASKED: [(Counter, &[&str]); 5] = [
    (Counter::KernelLaunches, &["cuLaunchKernel", "cuLaunchKernelEx"]),
    (Counter::CooperativeLaunches, &["cuLaunchCooperativeKernel"]),
    (Counter::GraphLaunches, &["cuGraphLaunch"]),
    (Counter::Synchronizations, &["cuStreamSynchronize", "cuEventSynchronize", "cuCtxSynchronize"]),
    (
        Counter::ContextSwitches,
        &[
            "cuCtxSetCurrent",
            "cuCtxPushCurrent",
            "cuCtxPushCurrent_v2",
            "cuCtxPopCurrent",
            "cuCtxPopCurrent_v2",
        ],
    ),
];

const EXTRA_ASKED: [(Counter, &[&str]); 3] = [
    (Counter::EventRecords, &["cuEventRecord", "cuEventRecordWithFlags"]),
    (Counter::Queries, &["cuEventQuery", "cuStreamQuery"]),
    (Counter::HostFunctions, &["cuLaunchHostFunc"]),
];

/// What is counted where it succeeds.
const SUCCEEDED: [(Counter, &[&str]); 8] = [
    (Counter::Maps, &["cuMemMap"]),
    (Counter::Unmaps, &["cuMemUnmap"]),
    (Counter::Imports, &["cuMemImportFromShareableHandle", "cuIpcOpenMemHandle_v2"]),
    (Counter::HandleRetains, &["cuMemRetainAllocationHandle"]),
    (Counter::Exports, &["cuMemExportToShareableHandle"]),
    (Counter::Streams, &["cuStreamCreate", "cuStreamCreateWithPriority"]),
    (
        Counter::Contexts,
        &[
            "cuCtxCreate",
            "cuCtxCreate_v2",
            "cuCtxCreate_v3",
            "cuCtxCreate_v4",
            "cuDevicePrimaryCtxRetain",
        ],
    ),
    (
        Counter::ContextsDestroyed,
        &["cuCtxDestroy", "cuCtxDestroy_v2", "cuDevicePrimaryCtxReset_v2"],
    ),
];

const MODULES: [&str; 3] = ["cuModuleLoadData", "cuModuleLoadDataEx", "cuLibraryLoadData"];

/// A kind of memory: its name, its counters, and what allocates and frees it.
struct Kind {
    name: &'static str,
    counters: [Counter; 6],
    allocate: &'static [&'static str],
    free: &'static [&'static str],
}

const KINDS: [Kind; 4] = [
    Kind {
        name: "device",
        counters: [
            Counter::DeviceAllocations,
            Counter::DeviceAllocatedBytes,
            Counter::DeviceFailed,
            Counter::DeviceOutOfMemory,
            Counter::DeviceFrees,
            Counter::DeviceFreedBytes,
        ],
        allocate: &["cuMemAlloc_v2", "cuMemAlloc", "cuMemAllocPitch_v2"],
        free: &["cuMemFree_v2", "cuMemFree"],
    },
    Kind {
        name: "managed",
        counters: [
            Counter::ManagedAllocations,
            Counter::ManagedAllocatedBytes,
            Counter::ManagedFailed,
            Counter::ManagedOutOfMemory,
            Counter::ManagedFrees,
            Counter::ManagedFreedBytes,
        ],
        allocate: &["cuMemAllocManaged"],
        free: &[],
    },
    Kind {
        name: "virtual",
        counters: [
            Counter::VirtualAllocations,
            Counter::VirtualAllocatedBytes,
            Counter::VirtualFailed,
            Counter::VirtualOutOfMemory,
            Counter::VirtualFrees,
            Counter::VirtualFreedBytes,
        ],
        allocate: &["cuMemCreate"],
        free: &["cuMemRelease"],
    },
    Kind {
        name: "host",
        counters: [
            Counter::HostAllocations,
            Counter::HostAllocatedBytes,
            Counter::HostFailed,
            Counter::HostOutOfMemory,
            Counter::HostFrees,
            Counter::HostFreedBytes,
        ],
        allocate: &[
            "cuMemAllocHost_v2",
            "cuMemAllocHost",
            "cuMemHostAlloc",
            "cuMemHostRegister_v2",
            "cuMemHostRegister",
        ],
        free: &["cuMemFreeHost", "cuMemHostUnregister"],
    },
];

impl Truth {
    /// Without what is counted on demand only. Times are not known here.
    pub(crate) fn counts(&self) -> CudaCounts {
        let mut counts = CudaCounts::default();
        self.count_copies(&mut counts, &COPIES);
        for (counter, symbols) in ASKED {
            counts[counter] = self.total(symbols, |it| it.calls);
        }
        for (counter, symbols) in SUCCEEDED {
            counts[counter] = self.total(symbols, |it| it.calls - it.failed);
        }
        counts[Counter::MappedBytes] = self.sum("cuMemMap", |it| it.bytes);
        counts[Counter::UnmappedBytes] = self.sum("cuMemUnmap", |it| it.bytes);
        for kind in &KINDS {
            self.count_memory(&mut counts, kind);
        }
        self.count_stream_ordered(&mut counts);
        counts
    }

    /// With everything.
    pub(crate) fn all_counts(&self) -> CudaCounts {
        let mut counts = self.counts();
        self.count_copies(&mut counts, &EXTRA_COPIES);
        for (counter, symbols) in EXTRA_ASKED {
            counts[counter] = self.total(symbols, |it| it.calls);
        }
        counts[Counter::ModuleLoads] = self.total(&MODULES, |it| it.calls - it.failed);
        counts
    }

    fn count_copies(&self, counts: &mut CudaCounts, copies: &[(Counter, Counter, &[&str])]) {
        for (calls, bytes, symbols) in copies {
            counts[*calls] += self.total(symbols, |it| it.calls);
            counts[*bytes] += self.total(symbols, |it| it.asked_bytes);
        }
    }

    /// A free counts for the memory that it frees; where that is not known, for what the function is
    /// called after.
    fn count_memory(&self, counts: &mut CudaCounts, kind: &Kind) {
        let freed = self.freed(kind.name);
        let unknown = self.total(kind.free, |it| it.freed_of(&["stream_ordered", "imported"]));
        let found = [
            self.total(kind.allocate, |it| it.calls - it.failed),
            self.total(kind.allocate, |it| it.bytes),
            self.total(kind.allocate, |it| it.failed),
            self.total(kind.allocate, |it| it.out_of_memory),
            freed.calls + unknown,
            freed.bytes,
        ];
        for (counter, value) in kind.counters.into_iter().zip(found) {
            counts[counter] = value;
        }
    }

    /// Requests: nobody waits for what comes of them.
    fn count_stream_ordered(&self, counts: &mut CudaCounts) {
        let allocate = ["cuMemAllocAsync", "cuMemAllocFromPoolAsync"];
        counts[Counter::StreamOrderedAllocations] = self.total(&allocate, |it| it.calls);
        counts[Counter::StreamOrderedAllocatedBytes] = self.total(&allocate, |it| it.asked_bytes);
        let known = |it: &Called| it.freed_of(&["device", "managed"]);
        counts[Counter::StreamOrderedFrees] = self.sum("cuMemFreeAsync", |it| it.calls - known(it));
    }

    fn total(&self, symbols: &[&str], value: impl Fn(&Called) -> u64) -> u64 {
        symbols.iter().map(|it| self.sum(it, &value)).sum()
    }
}

impl Called {
    fn freed_of(&self, kinds: &[&str]) -> u64 {
        kinds.iter().filter_map(|it| self.freed.get(*it)).map(|it| it.calls).sum()
    }
}
