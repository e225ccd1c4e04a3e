//! The calls that rounds are made of: every one that an observer may count, each with a size of its
//! own. The sizes are distinct primes, so that a wrong argument or a wrong name shows in the sums.

use Argument::{
    Config, Context, DeviceMemory, Event, Held, HeldPlus, HostMemory, Image, Kernel, Nothing,
    Number, Ordinal, OwnMemory, Place, Plane, Pool, Properties, Sizes, Unknown, Volume,
};
use Effect::{Ask, Free, Map, Retain, Take, TakeOwn, TakePitched, Unmap};
use Kind::{Device, Host, Imported, Managed, StreamOrdered, Virtual};

/// One call of a round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) symbol: &'static str,
    /// What is appended for the per-thread-default-stream variant; empty = there is none.
    pub(crate) per_thread: &'static str,
    pub(crate) arguments: &'static [Argument],
    pub(crate) effect: Effect,
}

/// What a call does that its caller must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Moves, sets, maps or waits for so many bytes; 0 = it has no size.
    Ask(u64),
    /// Gives memory of so many bytes, under the value in its slot.
    Take(Kind, Slot, u64),
    /// The same with rows as wide as the driver likes them.
    TakePitched(Slot, u64),
    /// The same, of the size that the caller was told.
    TakeTold(Kind, Slot),
    /// Pins so many bytes of the program's own memory, which the first argument says.
    TakeOwn(u64),
    /// Gives back the memory that the first argument says.
    Free,
    /// Gives the handle in its slot once more.
    Retain(Slot),
    /// Maps so many bytes of the fourth argument at the first.
    Map(u64),
    /// Ends the mappings of so many bytes from the first argument on.
    Unmap(u64),
}

/// What memory it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(usize)]
pub(crate) enum Kind {
    Device,
    Managed,
    /// Physical memory of the virtual memory management calls.
    Virtual,
    StreamOrdered,
    Host,
    /// Somebody else's, or none: a free of nothing succeeds.
    Imported,
}

pub(crate) const KINDS: [Kind; 6] = [Device, Managed, Virtual, StreamOrdered, Host, Imported];

/// Where a thread keeps what one call gives to the next.
pub(crate) type Slot = usize;

pub(crate) const SLOTS: usize = 5;

pub(crate) const MEMORY: Slot = 0;
pub(crate) const HANDLE: Slot = 1;
const ADDRESS: Slot = 2;
pub(crate) const MADE: Slot = 3;
/// Also the pitch of a pitched allocation.
pub(crate) const LEFTOVER: Slot = 4;

/// Where an argument comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Argument {
    Nothing,
    Number(u64),
    /// The address of a slot.
    Place(Slot),
    /// What is in a slot.
    Held(Slot),
    HeldPlus(Slot, u64),
    /// Device memory for copies: the first or the second buffer.
    DeviceMemory(u64),
    HostMemory,
    /// A thread's own memory, for it to pin.
    OwnMemory,
    Kernel,
    Event,
    Pool,
    Context,
    Ordinal,
    /// An image of a module.
    Image,
    /// The name of the kernel in it.
    KernelName,
    /// `CUipcMemHandle`: 64 bytes by value.
    IpcHandle,
    /// `CUlaunchConfig` of one thread.
    Config,
    /// `CUmemAllocationProp` of this device.
    Properties,
    /// `CUDA_MEMCPY2D` of so many bytes by so many rows, between these types of memory.
    Plane(u64, u64, [u64; 2]),
    /// `CUDA_MEMCPY3D` likewise, with a depth.
    Volume(u64, u64, u64, [u64; 2]),
    /// An array of the sizes of a batch, or of as many addresses.
    Sizes,
    /// A size that the caller is told apart from the call.
    Told,
    /// A pointer that the driver never gave out.
    Unknown,
    /// A function that the driver calls back.
    Callback,
    /// What the callback is given.
    CallbackData,
}

/// Rows of the pitched allocation.
const ROWS: u64 = 3;

/// Sizes of the copies of a batch.
pub(crate) const BATCH: [u64; 3] = [131, 137, 139];

