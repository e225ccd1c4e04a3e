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
    pub(crate) group: Group,
    pub(crate) cookie: Cookie,
}

/// Hooks of a library that are attached and detached together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Contexts, streams, and the first call of a process.
    Life,
    /// Allocation and release of memory. Never taken off and put on again while processes run: a
    /// process may change the text of these functions, and live bytes would be wrong.
    Memory,
    Launches,
    Copies,
    Waits,
}

impl Group {
    pub(crate) const ALL: [Self; 5] =
        [Self::Life, Self::Memory, Self::Launches, Self::Copies, Self::Waits];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Life => "life",
            Self::Memory => "memory",
            Self::Launches => "launches",
            Self::Copies => "copies",
            Self::Waits => "waits",
        }
    }
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
    CooperativeLaunches, DeviceAllocations, DeviceFrees, DeviceToDeviceCalls, DeviceToHostCalls,
    GraphLaunches, HostToDeviceCalls, KernelLaunches, PeerCalls, Synchronizations, UnknownCalls,
};

/// All of them. Functions that a driver does not have are skipped and reported.
pub(crate) static HOOKS: [Hook; 37] = [
    Hook { symbol: "cuInit", kind: Kind::Init, group: Group::Life, cookie: Cookie(0) },
    launch("cuLaunchKernel", KernelLaunches),
    launch("cuLaunchKernel_ptsz", KernelLaunches),
    launch("cuLaunchKernelEx", KernelLaunches),
    launch("cuLaunchKernelEx_ptsz", KernelLaunches),
    launch("cuLaunchCooperativeKernel", CooperativeLaunches),
    launch("cuLaunchCooperativeKernel_ptsz", CooperativeLaunches),
    launch("cuGraphLaunch", GraphLaunches),
    launch("cuGraphLaunch_ptsz", GraphLaunches),
    memory("cuMemAlloc_v2", DeviceAllocations, 0),
    memory("cuMemFree_v2", DeviceFrees, 1),
    memory("cuMemAllocManaged", DeviceAllocations, 6),
    Hook {
        symbol: "cuMemAllocPitch_v2",
        kind: Kind::Result,
        group: Group::Memory,
        cookie: Cookie::pitched(7),
    },
    wait("cuStreamSynchronize", 2),
    wait("cuStreamSynchronize_ptsz", 3),
    wait("cuEventSynchronize", 4),
    wait("cuCtxSynchronize", 5),
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
    Hook { symbol, kind: Kind::Launch, group: Group::Launches, cookie: Cookie::count(counter) }
}

const fn memory(symbol: &'static str, counter: Counter, slot: u8) -> Hook {
    result(symbol, Group::Memory, counter, slot)
}

const fn wait(symbol: &'static str, slot: u8) -> Hook {
    result(symbol, Group::Waits, Synchronizations, slot)
}

const fn result(symbol: &'static str, group: Group, counter: Counter, slot: u8) -> Hook {
    assert!(slot < SLOTS, "the kernel clears this many slots when a thread ends");
    Hook { symbol, kind: Kind::Result, group, cookie: Cookie::result(counter, slot) }
}

/// `(destination, source, bytes, ..)`.
const fn copy(symbol: &'static str, counter: Counter) -> Hook {
    Hook { symbol, kind: Kind::Copy, group: Group::Copies, cookie: Cookie::sum(counter, 2) }
}

/// `(destination, its context, source, its context, bytes, ..)`.
const fn peer_copy(symbol: &'static str) -> Hook {
    Hook { symbol, kind: Kind::Copy, group: Group::Copies, cookie: Cookie::sum(PeerCalls, 4) }
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
