//! The driver as this program uses it: every call is counted, and the truth is told between calls.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard};

use serde::Serialize;

use crate::caller::Caller;
use crate::calls::{Call, Effect, Kind, LAUNCH_KERNEL, LEFTOVER};
use crate::ledger::{Held, Ledger, Piece};
use crate::library::{Entry, Lookup, Words, open};
use crate::tally::{Counted, Outcome, Tallies, succeeded};

/// Functions that queue kernels one by one, and the one that queues a graph.
const LAUNCHES: [&str; 4] =
    ["cuLaunchKernel", "cuLaunchKernelEx", "cuLaunchCooperativeKernel", "cuGraphLaunch"];

/// Launches that are made and counted at once where they shall cost little.
pub(crate) const BATCH: u64 = 64;

#[derive(Debug)]
pub(crate) struct Cuda {
    entries: BTreeMap<&'static str, Entry>,
    tallies: Tallies,
    ledger: Mutex<Ledger>,
    /// Held for reading during a call: whoever has it for writing sees no call under way.
    between_calls: RwLock<()>,
    /// Ordinals that are counted apart; empty = none is.
    places: Vec<i32>,
}

/// What was called, and what is held.
#[derive(Debug, Serialize)]
pub(crate) struct Truth {
    /// By exported name.
    calls: BTreeMap<String, Counted>,
    memory: Held,
    /// Device time that was queued; `None` = only the driver knows how long a kernel runs.
    busy_ns: Option<u64>,
    /// By ordinal, of the calls that had a context of that device.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    devices: BTreeMap<i32, OfDevice>,
}

#[derive(Debug, Serialize)]
struct OfDevice {
    calls: BTreeMap<String, Counted>,
    memory: Held,
}

impl Cuda {
    /// `places`: ordinals of the devices that are counted apart. `shared`: children count here too.
    pub(crate) fn open(
        path: &Path,
        lookup: Lookup,
        places: &[i32],
        shared: bool,
    ) -> anyhow::Result<Self> {
        let entries = open(path, lookup)?;
        Ok(Self {
            tallies: Tallies::new(entries.len(), places.len(), shared)?,
            ledger: Mutex::new(Ledger::new(places.len())),
            between_calls: RwLock::new(()),
            places: places.to_vec(),
            entries,
        })
    }

    /// `None` when the driver has no such function.
    pub(crate) fn entry(&self, symbol: &str) -> Option<&Entry> {
        self.entries.get(symbol)
    }

    /// Where calls on a device count, besides in all.
    pub(crate) fn place_of(&self, ordinal: i32) -> Option<usize> {
        self.places.iter().position(|it| *it == ordinal)
    }

    /// Makes one call and counts it once it has returned. `None` when there is no such function.
    pub(crate) fn make(&self, caller: &Caller<'_>, call: &Call) -> Option<i32> {
        let entry = self.entry(call.symbol)?;
        let _call = self.begin(caller);
        let place = caller.place();
        let (result, words) = caller.with_words(call, |words| {
            let freed = (call.effect == Effect::Free).then(|| self.ledger().take_out(words[0]));
            let result = entry.call(words);
            let freed = freed.map(|it| self.settle(words[0], it, result));
            let (asked_bytes, bytes) = sizes(call.effect, caller, result);
            let outcome = Outcome { calls: 1, result, asked_bytes, bytes, freed };
            self.tallies.add(entry.index, place, outcome);
            (result, *words)
        });
        if let (true, Some((pointer, kind))) = (result == 0, taken(call.effect, caller, &words)) {
            let (_, bytes) = sizes(call.effect, caller, result);
            self.ledger().add(pointer, Piece { kind, bytes, place });
        }
        if result == 0 {
            self.note_holds(caller, call.effect, entry.index, &words);
        }
        Some(result)
    }

    /// What keeps physical memory, and what does so no more.
    fn note_holds(&self, caller: &Caller<'_>, effect: Effect, function: usize, words: &Words) {
        match effect {
            Effect::Retain(slot) => self.ledger().retain(caller.held(slot)),
            Effect::Map(bytes) => self.ledger().map(words[0], bytes, words[3]),
            Effect::Unmap(bytes) => {
                let given_back = self.ledger().unmap(words[0], bytes);
                self.tallies.add_freed_bytes(function, caller.place(), given_back);
            }
            _ => {}
        }
    }