const BATCH_BYTES: u64 = BATCH[0] + BATCH[1] + BATCH[2];

/// Larger than any memory.
const TOO_MUCH: u64 = 1 << 50;

/// `CUmemorytype`.
const HOST: u64 = 1;
const DEVICE: u64 = 2;

const fn call(symbol: &'static str, arguments: &'static [Argument], effect: Effect) -> Call {
    Call { symbol, per_thread: "", arguments, effect }
}

const fn ptsz(symbol: &'static str, arguments: &'static [Argument], effect: Effect) -> Call {
    Call { symbol, per_thread: "_ptsz", arguments, effect }
}

const fn ptds(symbol: &'static str, arguments: &'static [Argument], effect: Effect) -> Call {
    Call { symbol, per_thread: "_ptds", arguments, effect }
}

const ONE: Argument = Number(1);
const DST: Argument = DeviceMemory(0);
const SRC: Argument = DeviceMemory(1);

/// One thread of one block, on the default stream.
const LAUNCH: [Argument; 11] =
    [Kernel, ONE, ONE, ONE, ONE, ONE, ONE, Nothing, Nothing, Nothing, Nothing];

/// What is launched at a rate.
pub(crate) const LAUNCH_KERNEL: Call = ptsz("cuLaunchKernel", &LAUNCH, Ask(0));

pub(crate) const SYNCHRONIZE: Call = call("cuCtxSynchronize", &[], Ask(0));

/// What is copied at a rate: every kind in turn.
pub(crate) const COPIES: [Call; 10] = [
    ptds("cuMemcpyHtoD_v2", &[DST, HostMemory, Number(7_001)], Ask(7_001)),
    ptds("cuMemcpyDtoH_v2", &[HostMemory, SRC, Number(8_009)], Ask(8_009)),
    ptds("cuMemcpyDtoD_v2", &[DST, SRC, Number(9_001)], Ask(9_001)),
    ptsz("cuMemcpyHtoDAsync_v2", &[DST, HostMemory, Number(10_007), Nothing], Ask(10_007)),
    ptsz("cuMemcpyDtoHAsync_v2", &[HostMemory, SRC, Number(11_003), Nothing], Ask(11_003)),
    ptsz("cuMemcpyDtoDAsync_v2", &[DST, SRC, Number(12_007), Nothing], Ask(12_007)),
    ptds("cuMemcpy", &[DST, HostMemory, Number(13_001)], Ask(13_001)),
    ptsz("cuMemcpyAsync", &[HostMemory, SRC, Number(14_009), Nothing], Ask(14_009)),
    ptds("cuMemcpyPeer", &[DST, Context, SRC, Context, Number(15_013)], Ask(15_013)),
    ptsz("cuMemcpyPeerAsync", &[DST, Context, SRC, Context, Number(16_001), Nothing], Ask(16_001)),
];

