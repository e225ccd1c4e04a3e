//! Errors that the driver reports by number (XIDs), as they happen.
//!
//! A thread per device waits for them, apart from the one that reads: waiting is what it does, and a
//! device whose registration hangs leaves the others heard. It looks once a second whether it should
//! go on, so that it holds a library no longer than that. What may have been missed is counted; what
//! was before the agent listened for the first time is not its to count.

pub(crate) mod driver;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use crate::model::ids::DeviceId;
use crate::model::readings::{DeviceReading, Health, Source, SourceState, Xid};
use crate::samplers::nvml::driver::Library;

/// Words that wait for the next reading. More than that are lost, and counted.
const WAITING: usize = 256;
/// Error codes of one device. More than that are lost, and counted.
const CODES: usize = 64;

/// What a listener has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// From now on nothing is missed.
    Listening,
    Xid {
        code: u64,
        real_ns: i64,
    },
    /// It does not listen any more, for the time being or for good.
    Ended(Gap),
}

/// Why errors may have been missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Gap {
    /// The device was lost, or needs a reset.
    Lost,
    Failed,
    /// The library was closed.
    Closed,
    /// More came than there was room for.
    Full,
    /// Of too many kinds.
    Codes,
}

/// What was heard of every device since the agent started.
#[derive(Debug)]
pub(crate) struct Events {
    words: Receiver<(DeviceId, Word)>,
    teller: Teller,
    listeners: BTreeMap<DeviceId, Listener>,
    heard: BTreeMap<DeviceId, Heard>,
    gaps: BTreeMap<Gap, u64>,
    waited: usize,
}

/// How listeners tell.
#[derive(Clone, Debug)]
pub(crate) struct Teller {
    words: SyncSender<(DeviceId, Word)>,
    lost: Arc<AtomicU64>,
}

/// A thread; it ends when this is dropped.
#[derive(Debug)]
struct Listener {
    stop: Option<SyncSender<()>>,
    thread: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Heard {
    listens: bool,
    /// Unix time in microseconds at which it was listened for last; `None` = never.
    listened_us: Option<u64>,
    xids: BTreeMap<u64, Xid>,
}

// === impl Gap ===

impl Gap {
    const ALL: [Self; 5] = [Self::Lost, Self::Failed, Self::Closed, Self::Full, Self::Codes];

    /// The value of the `reason` label.
    fn as_str(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Failed => "failed",
            Self::Closed => "closed",
            Self::Full => "full",
            Self::Codes => "codes",
        }
    }
}

// === impl Teller ===

