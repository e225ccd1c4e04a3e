//! Which driver functions are hooked, by which program, and into which counter they count.
//!
//! A table and nothing else: the signatures behind it are those of `cuda.h`. The per-thread default
//! stream variants (`_ptsz`, `_ptds`) are functions of their own, and programs built for it call
//! nothing else.

use agent_ebpf::{Cookie, Counter, SLOTS};

/// A function to hook.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Hook {
    pub(crate) symbol: &'static str,
    pub(crate) kind: Kind,
    pub(crate) cookie: Cookie,
}

/// The program that serves a hook. One link per kind and library: the kernel attaches it to many
/// places at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Init,
    Launch,
    Copy,
    /// Entry and return: the result matters.
    Result,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Init, Self::Launch, Self::Copy, Self::Result];

    /// The program at the entry.
    pub(crate) const fn entry_program(self) -> &'static str {
        match self {
            Self::Init => "cuda_init",
            Self::Launch => "cuda_launch",
            Self::Copy => "cuda_copy",
            Self::Result => "cuda_enter",
        }
    }

    /// The program at the return, where there is one.
    pub(crate) const fn return_program(self) -> Option<&'static str> {
        match self {
            Self::Init | Self::Launch | Self::Copy => None,
            Self::Result => Some("cuda_return"),
        }
    }
}

/// A library that lacks one of these is not the CUDA driver.
pub(crate) const REQUIRED: [&str; 4] =
    ["cuInit", "cuLaunchKernel", "cuMemAlloc_v2", "cuCtxSynchronize"];

use Counter::{
    Allocations, DeviceToDeviceCalls, DeviceToHostCalls, Frees, GraphLaunches, HostToDeviceCalls,
    Launches, PeerCalls, Synchronizations, UnknownCalls,
};

/// All of them. Functions that a driver does not have are skipped and reported.
pub(crate) static HOOKS: [Hook; 37] = [
    Hook { symbol: "cuInit", kind: Kind::Init, cookie: Cookie(0) },
    launch("cuLaunchKernel", Launches),
    launch("cuLaunchKernel_ptsz", Launches),
    launch("cuLaunchKernelEx", Launches),
    launch("cuLaunchKernelEx_ptsz", Launches),
    launch("cuLaunchCooperativeKernel", Launches),
    launch("cuLaunchCooperativeKernel_ptsz", Launches),
    launch("cuGraphLaunch", GraphLaunches),
    launch("cuGraphLaunch_ptsz", GraphLaunches),
    result("cuMemAlloc_v2", Allocations, 0),
    result("cuMemFree_v2", Frees, 1),
    result("cuMemAllocManaged", Allocations, 6),
    Hook { symbol: "cuMemAllocPitch_v2", kind: Kind::Result, cookie: Cookie::pitched(7) },
    result("cuStreamSynchronize", Synchronizations, 2),
    result("cuStreamSynchronize_ptsz", Synchronizations, 3),
    result("cuEventSynchronize", Synchronizations, 4),
    result("cuCtxSynchronize", Synchronizations, 5),
    copy("cuMemcpyHtoD_v2", HostToDeviceCalls),
    copy("cuMemcpyHtoD_v2_ptds", HostToDeviceCalls),
    copy("cuMemcpyHtoDAsync_v2", HostToDeviceCalls),
    copy("cuMemcpyHtoDAsync_v2_ptsz", HostToDeviceCalls),
    copy("cuMemcpyDtoH_v2", DeviceToHostCalls),
    copy("cuMemcpyDtoH_v2_ptds", DeviceToHostCalls),
    copy("cuMemcpyDtoHAsync_v2", DeviceToHostCalls),
    copy("cuMemcpyDtoHAsync_v2_ptsz", DeviceToHostCalls),
    copy("cuMemcpyDtoD_v2", DeviceToDeviceCalls),
    copy("cuMemcpyDtoD_v2_ptds", DeviceToDeviceCalls),
    copy("cuMemcpyDtoDAsync_v2", DeviceToDeviceCalls),
    copy("cuMemcpyDtoDAsync_v2_ptsz", DeviceToDeviceCalls),
    copy("cuMemcpy", UnknownCalls),
    copy("cuMemcpy_ptds", UnknownCalls),
    copy("cuMemcpyAsync", UnknownCalls),
    copy("cuMemcpyAsync_ptsz", UnknownCalls),
    peer_copy("cuMemcpyPeer"),
    peer_copy("cuMemcpyPeer_ptds"),
    peer_copy("cuMemcpyPeerAsync"),
    peer_copy("cuMemcpyPeerAsync_ptsz"),
];

const fn launch(symbol: &'static str, counter: Counter) -> Hook {
    Hook { symbol, kind: Kind::Launch, cookie: Cookie::count(counter) }
}

const fn result(symbol: &'static str, counter: Counter, slot: u8) -> Hook {
    assert!(slot < SLOTS, "the kernel clears this many slots when a thread ends");
    Hook { symbol, kind: Kind::Result, cookie: Cookie::result(counter, slot) }
}

/// `(destination, source, bytes, ..)`.
const fn copy(symbol: &'static str, counter: Counter) -> Hook {
    Hook { symbol, kind: Kind::Copy, cookie: Cookie::sum(counter, 2) }
}

/// `(destination, its context, source, its context, bytes, ..)`.
const fn peer_copy(symbol: &'static str) -> Hook {
    Hook { symbol, kind: Kind::Copy, cookie: Cookie::sum(PeerCalls, 4) }
}

#[cfg(test)]
mod tests {
    use super::{HOOKS, Kind, REQUIRED};
    use std::collections::BTreeSet;

    #[test]
    fn each_symbol_is_hooked_once_and_each_slot_has_one_function() {
        let symbols: BTreeSet<_> = HOOKS.iter().map(|it| it.symbol).collect();
        assert_eq!(symbols.len(), HOOKS.len());
        assert!(REQUIRED.iter().all(|it| symbols.contains(it)));
        let results: Vec<_> = HOOKS.iter().filter(|it| it.kind == Kind::Result).collect();
        let slots: BTreeSet<_> = results.iter().map(|it| it.cookie.detail()).collect();
        assert_eq!(slots.len(), results.len());
    }
}