/// What every round has besides the copies.
pub(crate) const CALLS: [Call; 65] = [
    LAUNCH_KERNEL,
    ptsz("cuLaunchKernelEx", &[Config, Kernel, Nothing, Nothing], Ask(0)),
    ptsz("cuLaunchCooperativeKernel", &LAUNCH, Ask(0)),
    ptsz("cuGraphLaunch", &[Kernel, Nothing], Ask(0)),
    call("cuMemAlloc_v2", &[Place(MEMORY), Number(1_009)], Take(Device, MEMORY, 1_009)),
    FREE,
    call("cuMemAllocManaged", &[Place(MEMORY), Number(2_003), ONE], Take(Managed, MEMORY, 2_003)),
    FREE,
    call(
        "cuMemAllocPitch_v2",
        &[Place(MEMORY), Place(LEFTOVER), Number(3_001), Number(ROWS), Number(4)],
        TakePitched(MEMORY, ROWS),
    ),
    FREE,
    ptsz(
        "cuMemAllocAsync",
        &[Place(MEMORY), Number(4_001), Nothing],
        Take(StreamOrdered, MEMORY, 4_001),
    ),
    FREE_ASYNC,
    ptsz(
        "cuMemAllocFromPoolAsync",
        &[Place(MEMORY), Number(5_003), Pool, Nothing],
        Take(StreamOrdered, MEMORY, 5_003),
    ),
    FREE_ASYNC,
    // Each kind of free takes what the other kind of call allocated.
    call("cuMemAlloc_v2", &[Place(MEMORY), Number(1_013)], Take(Device, MEMORY, 1_013)),
    FREE_ASYNC,
    ptsz(
        "cuMemAllocAsync",
        &[Place(MEMORY), Number(4_003), Nothing],
        Take(StreamOrdered, MEMORY, 4_003),
    ),
    FREE,
    call(
        "cuMemCreate",
        &[Place(HANDLE), Number(6_007), Properties, Nothing],
        Take(Virtual, HANDLE, 6_007),
    ),
    call(
        "cuMemAddressReserve",
        &[Place(ADDRESS), Number(6_029), Nothing, Nothing, Nothing],
        Ask(0),
    ),
    call("cuMemMap", &[Held(ADDRESS), Number(2_789), Nothing, Held(HANDLE), Nothing], Map(2_789)),
    call(
        "cuMemMap",
        &[HeldPlus(ADDRESS, 2_789), Number(3_209), Number(2_789), Held(HANDLE), Nothing],
        Map(3_209),
    ),
    call("cuMemSetAccess", &[Held(ADDRESS), Number(5_998), Nothing, Nothing], Ask(0)),
    call("cuMemUnmap", &[Held(ADDRESS), Number(5_998)], Unmap(5_998)),
    call("cuMemRelease", &[Held(HANDLE)], Free),
    // What is mapped outlives its handles, as NCCL does it.
    call(
        "cuMemCreate",
        &[Place(HANDLE), Number(6_011), Properties, Nothing],
        Take(Virtual, HANDLE, 6_011),
    ),
    call("cuMemMap", &[Held(ADDRESS), Number(6_011), Nothing, Held(HANDLE), Nothing], Map(6_011)),
    call("cuMemRetainAllocationHandle", &[Place(MADE), Held(ADDRESS)], Retain(MADE)),
    call("cuMemRelease", &[Held(MADE)], Free),
    call("cuMemRelease", &[Held(HANDLE)], Free),
    call("cuMemUnmap", &[Held(ADDRESS), Number(6_011)], Unmap(6_011)),
    call("cuMemAddressFree", &[Held(ADDRESS), Number(6_029)], Ask(0)),
    call("cuMemImportFromShareableHandle", &[Place(HANDLE), Nothing, ONE], Ask(0)),
    call("cuMemRelease", &[Held(HANDLE)], Free),
    OPEN_IPC,
    CLOSE_IPC,
    call("cuMemAllocHost_v2", &[Place(MEMORY), Number(17_011)], Take(Host, MEMORY, 17_011)),
    FREE_HOST,
    call("cuMemHostAlloc", &[Place(MEMORY), Number(18_013), Nothing], Take(Host, MEMORY, 18_013)),
    FREE_HOST,
    call("cuMemHostRegister_v2", &[OwnMemory, Number(19_001), Nothing], TakeOwn(19_001)),
    UNREGISTER,
    call("cuCtxCreate_v2", &[Place(MADE), Nothing, Ordinal], Ask(0)),
    call("cuCtxDestroy_v2", &[Held(MADE)], Ask(0)),
    call("cuCtxCreate_v3", &[Place(MADE), Nothing, Nothing, Nothing, Ordinal], Ask(0)),
    call("cuCtxDestroy_v2", &[Held(MADE)], Ask(0)),
    call("cuCtxCreate_v4", &[Place(MADE), Nothing, Nothing, Ordinal], Ask(0)),
    call("cuCtxDestroy_v2", &[Held(MADE)], Ask(0)),
    call("cuCtxPushCurrent_v2", &[Context], Ask(0)),
    call("cuCtxPopCurrent_v2", &[Place(MADE)], Ask(0)),
    call("cuDevicePrimaryCtxRetain", &[Place(MADE), Ordinal], Ask(0)),
    call("cuDevicePrimaryCtxRelease_v2", &[Ordinal], Ask(0)),
    call("cuDeviceGetUuid", &[Place(MADE), Ordinal], Ask(0)),
    call("cuDeviceGetUuid_v2", &[Place(MADE), Ordinal], Ask(0)),
    call("cuMemPoolCreate", &[Place(MADE), Properties], Ask(0)),
    call("cuMemPoolDestroy", &[Held(MADE)], Ask(0)),
    call("cuStreamCreate", &[Place(MADE), Nothing], Ask(0)),
    ptsz("cuStreamSynchronize", &[Held(MADE)], Ask(0)),
    DESTROY_STREAM,
    call("cuStreamCreateWithPriority", &[Place(MADE), ONE, Nothing], Ask(0)),
    DESTROY_STREAM,
    ptsz("cuStreamSynchronize", &[Nothing], Ask(0)),
    call("cuEventSynchronize", &[Event], Ask(0)),
    SYNCHRONIZE,
    call("cuCtxSetCurrent", &[Context], Ask(0)),
];