    /// The same for launches only, each after so much work, at next to no cost besides theirs: as many
    /// as are counted at once.
    pub(crate) fn launch_batch(&self, caller: &Caller<'_>, work_ns: u64) -> bool {
        let Some(entry) = self.entry(LAUNCH_KERNEL.symbol) else { return false };
        let _call = self.begin(caller);
        let failed = caller.with_words(&LAUNCH_KERNEL, |words| {
            let fails = |_: &u64| {
                compute(work_ns);
                entry.call(words) != 0
            };
            (0..BATCH).filter(fails).count() as u64
        });
        let outcome =
            |calls, result| Outcome { calls, result, asked_bytes: 0, bytes: 0, freed: None };
        self.tallies.add(entry.index, caller.place(), outcome(BATCH - failed, 0));
        self.tallies.add(entry.index, caller.place(), outcome(failed, 1));
        failed == 0
    }

    /// How often a function was called until now, calls under way aside.
    pub(crate) fn calls(&self, symbol: &str) -> u64 {
        self.entry(symbol).map_or(0, |it| self.tallies.of(it.index, None).calls())
    }

    /// Everything, while no call is under way. A kernel runs for `kernel_us`; 0 = that is not known.
    pub(crate) fn truth(&self, kernel_us: u32) -> Truth {
        let _quiet = self.between_calls.write().expect("nothing panics while it is held");
        let launched: u64 = LAUNCHES
            .iter()
            .filter_map(|it| self.entry(it))
            .map(|it| {
                let counted = self.tallies.of(it.index, None).counted();
                counted.calls - counted.failed
            })
            .sum();
        let memory = self.ledger().held(None);
        let devices = self.places.iter().enumerate().map(|(place, ordinal)| {
            let memory = self.ledger().held(Some(place));
            (*ordinal, OfDevice { calls: self.called(Some(place)), memory })
        });
        Truth {
            calls: self.called(None),
            memory,
            busy_ns: (kernel_us > 0).then_some(launched * u64::from(kernel_us) * 1_000),
            devices: devices.collect(),
        }
    }

    fn called(&self, place: Option<usize>) -> BTreeMap<String, Counted> {
        let tally = |it: &Entry| (it.name.clone(), self.tallies.of(it.index, place).counted());
        self.entries.values().map(tally).filter(|(_, it)| it.calls > 0).collect()
    }

    /// A call inside another one is covered by the other's lock: taking it twice would wait for
    /// whoever waits for the first to be given back.
    fn begin(&self, caller: &Caller<'_>) -> Option<RwLockReadGuard<'_, ()>> {
        let lock = || self.between_calls.read().expect("nothing panics while it is held");
        (!caller.is_nested()).then(lock)
    }

    /// What was given back, now that the result is known.
    fn settle(&self, pointer: u64, piece: Option<Piece>, result: i32) -> (Kind, u64) {
        let Some(piece) = piece else { return (Kind::Imported, 0) };
        if succeeded(result) {
            self.ledger().gone(piece);
        } else {
            self.ledger().put_back(pointer, piece);
        }
        (piece.kind, piece.bytes)
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("nothing panics while it is held")
    }
}

/// Bytes that were asked for, and that are those of the call where it succeeds.
fn sizes(effect: Effect, caller: &Caller<'_>, result: i32) -> (u64, u64) {
    match effect {
        Effect::Ask(bytes)
        | Effect::Take(_, _, bytes)
        | Effect::TakeOwn(bytes)
        | Effect::Map(bytes)
        | Effect::Unmap(bytes) => (bytes, bytes),
        Effect::TakeTold(..) => (caller.told(), caller.told()),
        // How wide a row is says the driver, where it succeeds.
        Effect::TakePitched(_, rows) if result == 0 => {
            let bytes = caller.held(LEFTOVER) * rows;
            (bytes, bytes)
        }
        Effect::TakePitched(..) | Effect::Free | Effect::Retain(_) => (0, 0),
    }
}

/// What a call that succeeded gave.
fn taken(effect: Effect, caller: &Caller<'_>, words: &Words) -> Option<(u64, Kind)> {
    match effect {
        Effect::Take(kind, slot, _) | Effect::TakeTold(kind, slot) => {
            Some((caller.held(slot), kind))
        }
        Effect::TakePitched(slot, _) => Some((caller.held(slot), Kind::Device)),
        Effect::TakeOwn(_) => Some((words[0], Kind::Host)),
        Effect::Ask(_) | Effect::Free | Effect::Retain(_) | Effect::Map(_) | Effect::Unmap(_) => {
            None
        }
    }
}

/// Steps of six cycles that wait for each other. They are in registers: a hit makes the processor forget
/// what it knows of a program's stores, which costs a loop in memory more than it costs real programs.
fn compute(nanoseconds: u64) {
    let mut value = std::hint::black_box(nanoseconds);
    for _ in 0..nanoseconds / 2 {
        value ^= value << 13;
        value ^= value >> 7;
        value ^= value << 17;
    }
    std::hint::black_box(value);
}
