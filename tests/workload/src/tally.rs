//! How often each function was called, and what came of it. Children can count into the same memory.
#![expect(unsafe_code, reason = "maps memory that children share")]

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use serde::Serialize;

use crate::calls::{KINDS, Kind};

/// Of one function at one place. Zeroed memory is a function that was not called.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Tally {
    calls: AtomicU64,
    failed: AtomicU64,
    out_of_memory: AtomicU64,
    bytes: AtomicU64,
    asked_bytes: AtomicU64,
    freed: [[AtomicU64; 2]; KINDS.len()],
}

/// Rows of tallies: of all calls, then of each place.
#[derive(Debug)]
pub(crate) struct Tallies {
    cells: &'static [Tally],
    functions: usize,
}

/// What came of one call, or of several that ended alike.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    pub(crate) calls: u64,
    pub(crate) result: i32,
    pub(crate) asked_bytes: u64,
    /// Where it succeeded.
    pub(crate) bytes: u64,
    pub(crate) freed: Option<(Kind, u64)>,
}

/// What is known of one function.
#[derive(Debug, Serialize)]
pub(crate) struct Counted {
    pub(crate) calls: u64,
    pub(crate) failed: u64,
    /// Part of `failed`.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) out_of_memory: u64,
    /// Of the calls that succeeded.
    pub(crate) bytes: u64,
    /// Of all calls.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) asked_bytes: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) freed_bytes: u64,
    /// By the kind of the memory, which is not always that of the call.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) freed: BTreeMap<Kind, Freed>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Freed {
    calls: u64,
    bytes: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// `CUDA_ERROR_OUT_OF_MEMORY`.
const OUT_OF_MEMORY: i32 = 2;

/// `CUDA_ERROR_NOT_READY`: an answer, and no failure.
const NOT_READY: i32 = 600;

/// Whether the driver did what it was asked for.
pub(crate) fn succeeded(result: i32) -> bool {
    matches!(result, 0 | NOT_READY)
}

impl Tallies {
    /// For so many functions at so many places; `shared` with the children of this process.
    pub(crate) fn new(functions: usize, places: usize, shared: bool) -> anyhow::Result<Self> {
        let count = functions * (places + 1);
        let bytes = NonZeroUsize::new(count * size_of::<Tally>()).context("no function at all")?;
        let flags = if shared { MapFlags::MAP_SHARED } else { MapFlags::MAP_PRIVATE };
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, which is never unmapped.
        let start = unsafe { mmap_anonymous(None, bytes, access, flags) }
            .context("cannot map memory for the counts")?;
        // SAFETY: mapped with this size, aligned to a page, zeroed, and of atomics only.
        let cells = unsafe { std::slice::from_raw_parts(start.as_ptr().cast(), count) };
        Ok(Self { cells, functions })
    }

    pub(crate) fn add(&self, function: usize, place: Option<usize>, outcome: Outcome) {
        self.cells[function].add(outcome);
        if let Some(place) = place {
            self.cells[(place + 1) * self.functions + function].add(outcome);
        }
    }

    /// Bytes of physical memory that were given back by a call that is not a free.
    pub(crate) fn add_freed_bytes(&self, function: usize, place: Option<usize>, bytes: u64) {
        let rows = std::iter::once(0).chain(place.map(|it| it + 1));
        for row in rows {
            let [_, freed_bytes] =
                &self.cells[row * self.functions + function].freed[Kind::Virtual as usize];
            freed_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Of one function at all places, or at one.
    pub(crate) fn of(&self, function: usize, place: Option<usize>) -> &Tally {
        &self.cells[place.map_or(0, |it| it + 1) * self.functions + function]
    }
}

impl Tally {
    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    pub(crate) fn counted(&self) -> Counted {
        let read = |it: &AtomicU64| it.load(Ordering::Relaxed);
        let freed = KINDS.map(|it| {
            let [calls, bytes] = &self.freed[it as usize];
            (it, Freed { calls: read(calls), bytes: read(bytes) })
        });
        let freed: BTreeMap<_, _> =
            freed.into_iter().filter(|(_, it)| it.calls + it.bytes > 0).collect();
        Counted {
            calls: self.calls(),
            failed: read(&self.failed),
            out_of_memory: read(&self.out_of_memory),
            bytes: read(&self.bytes),
            asked_bytes: read(&self.asked_bytes),
            freed_bytes: freed.values().map(|it| it.bytes).sum(),
            freed,
        }
    }

    fn add(&self, outcome: Outcome) {
        let add = |to: &AtomicU64, value: u64| {
            if value > 0 {
                to.fetch_add(value, Ordering::Relaxed);
            }
        };
        add(&self.calls, outcome.calls);
        add(&self.asked_bytes, outcome.asked_bytes);
        if !succeeded(outcome.result) {
            add(&self.failed, outcome.calls);
            let out_of_memory = outcome.result == OUT_OF_MEMORY;
            return add(&self.out_of_memory, if out_of_memory { outcome.calls } else { 0 });
        }
        add(&self.bytes, outcome.bytes);
        if let Some((kind, bytes)) = outcome.freed {
            let [calls, freed_bytes] = &self.freed[kind as usize];
            add(calls, outcome.calls);
            add(freed_bytes, bytes);
        }
    }
}
