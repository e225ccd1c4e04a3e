//! The functions.

use agent_ebpf::Counter::{
    self, ContextSwitches, CooperativeLaunches, DeviceAllocations, DeviceToDeviceCalls,
    DeviceToHostCalls, EventRecords, Exports, GraphLaunches, HandleRetains, HostAllocations,
    HostFunctions, HostToDeviceCalls, Imports, KernelLaunches, ManagedAllocations, Maps, Memsets,
    ModuleLoads, PeerCalls, Queries, StreamOrderedAllocations, Streams, Synchronizations,
    UnknownCalls, Unmaps, VirtualAllocations,
};
use agent_ebpf::cookie::{Cookie, Op};

use super::{Group, Hook, Kind};
use crate::config::ExtraHooks;

/// All of them. Functions that a driver does not have are skipped and reported.
pub(crate) static HOOKS: [Hook; 138] = [
    // The first call of a process.
    hook("cuInit", Kind::Init, Group::Life, Cookie::op(Streams, Op::Begin)),
    // Contexts and streams.
    context_on("cuCtxCreate", Op::CreateContext, 2),
    context_on("cuCtxCreate_v2", Op::CreateContext, 2),
    context_on("cuCtxCreate_v3", Op::CreateContext, 4),
    context_on("cuCtxCreate_v4", Op::CreateContext, 3),
    context_on("cuDevicePrimaryCtxRetain", Op::RetainContext, 1),
    context("cuDevicePrimaryCtxRelease", Op::ReleaseContext),
    context("cuDevicePrimaryCtxRelease_v2", Op::ReleaseContext),
    context("cuDevicePrimaryCtxReset", Op::ResetContext),
    context("cuDevicePrimaryCtxReset_v2", Op::ResetContext),
    context("cuCtxDestroy", Op::DestroyContext),
    context("cuCtxDestroy_v2", Op::DestroyContext),
    context("cuStreamCreate", Op::CreateStream),
    context("cuStreamCreateWithPriority", Op::CreateStream),
    context_on("cuDeviceGetUuid", Op::Identify, 1),
    context_on("cuDeviceGetUuid_v2", Op::Identify, 1),
    switch("cuCtxSetCurrent", Op::SetContext),
    switch("cuCtxPushCurrent", Op::PushContext),
    switch("cuCtxPushCurrent_v2", Op::PushContext),
    switch("cuCtxPopCurrent", Op::PopContext),
    switch("cuCtxPopCurrent_v2", Op::PopContext),
    // Launches.
    launch("cuLaunchKernel", KernelLaunches),
    thread_launch("cuLaunchKernel_ptsz", KernelLaunches),
    launch("cuLaunchKernelEx", KernelLaunches),
    thread_launch("cuLaunchKernelEx_ptsz", KernelLaunches),
    launch("cuLaunchCooperativeKernel", CooperativeLaunches),
    thread_launch("cuLaunchCooperativeKernel_ptsz", CooperativeLaunches),
    launch("cuGraphLaunch", GraphLaunches),
    thread_launch("cuGraphLaunch_ptsz", GraphLaunches),
    // Memory.
    allocation("cuMemAlloc_v2", DeviceAllocations, Op::Allocate),
    narrow(allocation("cuMemAlloc", DeviceAllocations, Op::Allocate)),
    allocation("cuMemAllocPitch_v2", DeviceAllocations, Op::AllocatePitched),
    narrow(allocation("cuMemAllocPitch", DeviceAllocations, Op::AllocatePitched)),
    allocation("cuMemAllocManaged", ManagedAllocations, Op::Allocate),
    allocation("cuMemAllocHost_v2", HostAllocations, Op::Allocate),
    narrow(allocation("cuMemAllocHost", HostAllocations, Op::Allocate)),
    allocation("cuMemHostAlloc", HostAllocations, Op::Allocate),
    allocation("cuMemHostRegister", HostAllocations, Op::Register),
    allocation("cuMemHostRegister_v2", HostAllocations, Op::Register),
    allocation("cuMemFree_v2", DeviceAllocations, Op::Free),
    narrow(allocation("cuMemFree", DeviceAllocations, Op::Free)),
    allocation("cuMemFreeHost", HostAllocations, Op::Free),
    allocation("cuMemHostUnregister", HostAllocations, Op::Free),
    physical("cuMemCreate", VirtualAllocations, Op::CreateHandle),
    physical("cuMemRelease", VirtualAllocations, Op::ReleaseHandle),
    physical("cuMemRetainAllocationHandle", HandleRetains, Op::RetainHandle),
    physical("cuMemExportToShareableHandle", Exports, Op::ExportHandle),
    physical("cuMemMap", Maps, Op::Map),
    physical("cuMemUnmap", Unmaps, Op::Unmap),
    physical("cuMemMapArrayAsync", Maps, Op::MapArrays),
    physical("cuMemMapArrayAsync_ptsz", Maps, Op::MapArrays),
    allocation("cuIpcOpenMemHandle", Imports, Op::Plain),
    allocation("cuIpcOpenMemHandle_v2", Imports, Op::Plain),
    allocation("cuMemImportFromShareableHandle", Imports, Op::Plain),
    request("cuMemAllocAsync"),
    request("cuMemAllocAsync_ptsz"),
    request("cuMemAllocFromPoolAsync"),
    request("cuMemAllocFromPoolAsync_ptsz"),
    free_later("cuMemFreeAsync"),
    free_later("cuMemFreeAsync_ptsz"),
    // Copies.
    copy("cuMemcpyHtoD_v2", HostToDeviceCalls),
    copy("cuMemcpyHtoD_v2_ptds", HostToDeviceCalls),
    copy("cuMemcpyHtoDAsync_v2", HostToDeviceCalls),
    copy("cuMemcpyHtoDAsync_v2_ptsz", HostToDeviceCalls),
    narrow(copy("cuMemcpyHtoD", HostToDeviceCalls)),
    narrow(copy("cuMemcpyHtoDAsync", HostToDeviceCalls)),
    copy("cuMemcpyDtoH_v2", DeviceToHostCalls),
    copy("cuMemcpyDtoH_v2_ptds", DeviceToHostCalls),
    copy("cuMemcpyDtoHAsync_v2", DeviceToHostCalls),
    copy("cuMemcpyDtoHAsync_v2_ptsz", DeviceToHostCalls),
    narrow(copy("cuMemcpyDtoH", DeviceToHostCalls)),
    narrow(copy("cuMemcpyDtoHAsync", DeviceToHostCalls)),
    copy("cuMemcpyDtoD_v2", DeviceToDeviceCalls),
    copy("cuMemcpyDtoD_v2_ptds", DeviceToDeviceCalls),
    copy("cuMemcpyDtoDAsync_v2", DeviceToDeviceCalls),
    copy("cuMemcpyDtoDAsync_v2_ptsz", DeviceToDeviceCalls),
    narrow(copy("cuMemcpyDtoD", DeviceToDeviceCalls)),
    narrow(copy("cuMemcpyDtoDAsync", DeviceToDeviceCalls)),
    copy("cuMemcpy", UnknownCalls),
    copy("cuMemcpy_ptds", UnknownCalls),
    copy("cuMemcpyAsync", UnknownCalls),
    copy("cuMemcpyAsync_ptsz", UnknownCalls),
    peer_copy("cuMemcpyPeer"),
    peer_copy("cuMemcpyPeer_ptds"),
    peer_copy("cuMemcpyPeerAsync"),
    peer_copy("cuMemcpyPeerAsync_ptsz"),
    // Waits.
    wait("cuCtxSynchronize", Op::WaitForContext),
    wait("cuStreamSynchronize", Op::WaitForStream),
    wait("cuStreamSynchronize_ptsz", Op::WaitForSome),
    wait("cuEventSynchronize", Op::WaitForSome),
    // On demand.
    memset("cuMemsetD8_v2", 0),
    memset("cuMemsetD8_v2_ptds", 0),
    memset("cuMemsetD8Async", 0),
    memset("cuMemsetD8Async_ptsz", 0),
    narrow(memset("cuMemsetD8", 0)),
    memset("cuMemsetD16_v2", 1),
    memset("cuMemsetD16_v2_ptds", 1),
    memset("cuMemsetD16Async", 1),
    memset("cuMemsetD16Async_ptsz", 1),
    narrow(memset("cuMemsetD16", 1)),
    memset("cuMemsetD32_v2", 2),
    memset("cuMemsetD32_v2_ptds", 2),
    memset("cuMemsetD32Async", 2),
    memset("cuMemsetD32Async_ptsz", 2),
    narrow(memset("cuMemsetD32", 2)),
    strided("cuMemcpy2D_v2", Op::Plane),
    strided("cuMemcpy2D_v2_ptds", Op::Plane),
    strided("cuMemcpy2DUnaligned_v2", Op::Plane),
    strided("cuMemcpy2DUnaligned_v2_ptds", Op::Plane),
    strided("cuMemcpy2DAsync_v2", Op::Plane),
    strided("cuMemcpy2DAsync_v2_ptsz", Op::Plane),
    strided("cuMemcpy3D_v2", Op::Volume),
    strided("cuMemcpy3D_v2_ptds", Op::Volume),
    strided("cuMemcpy3DAsync_v2", Op::Volume),
    strided("cuMemcpy3DAsync_v2_ptsz", Op::Volume),
    strided("cuMemcpy3DPeer", Op::PeerVolume),
    strided("cuMemcpy3DPeer_ptds", Op::PeerVolume),
    strided("cuMemcpy3DPeerAsync", Op::PeerVolume),
    strided("cuMemcpy3DPeerAsync_ptsz", Op::PeerVolume),
    batch("cuMemcpyBatchAsync"),
    batch("cuMemcpyBatchAsync_ptsz"),
    batch("cuMemcpyBatchAsync_v2"),
    batch("cuMemcpyBatchAsync_v2_ptsz"),
    event("cuEventRecord", EventRecords),
    event("cuEventRecord_ptsz", EventRecords),
    event("cuEventRecordWithFlags", EventRecords),
    event("cuEventRecordWithFlags_ptsz", EventRecords),
    event("cuEventQuery", Queries),
    event("cuStreamQuery", Queries),
    event("cuStreamQuery_ptsz", Queries),
    host_function("cuLaunchHostFunc"),
    host_function("cuLaunchHostFunc_ptsz"),
    module_load("cuModuleLoad"),
    module_load("cuModuleLoadData"),
    module_load("cuModuleLoadDataEx"),
    module_load("cuModuleLoadFatBinary"),
    module_load("cuLibraryLoadData"),
    module_load("cuLibraryLoadFromFile"),
];