const FREE: Call = call("cuMemFree_v2", &[Held(MEMORY)], Free);
const FREE_ASYNC: Call = ptsz("cuMemFreeAsync", &[Held(MEMORY), Nothing], Free);
const FREE_HOST: Call = call("cuMemFreeHost", &[Held(MEMORY)], Free);
const UNREGISTER: Call = call("cuMemHostUnregister", &[OwnMemory], Free);
const CLOSE_IPC: Call = call("cuIpcCloseMemHandle", &[Held(MEMORY)], Ask(0));
const DESTROY_STREAM: Call = call("cuStreamDestroy_v2", &[Held(MADE)], Ask(0));

const OPEN_IPC: Call =
    call("cuIpcOpenMemHandle_v2", &[Place(MEMORY), Argument::IpcHandle, ONE], Ask(0));

/// What `--extra` adds: calls that are too frequent, or too rare, to be counted by default.
pub(crate) const EXTRA: [Call; 27] = [
    ptds("cuMemsetD8_v2", &[DST, ONE, Number(20_011)], Ask(20_011)),
    ptds("cuMemsetD16_v2", &[DST, ONE, Number(10_501)], Ask(2 * 10_501)),
    ptds("cuMemsetD32_v2", &[DST, ONE, Number(5_501)], Ask(4 * 5_501)),
    ptsz("cuMemsetD8Async", &[DST, ONE, Number(23_003), Nothing], Ask(23_003)),
    ptsz("cuMemsetD16Async", &[DST, ONE, Number(12_007), Nothing], Ask(2 * 12_007)),
    ptsz("cuMemsetD32Async", &[DST, ONE, Number(6_257), Nothing], Ask(4 * 6_257)),
    ptds("cuMemcpy2D_v2", &[Plane(101, 11, [HOST, DEVICE])], Ask(101 * 11)),
    ptds("cuMemcpy2DUnaligned_v2", &[Plane(103, 13, [DEVICE, HOST])], Ask(103 * 13)),
    ptsz("cuMemcpy2DAsync_v2", &[Plane(107, 17, [DEVICE, DEVICE]), Nothing], Ask(107 * 17)),
    ptds("cuMemcpy3D_v2", &[Volume(109, 19, 2, [HOST, DEVICE])], Ask(109 * 19 * 2)),
    ptsz("cuMemcpy3DAsync_v2", &[Volume(113, 23, 2, [DEVICE, HOST]), Nothing], Ask(113 * 23 * 2)),
    ptds("cuMemcpy3DPeer", &[Volume(127, 29, 2, [DEVICE, DEVICE])], Ask(127 * 29 * 2)),
    ptsz("cuMemcpy3DPeerAsync", &[Volume(31, 37, 3, [DEVICE, DEVICE]), Nothing], Ask(31 * 37 * 3)),
    ptsz(
        "cuMemcpyBatchAsync",
        &[Sizes, Sizes, Sizes, Number(3), Nothing, Nothing, Nothing, Place(MADE), Nothing],
        Ask(BATCH_BYTES),
    ),
    ptsz(
        "cuMemcpyBatchAsync_v2",
        &[Sizes, Sizes, Sizes, Number(3), Nothing, Nothing, Nothing, Nothing],
        Ask(BATCH_BYTES),
    ),
    ptsz("cuEventRecord", &[Event, Nothing], Ask(0)),
    ptsz("cuEventRecordWithFlags", &[Event, Nothing, Nothing], Ask(0)),
    call("cuEventQuery", &[Event], Ask(0)),
    ptsz("cuStreamQuery", &[Nothing], Ask(0)),
    ptsz("cuLaunchHostFunc", &[Nothing, Argument::Callback, Nothing], Ask(0)),
    call("cuModuleLoadData", &[Place(MADE), Image], Ask(0)),
    call("cuModuleUnload", &[Held(MADE)], Ask(0)),
    call("cuModuleLoadDataEx", &[Place(MADE), Image, Nothing, Nothing, Nothing], Ask(0)),
    call("cuModuleUnload", &[Held(MADE)], Ask(0)),
    call(
        "cuLibraryLoadData",
        &[Place(MADE), Image, Nothing, Nothing, Nothing, Nothing, Nothing, Nothing],
        Ask(0),
    ),
    call("cuLibraryUnload", &[Held(MADE)], Ask(0)),
    SYNCHRONIZE,
];

