//! Which driver functions are hooked, by which program, and into which counter they count.
//!
//! A table and nothing else: the signatures behind it are those of `cuda.h`. The per-thread default
//! stream variants (`_ptsz`, `_ptds`) are functions of their own, and programs built for it call
//! nothing else. So are the first versions of functions that have a `_v2`, with sizes of 32 bits.

mod table;

use agent_ebpf::cookie::Cookie;

use crate::config::{ExtraHooks, HookChoice};
pub(crate) use table::HOOKS;

/// A function to hook.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Hook {
    pub(crate) symbol: &'static str,
    pub(crate) kind: Kind,
    pub(crate) group: Group,
    pub(crate) cookie: Cookie,
    /// `None` = always hooked.
    pub(crate) extra: Option<ExtraHooks>,
}

/// Hooks of a library that are attached and detached together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Contexts, streams, and the first call of a process. Never taken off: what was missed once would
    /// be wrong for good.
    Life,
    /// Allocation and release of memory. Never taken off and put on again while processes run: a
    /// process may change the text of these functions, and live bytes would be wrong.
    Memory,
    Launches,
    Copies,
    Waits,
    /// Which context of a thread is the current one. While they are off, the device of a call is not known
    /// where its program uses several.
    Switches,
    /// Events and questions, which only the configuration asks for.
    Extra,
}

impl Group {
    pub(crate) const ALL: [Self; 7] = [
        Self::Life,
        Self::Memory,
        Self::Launches,
        Self::Copies,
        Self::Waits,
        Self::Switches,
        Self::Extra,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Life => "life",
            Self::Memory => "memory",
            Self::Launches => "launches",
            Self::Copies => "copies",
            Self::Waits => "waits",
            Self::Switches => "switches",
            Self::Extra => "extra",
        }
    }
}

/// The program that serves a hook. One link per kind, group and library: the kernel attaches it to
/// many places at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Init,
    Launch,
    Count,
    /// With a size among the arguments.
    Sum,
    /// Entry and return: the result matters.
    Result,
    FreeLater,
    /// Physical memory, and where it is mapped.
    Virtual,
    Wait,
    Context,
    /// A copy that a structure describes.
    Strided,
    Batch,
}

impl Kind {
    pub(crate) const ALL: [Self; 11] = [
        Self::Init,
        Self::Launch,
        Self::Count,
        Self::Sum,
        Self::Result,
        Self::FreeLater,
        Self::Virtual,
        Self::Wait,
        Self::Context,
        Self::Strided,
        Self::Batch,
    ];

    /// The program at the entry.
    pub(crate) const fn entry_program(self) -> &'static str {
        match self {
            Self::Init => "cuda_init",
            Self::Launch => "cuda_launch",
            Self::Count => "cuda_count",
            Self::Sum => "cuda_sum",
            Self::Result => "cuda_enter",
            Self::FreeLater => "cuda_free_later",
            Self::Virtual => "cuda_virtual",
            Self::Wait => "cuda_wait",
            Self::Context => "cuda_context",
            Self::Strided => "cuda_strided",
            Self::Batch => "cuda_batch",
        }
    }

    /// The program at the return, where there is one.
    pub(crate) const fn return_program(self) -> Option<&'static str> {
        match self {
            Self::Result => Some("cuda_return"),
            Self::Virtual => Some("cuda_virtual_done"),
            Self::Wait => Some("cuda_waited"),
            Self::Context => Some("cuda_context_set"),
            Self::Init
            | Self::Launch
            | Self::Count
            | Self::Sum
            | Self::FreeLater
            | Self::Strided
            | Self::Batch => None,
        }
    }
}

/// A library that lacks one of these is not the CUDA driver.
pub(crate) const REQUIRED: [&str; 4] =
    ["cuInit", "cuLaunchKernel", "cuMemAlloc_v2", "cuCtxSynchronize"];

/// Those that are always hooked, and what the configuration asks for.
pub(crate) fn wanted(choice: HookChoice) -> impl Iterator<Item = &'static Hook> {
    HOOKS.iter().filter(move |it| it.extra.is_none_or(|extra| choice.has(extra)))
}