const fn hook(symbol: &'static str, kind: Kind, group: Group, cookie: Cookie) -> Hook {
    Hook { symbol, kind, group, cookie, extra: None }
}

const fn on_demand(hook: Hook, extra: ExtraHooks) -> Hook {
    Hook { extra: Some(extra), ..hook }
}

/// The first version of a function: sizes and device addresses have 32 bits.
const fn narrow(hook: Hook) -> Hook {
    Hook { cookie: hook.cookie.narrow(), ..hook }
}

const fn context(symbol: &'static str, op: Op) -> Hook {
    hook(symbol, Kind::Context, Group::Life, Cookie::op(Streams, op))
}

/// The argument at this position is a device.
const fn context_on(symbol: &'static str, op: Op, position: u8) -> Hook {
    hook(symbol, Kind::Context, Group::Life, Cookie::op(Streams, op).at(position))
}

const fn switch(symbol: &'static str, op: Op) -> Hook {
    hook(symbol, Kind::Context, Group::Switches, Cookie::op(ContextSwitches, op))
}

const fn launch(symbol: &'static str, counter: Counter) -> Hook {
    hook(symbol, Kind::Launch, Group::Launches, Cookie::count(counter))
}

const fn thread_launch(symbol: &'static str, counter: Counter) -> Hook {
    hook(symbol, Kind::Launch, Group::Launches, Cookie::count(counter).in_thread_stream())
}