/// What `--legacy` adds: the first versions of functions, whose sizes have 32 bits.
pub(crate) const LEGACY: [Call; 26] = [
    call("cuMemAlloc", &[Place(MEMORY), Number(24_001)], Take(Device, MEMORY, 24_001)),
    call("cuMemFree", &[Held(MEMORY)], Free),
    call("cuMemAllocHost", &[Place(MEMORY), Number(25_013)], Take(Host, MEMORY, 25_013)),
    FREE_HOST,
    call("cuMemHostRegister", &[OwnMemory, Number(26_003), Nothing], TakeOwn(26_003)),
    UNREGISTER,
    call("cuMemcpyHtoD", &[DST, HostMemory, Number(27_011)], Ask(27_011)),
    call("cuMemcpyDtoH", &[HostMemory, SRC, Number(28_001)], Ask(28_001)),
    call("cuMemcpyDtoD", &[DST, SRC, Number(29_009)], Ask(29_009)),
    call("cuMemcpyHtoDAsync", &[DST, HostMemory, Number(30_011), Nothing], Ask(30_011)),
    call("cuMemcpyDtoHAsync", &[HostMemory, SRC, Number(31_013), Nothing], Ask(31_013)),
    call("cuMemcpyDtoDAsync", &[DST, SRC, Number(32_003), Nothing], Ask(32_003)),
    call("cuMemcpy2D", &[Plane(1, 1, [HOST, DEVICE])], Ask(1)),
    call("cuMemcpy3D", &[Volume(1, 1, 1, [HOST, DEVICE])], Ask(1)),
    call("cuMemsetD8", &[DST, ONE, Number(33_013)], Ask(33_013)),
    call("cuMemsetD16", &[DST, ONE, Number(17_011)], Ask(2 * 17_011)),
    call("cuMemsetD32", &[DST, ONE, Number(8_761)], Ask(4 * 8_761)),
    call("cuCtxCreate", &[Place(MADE), Nothing, Ordinal], Ask(0)),
    call("cuCtxDestroy", &[Held(MADE)], Ask(0)),
    call("cuCtxPushCurrent", &[Context], Ask(0)),
    call("cuCtxPopCurrent", &[Place(MADE)], Ask(0)),
    call("cuDevicePrimaryCtxRetain", &[Place(MADE), Ordinal], Ask(0)),
    call("cuDevicePrimaryCtxRelease", &[Ordinal], Ask(0)),
    call("cuStreamCreate", &[Place(MADE), Nothing], Ask(0)),
    call("cuStreamDestroy", &[Held(MADE)], Ask(0)),
    call("cuMemGetInfo", &[Place(MADE), Place(LEFTOVER)], Ask(0)),
];

