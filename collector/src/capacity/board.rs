//! The table of offers as it is shared: one writer, the fleet's owner; any number of readers.
//!
//! Readers take the lock for one look at a time and wait on the revision, never on the writer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use tokio::sync::watch;

use super::offers::Offers;
use super::policy::Policy;
use crate::config::Idle;
use crate::state::fleet::{Change, nanoseconds};

/// Withdrawals that are remembered. A subscriber that missed more gets a new snapshot.
const WITHDRAWALS: usize = 16_384;

/// Silence is looked for once per second; three times that is late.
const CURRENT: Duration = Duration::from_secs(3);

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Board {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Of this run of the collector; positions of another one mean nothing here.
    generation: String,
    offers: RwLock<Offers>,
    news: watch::Sender<Sign>,
    /// Nodes that were silent at this time are known to be.
    ticked_ns: AtomicU64,
}

/// What a waiting reader is woken for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sign {
    pub revision: u64,
    /// The collector is stopping: nothing is offered any more.
    pub closed: bool,
}

// === impl Board ===

impl Board {
    /// An empty table with a generation of its own.
    #[must_use]
    pub fn new(idle: &Idle) -> Self {
        let policy = Policy { held_dwell_ns: nanoseconds(idle.dwell) };
        Self::of(Offers::new(policy, WITHDRAWALS))
    }

    pub(super) fn of(offers: Offers) -> Self {
        let shared = Shared {
            generation: format!("{:016x}", fastrand::u64(..)),
            offers: RwLock::new(offers),
            news: watch::Sender::default(),
            ticked_ns: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// To be called by the fleet's owner after every event, with what changed and the newest tick.
    pub fn apply(&self, changes: &[Change], ticked_ns: u64) {
        if !changes.is_empty() {
            self.change(changes);
        }
        self.shared.ticked_ns.store(ticked_ns, Ordering::Release);
    }

    /// Ends every stream, so that a stop does not wait for them.
    pub fn close(&self) {
        self.shared.news.send_modify(|it| it.closed = true);
    }

    /// The offers at this moment. Not to be held across a wait.
    pub fn read(&self) -> RwLockReadGuard<'_, Offers> {
        self.shared.offers.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether silence was looked for lately. While it was not (the process was stopped, or starved), an
    /// offer may be of a node that nobody hears, and nothing must be said.
    #[must_use]
    pub fn is_current(&self, now_ns: u64) -> bool {
        let ticked_ns = self.shared.ticked_ns.load(Ordering::Acquire);
        now_ns.saturating_sub(ticked_ns) <= nanoseconds(CURRENT)
    }

    #[must_use]
    pub fn generation(&self) -> &str {
        &self.shared.generation
    }

    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Sign> {
        self.shared.news.subscribe()
    }

    fn change(&self, changes: &[Change]) {
        let mut offers = self.shared.offers.write().unwrap_or_else(PoisonError::into_inner);
        let mut news = false;
        for change in changes {
            news |= offers.apply(change);
        }
        let revision = offers.revision();
        drop(offers);
        if news {
            self.shared.news.send_modify(|it| it.revision = revision);
        }
    }
}