impl Teller {
    /// Never waits: the driver goes on while nobody reads.
    pub(crate) fn tell(&self, id: &DeviceId, word: Word) {
        if let Err(TrySendError::Full(_)) = self.words.try_send((id.clone(), word)) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

// === impl Events ===

impl Default for Events {
    fn default() -> Self {
        let (sender, words) = sync_channel(WAITING);
        Self {
            words,
            teller: Teller { words: sender, lost: Arc::default() },
            listeners: BTreeMap::new(),
            heard: BTreeMap::new(),
            gaps: BTreeMap::new(),
            waited: 0,
        }
    }
}

impl Events {
    /// Starts to listen for each device that nobody listens for. A thread that was told to end and is
    /// still in a call stays the device's only one; one that ended by itself has no more to ask of this
    /// library.
    pub(crate) fn listen<'a>(
        &mut self,
        library: &Library,
        devices: impl Iterator<Item = &'a DeviceId>,
    ) {
        self.listeners.retain(|_, it| it.stop.is_some() || !it.thread.is_finished());
        for id in devices {
            if !self.listeners.contains_key(id) {
                let (stop, stopped) = sync_channel(1);
                let (library, id, teller) = (library.clone(), id.clone(), self.teller.clone());
                let tail = id.0.len().saturating_sub(8);
                let name = format!("xid-{}", id.0.get(tail..).unwrap_or_default());
                let device = id.clone();
                let body = move || driver::listen(&library, &id, &stopped, &teller);
                if let Ok(thread) = std::thread::Builder::new().name(name).spawn(body) {
                    self.listeners.insert(device, Listener { stop: Some(stop), thread });
                }
            }
        }
    }

    /// Lets every thread end; the library is free once their calls have returned.
    pub(crate) fn close(&mut self, now_us: u64) {
        self.hear(now_us);
        for listener in self.listeners.values_mut() {
            listener.stop = None;
        }
        for heard in self.heard.values_mut().filter(|it| it.listens) {
            heard.listens = false;
            *self.gaps.entry(Gap::Closed).or_default() += 1;
        }
    }

    /// Devices whose thread was told to end and has not.
    pub(crate) fn ending(&self) -> impl Iterator<Item = &DeviceId> {
        let ending = self.listeners.iter().filter(|(_, it)| it.stop.is_none());
        ending.filter(|(_, it)| !it.thread.is_finished()).map(|(id, _)| id)
    }

    /// Takes in what was told since the last time. `now_us`: Unix time in microseconds.
    pub(crate) fn hear(&mut self, now_us: u64) {
        self.waited = 0;
        while let Ok((id, word)) = self.words.try_recv() {
            self.waited += 1;
            let heard = self.heard.entry(id).or_default();
            if let Err(gap) = heard.take(word) {
                *self.gaps.entry(gap).or_default() += 1;
            }
        }
        for heard in self.heard.values_mut().filter(|it| it.listens) {
            heard.listened_us = Some(now_us);
        }
        let lost = self.teller.lost.swap(0, Ordering::Relaxed);
        *self.gaps.entry(Gap::Full).or_default() += lost;
    }

    /// Puts into a reading what was heard of the device, and whether it is listened for.
    pub(crate) fn fill(&self, id: &DeviceId, reading: &mut DeviceReading) {
        let Some(heard) = self.heard.get(id) else { return };
        reading.xids = heard.xids.values().copied().collect();
        reading.hears_xids = heard.listens;
        if heard.listened_us.is_some() && reading.health != Health::Released {
            let state = SourceState { success: heard.listens, last_us: heard.listened_us };
            reading.sources.insert(Source::Events, state);
        }
    }

    /// Words that waited for the newest reading.
    pub(crate) fn waited(&self) -> usize {
        self.waited
    }

    pub(crate) fn gaps(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Gap::ALL.into_iter().map(|it| (it.as_str(), self.gaps.get(&it).copied().unwrap_or(0)))
    }
}

// === impl Heard ===

impl Heard {
    /// An error where something may have been missed.
    fn take(&mut self, word: Word) -> Result<(), Gap> {
        match word {
            Word::Listening => self.listens = true,
            Word::Ended(gap) if self.listens => {
                self.listens = false;
                return Err(gap);
            }
            Word::Ended(_) => {}
            Word::Xid { code, real_ns } => {
                if self.xids.len() >= CODES && !self.xids.contains_key(&code) {
                    return Err(Gap::Codes);
                }
                let xid =
                    self.xids.entry(code).or_insert(Xid { code, count: 0, last_real_ns: real_ns });
                xid.count += 1;
                xid.last_real_ns = real_ns;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{CODES, Gap, Heard, Word};

    fn xid(code: u64, real_ns: i64) -> Word {
        Word::Xid { code, real_ns }
    }

    #[test]
    fn errors_are_counted_by_code_with_the_time_of_the_newest() {
        let mut heard = Heard::default();
        for word in [Word::Listening, xid(79, 5), xid(31, 6), xid(79, 9)] {
            assert_eq!(heard.take(word), Ok(()));
        }
        let seen: Vec<_> =
            heard.xids.values().map(|it| (it.code, it.count, it.last_real_ns)).collect();
        assert_eq!(seen, [(31, 1, 6), (79, 2, 9)]);
    }

    #[test]
    fn a_gap_begins_when_listening_ends_and_counts_once() {
        let mut heard = Heard::default();
        // A driver without events: nothing is missed that was ever heard.
        assert_eq!(heard.take(Word::Ended(Gap::Failed)), Ok(()));
        assert_eq!(heard.take(Word::Listening), Ok(()));
        assert_eq!(heard.take(Word::Ended(Gap::Lost)), Err(Gap::Lost));
        assert_eq!(heard.take(Word::Ended(Gap::Lost)), Ok(()));
    }

    #[test]
    fn codes_are_bounded_and_those_beyond_are_counted() {
        let mut heard = Heard::default();
        let codes = u64::try_from(CODES).unwrap();
        for code in 0..codes {
            assert_eq!(heard.take(xid(code, 0)), Ok(()));
        }
        assert_eq!(heard.take(xid(codes, 0)), Err(Gap::Codes));
        assert_eq!(heard.take(xid(0, 1)), Ok(()));
    }
}
