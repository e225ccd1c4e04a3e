//! The thread that opens the library and finds out which devices there are.
//!
//! Naming a device can hang on that device, so each is named by a short-lived thread of its own. One
//! that does not come back is not in the list and hides no other; its index is not asked again
//! before it does.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use tokio::sync::mpsc::Sender;

use crate::clock;
use crate::samplers::nvml::answers::{Call, Listing, Refusal};
use crate::samplers::nvml::driver::{Library, MAX_DEVICES, timed};
use crate::samplers::nvml::release::Hold;
use crate::samplers::nvml::workers::{LibraryError, List, Message};

/// What the library's thread owns.
#[derive(Debug)]
pub(crate) struct Lister {
    path: PathBuf,
    /// How long devices are waited for.
    patience: Duration,
    library: Option<Library>,
    /// As long as this thread may open the library.
    hold: Hold,
    /// Indices whose thread has not come back.
    asked: BTreeSet<u32>,
    found: Receiver<Found>,
    finder: SyncSender<Found>,
}

#[derive(Debug)]
struct Found {
    index: u32,
    uuid: Result<String, Refusal>,
}

// === impl Lister ===

impl Lister {
    pub(crate) fn new(path: PathBuf, hold: Hold, patience: Duration) -> Self {
        // Each index has at most one thread, so that none ever waits for room.
        let (finder, found) = sync_channel(MAX_DEVICES);
        Self { path, hold, patience, library: None, asked: BTreeSet::new(), found, finder }
    }

    /// Answers requests until nobody can ask any more, and lets go of the library then.
    pub(crate) fn run(mut self, requests: &Receiver<List>, messages: &Sender<Message>) {
        for List in requests {
            if messages.blocking_send(Message::Library(self.list())).is_err() {
                return;
            }
        }
    }

    /// A library that fails is let go, so that the next list comes from a fresh one.
    fn list(&mut self) -> Result<(Library, Listing), LibraryError> {
        let mut durations = Vec::new();
        let library = match self.library.take() {
            Some(library) => library,
            None => {
                timed(&mut durations, Call::Open, || Library::open(&self.path, self.hold.clone()))?
            }
        };
        let started = clock::boot();
        let count = library.device_count().map_err(LibraryError::List)?;
        for index in (0..count).take(MAX_DEVICES) {
            self.look(&library, index);
        }
        let uuids = self.collect().map_err(LibraryError::List)?;
        let listed = u32::try_from(uuids.len()).unwrap_or(count);
        self.library = Some(library.clone());
        durations.push((Call::List, clock::boot().since(started)));
        Ok((library, Listing { uuids, durations, unlisted: count.saturating_sub(listed) }))
    }

    fn look(&mut self, library: &Library, index: u32) {
        if self.asked.contains(&index) {
            return;
        }
        let (library, finder) = (library.clone(), self.finder.clone());
        let look = move || {
            let found = Found { index, uuid: library.uuid(index) };
            // Nobody listens any more when the agent stops.
            drop(finder.send(found));
        };
        if std::thread::Builder::new().name("nvml-find".to_owned()).spawn(look).is_ok() {
            self.asked.insert(index);
        }
    }

    fn collect(&mut self) -> Result<Vec<String>, Refusal> {
        let mut uuids = Vec::new();
        let until = clock::boot() + u64::try_from(self.patience.as_nanos()).unwrap_or(u64::MAX);
        while !self.asked.is_empty() {
            let left = Duration::from_nanos(until.since(clock::boot()));
            let Ok(found) = self.found.recv_timeout(left) else { break };
            self.asked.remove(&found.index);
            match found.uuid {
                Ok(uuid) => uuids.push(uuid),
                Err(refusal) if refusal.is_about_the_driver() => return Err(refusal),
                Err(_) => {}
            }
        }
        Ok(uuids)
    }
}
