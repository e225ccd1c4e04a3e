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
    /// Contexts, streams, and the first call of a process.
    Life,
    /// Allocation and release of memory. Never taken off and put on again while processes run: a
    /// process may change the text of these functions, and live bytes would be wrong.
    Memory,
    Launches,
    Copies,
    Waits,
    /// Events and questions, which only the configuration asks for.
    Extra,
}

impl Group {
    pub(crate) const ALL: [Self; 6] =
        [Self::Life, Self::Memory, Self::Launches, Self::Copies, Self::Waits, Self::Extra];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Life => "life",
            Self::Memory => "memory",
            Self::Launches => "launches",
            Self::Copies => "copies",
            Self::Waits => "waits",
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
    Wait,
    Context,
    /// A copy that a structure describes.
    Strided,
    Batch,
}

impl Kind {
    pub(crate) const ALL: [Self; 10] = [
        Self::Init,
        Self::Launch,
        Self::Count,
        Self::Sum,
        Self::Result,
        Self::FreeLater,
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