#[cfg(test)]
mod tests {
    use super::{Group, HOOKS, Kind, REQUIRED, wanted};
    use crate::config::{AttachAt, ExtraHooks, HookChoice};
    use std::collections::BTreeSet;

    #[test]
    fn each_symbol_is_hooked_once() {
        let symbols: BTreeSet<_> = HOOKS.iter().map(|it| it.symbol).collect();
        assert_eq!(symbols.len(), HOOKS.len());
        assert!(REQUIRED.iter().all(|it| symbols.contains(it)));
    }

    /// Functions of today's drivers without which counts would not be whole, with their variants.
    const ALWAYS: [(&str, &[&str]); 8] = [
        ("", &["cuInit", "cuCtxSynchronize", "cuEventSynchronize", "cuCtxSetCurrent"]),
        ("", &["cuCtxCreate_v2", "cuCtxCreate_v3", "cuCtxCreate_v4", "cuCtxDestroy_v2"]),
        ("", &["cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2", "cuDevicePrimaryCtxRetain"]),
        ("", &["cuDevicePrimaryCtxRelease_v2", "cuDevicePrimaryCtxReset_v2"]),
        (
            "",
            &[
                "cuMemAlloc_v2",
                "cuMemAllocManaged",
                "cuMemAllocPitch_v2",
                "cuMemFree_v2",
                "cuMemCreate",
                "cuMemRelease",
                "cuMemRetainAllocationHandle",
                "cuMemMap",
                "cuMemUnmap",
                "cuMemAllocHost_v2",
                "cuMemHostAlloc",
                "cuMemFreeHost",
                "cuMemHostRegister_v2",
                "cuMemHostUnregister",
                "cuIpcOpenMemHandle_v2",
                "cuMemImportFromShareableHandle",
            ],
        ),
        (
            "_ptsz",
            &[
                "cuLaunchKernel",
                "cuLaunchKernelEx",
                "cuLaunchCooperativeKernel",
                "cuGraphLaunch",
                "cuMemAllocAsync",
                "cuMemAllocFromPoolAsync",
                "cuMemFreeAsync",
                "cuStreamSynchronize",
            ],
        ),
        ("_ptds", &["cuMemcpy", "cuMemcpyPeer"]),
        ("_ptsz", &["cuMemcpyAsync", "cuMemcpyPeerAsync"]),
    ];

    #[test]
    fn what_makes_counts_whole_is_always_hooked() {
        let always: BTreeSet<_> =
            HOOKS.iter().filter(|it| it.extra.is_none()).map(|it| it.symbol.to_owned()).collect();
        let copies = ["HtoD", "DtoH", "DtoD"];
        let copies = copies.map(|it| [format!("cuMemcpy{it}_v2"), format!("cuMemcpy{it}Async_v2")]);
        let copies = copies.into_iter().flatten().map(|it| {
            let variant = if it.contains("Async") { "_ptsz" } else { "_ptds" };
            (variant, it)
        });
        let others = ALWAYS
            .into_iter()
            .flat_map(|(variant, names)| names.iter().map(move |it| (variant, (*it).to_owned())));
        for (variant, name) in copies.chain(others) {
            assert!(always.contains(&name), "{name}");
            assert!(always.contains(&format!("{name}{variant}")), "{name}{variant}");
        }
    }

    #[test]
    fn what_is_hooked_on_demand_is_not_hooked_otherwise() {
        let with = |extras: &[ExtraHooks]| wanted(HookChoice::new(AttachAt::Cheapest, extras));
        assert!(with(&[]).all(|it| it.extra.is_none() && it.group != Group::Extra));
        assert_eq!(with(&ExtraHooks::ALL).count(), HOOKS.len());
        for extra in ExtraHooks::ALL {
            let more: Vec<_> = with(&[extra]).filter_map(|it| it.extra).collect();
            assert!(!more.is_empty() && more.iter().all(|it| *it == extra));
        }
    }

    #[test]
    fn each_program_has_a_hook() {
        let kinds: BTreeSet<_> = HOOKS.iter().map(|it| it.kind).collect();
        assert_eq!(kinds.len(), Kind::ALL.len());
    }
}