/// What `--fail` adds: each way to fail that a correct driver has. A free of nothing succeeds.
pub(crate) const FAILING: [Call; 33] = [
    call("cuMemAlloc_v2", &[Place(MEMORY), Number(TOO_MUCH)], Take(Device, MEMORY, TOO_MUCH)),
    call("cuMemAlloc_v2", &[Place(MEMORY), Nothing], Take(Device, MEMORY, 0)),
    call("cuMemAlloc_v2", &[Nothing, Number(997)], Take(Device, MEMORY, 997)),
    call(
        "cuMemAllocManaged",
        &[Place(MEMORY), Number(TOO_MUCH), ONE],
        Take(Managed, MEMORY, TOO_MUCH),
    ),
    call("cuMemAllocManaged", &[Place(MEMORY), Nothing, ONE], Take(Managed, MEMORY, 0)),
    call(
        "cuMemAllocPitch_v2",
        &[Place(MEMORY), Place(LEFTOVER), Number(TOO_MUCH), Number(ROWS), Number(4)],
        TakePitched(MEMORY, ROWS),
    ),
    call(
        "cuMemAllocPitch_v2",
        &[Place(MEMORY), Nothing, Number(991), Number(ROWS), Number(4)],
        TakePitched(MEMORY, ROWS),
    ),
    ptsz(
        "cuMemAllocAsync",
        &[Place(MEMORY), Number(TOO_MUCH), Nothing],
        Take(StreamOrdered, MEMORY, TOO_MUCH),
    ),
    ptsz(
        "cuMemAllocFromPoolAsync",
        &[Place(MEMORY), Number(983), Unknown, Nothing],
        Take(StreamOrdered, MEMORY, 983),
    ),
    call(
        "cuMemCreate",
        &[Place(HANDLE), Number(TOO_MUCH), Properties, Nothing],
        Take(Virtual, HANDLE, TOO_MUCH),
    ),
    call(
        "cuMemCreate",
        &[Place(HANDLE), Number(977), Nothing, Nothing],
        Take(Virtual, HANDLE, 977),
    ),
    call("cuMemAllocHost_v2", &[Place(MEMORY), Number(TOO_MUCH)], Take(Host, MEMORY, TOO_MUCH)),
    call("cuMemHostAlloc", &[Place(MEMORY), Nothing, Nothing], Take(Host, MEMORY, 0)),
    call("cuMemHostRegister_v2", &[Nothing, Number(971), Nothing], Ask(971)),
    call("cuMemHostUnregister", &[Unknown], Ask(0)),
    call("cuMemFreeHost", &[Unknown], Ask(0)),
    call("cuMemFree_v2", &[Unknown], Ask(0)),
    ptsz("cuMemFreeAsync", &[Unknown, Nothing], Ask(0)),
    call("cuMemRelease", &[Unknown], Ask(0)),
    call("cuMemMap", &[Unknown, Number(967), Nothing, Unknown, Nothing], Ask(967)),
    call("cuMemUnmap", &[Unknown, Number(953)], Ask(953)),
    call("cuMemFree_v2", &[Nothing], Free),
    // The second free of the same memory.
    call("cuMemAlloc_v2", &[Place(MEMORY), Number(947)], Take(Device, MEMORY, 947)),
    FREE,
    call("cuMemFree_v2", &[Held(MEMORY)], Ask(0)),
    // Without a current context, until the last call sets one.
    call("cuCtxSetCurrent", &[Nothing], Ask(0)),
    call("cuMemAlloc_v2", &[Place(MEMORY), Number(941)], Take(Device, MEMORY, 941)),
    LAUNCH_KERNEL,
    ptds("cuMemcpyHtoD_v2", &[DST, HostMemory, Number(937)], Ask(937)),
    ptsz("cuStreamSynchronize", &[Nothing], Ask(0)),
    SYNCHRONIZE,
    call("cuCtxSetCurrent", &[Unknown], Ask(0)),
    call("cuCtxSetCurrent", &[Context], Ask(0)),
];