const fn allocation(symbol: &'static str, counter: Counter, op: Op) -> Hook {
    hook(symbol, Kind::Result, Group::Memory, Cookie::op(counter, op))
}

const fn physical(symbol: &'static str, counter: Counter, op: Op) -> Hook {
    hook(symbol, Kind::Virtual, Group::Memory, Cookie::op(counter, op))
}

/// `(pointer to the address, bytes, ..)`.
const fn request(symbol: &'static str) -> Hook {
    hook(symbol, Kind::Sum, Group::Memory, Cookie::sum(StreamOrderedAllocations, 1))
}

const fn free_later(symbol: &'static str) -> Hook {
    hook(symbol, Kind::FreeLater, Group::Memory, Cookie::count(StreamOrderedAllocations))
}

/// `(destination, source, bytes, ..)`.
const fn copy(symbol: &'static str, counter: Counter) -> Hook {
    hook(symbol, Kind::Sum, Group::Copies, Cookie::sum(counter, 2))
}

/// `(destination, its context, source, its context, bytes, ..)`.
const fn peer_copy(symbol: &'static str) -> Hook {
    hook(symbol, Kind::Sum, Group::Copies, Cookie::sum(PeerCalls, 4))
}

const fn wait(symbol: &'static str, op: Op) -> Hook {
    hook(symbol, Kind::Wait, Group::Waits, Cookie::op(Synchronizations, op))
}

/// `(destination, value, elements, ..)`.
const fn memset(symbol: &'static str, shift: u8) -> Hook {
    let cookie = Cookie::sum(Memsets, 2).shifted(shift);
    on_demand(hook(symbol, Kind::Sum, Group::Copies, cookie), ExtraHooks::Memset)
}

const fn strided(symbol: &'static str, op: Op) -> Hook {
    let cookie = Cookie::op(UnknownCalls, op);
    on_demand(hook(symbol, Kind::Strided, Group::Copies, cookie), ExtraHooks::StridedCopies)
}

const fn batch(symbol: &'static str) -> Hook {
    let cookie = Cookie::count(UnknownCalls);
    on_demand(hook(symbol, Kind::Batch, Group::Copies, cookie), ExtraHooks::BatchCopies)
}

const fn event(symbol: &'static str, counter: Counter) -> Hook {
    let cookie = Cookie::count(counter);
    on_demand(hook(symbol, Kind::Count, Group::Extra, cookie), ExtraHooks::Events)
}

const fn host_function(symbol: &'static str) -> Hook {
    let cookie = Cookie::count(HostFunctions);
    on_demand(hook(symbol, Kind::Count, Group::Launches, cookie), ExtraHooks::HostFunctions)
}

const fn module_load(symbol: &'static str) -> Hook {
    let cookie = Cookie::op(ModuleLoads, Op::Timed);
    on_demand(hook(symbol, Kind::Result, Group::Life, cookie), ExtraHooks::ModuleLoads)
}