/// What `--implicit` adds: memory that goes with its context.
pub(crate) const IMPLICIT: [Call; 3] = [
    call("cuCtxCreate_v2", &[Place(MADE), Nothing, Ordinal], Ask(0)),
    call("cuMemAlloc_v2", &[Place(MEMORY), Number(38_011)], Ask(38_011)),
    call("cuCtxDestroy_v2", &[Held(MADE)], Ask(0)),
];

/// What `--exports` adds: memory that others may keep.
pub(crate) const EXPORTS: [Call; 3] = [
    call(
        "cuMemCreate",
        &[Place(HANDLE), Number(37_003), Properties, Nothing],
        Take(Virtual, HANDLE, 37_003),
    ),
    call("cuMemExportToShareableHandle", &[Place(MADE), Held(HANDLE), ONE, Nothing], Ask(0)),
    call("cuMemRelease", &[Held(HANDLE)], Free),
];

/// What `--nested` adds: a wait during which the driver calls back, and what the callback calls.
pub(crate) const NESTING: [Call; 2] = [
    ptsz("cuLaunchHostFunc", &[Nothing, Argument::Callback, Argument::CallbackData], Ask(0)),
    ptsz("cuStreamSynchronize", &[Nothing], Ask(0)),
];

pub(crate) const NESTED: [Call; 5] = [
    call("cuMemAlloc_v2", &[Place(MEMORY), Number(34_019)], Take(Device, MEMORY, 34_019)),
    ptds("cuMemcpyHtoD_v2", &[DST, HostMemory, Number(35_023)], Ask(35_023)),
    LAUNCH_KERNEL,
    call("cuEventSynchronize", &[Event], Ask(0)),
    FREE,
];

/// What `--recursive` adds to that: the function that is under way, once more.
pub(crate) const RECURSIVE: [Call; 1] = [ptsz("cuStreamSynchronize", &[Nothing], Ask(0))];

/// What makes a process ready to call the others, and undoes it.
pub(crate) const PREPARE: [Call; 14] = [
    INIT,
    DEVICE_GET,
    DEFAULT_POOL,
    RETAIN,
    SET_CURRENT,
    LOAD_MODULE,
    GET_FUNCTION,
    CREATE_EVENT,
    RECORD_EVENT,
    PUSH,
    POP,
    DESTROY_CONTEXT,
    RELEASE,
    RESET,
];

pub(crate) const INIT: Call = call("cuInit", &[Nothing], Ask(0));
pub(crate) const DEVICE_GET: Call = call("cuDeviceGet", &[Place(MADE), Ordinal], Ask(0));
pub(crate) const DEFAULT_POOL: Call =
    call("cuDeviceGetDefaultMemPool", &[Place(MADE), Ordinal], Ask(0));
pub(crate) const RETAIN: Call = call("cuDevicePrimaryCtxRetain", &[Place(MADE), Ordinal], Ask(0));
pub(crate) const SET_CURRENT: Call = call("cuCtxSetCurrent", &[Context], Ask(0));
pub(crate) const LOAD_MODULE: Call = call("cuModuleLoadData", &[Place(MADE), Image], Ask(0));
pub(crate) const GET_FUNCTION: Call =
    call("cuModuleGetFunction", &[Place(HANDLE), Held(MADE), Argument::KernelName], Ask(0));
pub(crate) const CREATE_EVENT: Call = call("cuEventCreate", &[Place(MADE), Nothing], Ask(0));
pub(crate) const RECORD_EVENT: Call = ptsz("cuEventRecord", &[Event, Nothing], Ask(0));
pub(crate) const PUSH: Call = call("cuCtxPushCurrent_v2", &[Context], Ask(0));
pub(crate) const POP: Call = call("cuCtxPopCurrent_v2", &[Place(MADE)], Ask(0));
pub(crate) const DESTROY_CONTEXT: Call = call("cuCtxDestroy_v2", &[Context], Ask(0));
pub(crate) const RELEASE: Call = call("cuDevicePrimaryCtxRelease_v2", &[Ordinal], Ask(0));
pub(crate) const RESET: Call = call("cuDevicePrimaryCtxReset_v2", &[Ordinal], Ask(0));

/// Each way to make a context.
pub(crate) const CREATE_CONTEXT: [Call; 3] = [
    call("cuCtxCreate_v2", &[Place(MADE), Nothing, Ordinal], Ask(0)),
    call("cuCtxCreate_v3", &[Place(MADE), Nothing, Nothing, Nothing, Ordinal], Ask(0)),
    call("cuCtxCreate_v4", &[Place(MADE), Nothing, Nothing, Ordinal], Ask(0)),
];

/// Device memory that is held to the end, of a size that is told in place of the second argument.
pub(crate) const HOLD: Call =
    call("cuMemAlloc_v2", &[Place(MEMORY), Argument::Told], Effect::TakeTold(Device, MEMORY));

/// What is made and undone to see whether a patched entry still works.
pub(crate) const CHECK: [Call; 2] =
    [call("cuMemAlloc_v2", &[Place(MEMORY), Number(36_007)], Take(Device, MEMORY, 36_007)), FREE];

/// Every call that this program can make.
pub(crate) fn all() -> impl Iterator<Item = &'static Call> {
    current().chain(&LEGACY)
}

/// All but the functions of the first version.
fn current() -> impl Iterator<Item = &'static Call> {
    static LISTS: [&[Call]; 10] = [
        &CALLS, &COPIES, &EXTRA, &FAILING, &IMPLICIT, &EXPORTS, &NESTING, &NESTED, &RECURSIVE,
        &PREPARE,
    ];
    LISTS.iter().flat_map(|it| it.iter())
}

/// The version of CUDA as of which a program is given this function when it asks the driver for it
/// by its base name.
pub(crate) fn asked_as(symbol: &str) -> i32 {
    match symbol {
        "cuCtxCreate_v2" => 11_030,
        "cuCtxCreate_v4" | "cuMemcpyBatchAsync_v2" => 13_000,
        _ if current().any(|it| it.symbol == symbol) => 12_080,
        // A later version of it is another function.
        _ => 2_000,
    }
}

#[cfg(test)]
mod tests {
    use super::{COPIES, EXTRA, Effect, FAILING, LEGACY, all, asked_as};
    use std::collections::BTreeSet;

    fn size(effect: Effect) -> Option<u64> {
        match effect {
            Effect::Ask(bytes)
            | Effect::Take(_, _, bytes)
            | Effect::TakeOwn(bytes)
            | Effect::Map(bytes)
            | Effect::Unmap(bytes) => Some(bytes),
            _ => None,
        }
    }

    #[test]
    fn sizes_of_copies_and_fills_are_distinct() {
        let sizes = COPIES.iter().chain(&EXTRA).chain(&LEGACY).filter_map(|it| size(it.effect));
        let sizes: Vec<u64> = sizes.filter(|it| *it > 1).collect();
        // Both kinds of batch move the same.
        assert_eq!(sizes.iter().collect::<BTreeSet<_>>().len(), sizes.len() - 1);
    }

    #[test]
    fn plain_sizes_are_primes() {
        for call in COPIES.iter().chain(&super::CALLS).chain(&super::NESTED) {
            let Some(size) = size(call.effect).filter(|it| *it > 0 && *it != 5_998) else {
                continue;
            };
            let smaller = (2..size).take_while(|it| it * it <= size);
            assert!(smaller.into_iter().all(|it| size % it != 0), "{}: {size}", call.symbol);
        }
    }

    #[test]
    fn one_name_has_one_variant_and_fits_the_registers_and_the_stack() {
        for one in all() {
            assert!(one.arguments.len() <= 11, "{}", one.symbol);
            let same = all().filter(|it| it.symbol == one.symbol);
            assert!(same.into_iter().all(|it| it.per_thread == one.per_thread), "{}", one.symbol);
        }
        assert!(FAILING.iter().any(|it| it.symbol == "cuMemFree_v2"));
    }

    #[test]
    fn a_function_of_the_first_version_is_asked_for_as_one() {
        for (symbol, version) in
            [("cuMemAlloc", 2_000), ("cuMemAlloc_v2", 12_080), ("cuMemFreeHost", 12_080)]
        {
            assert_eq!(asked_as(symbol), version, "{symbol}");
        }
    }
}
