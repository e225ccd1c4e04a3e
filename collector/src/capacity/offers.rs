//! What is offered now, in the order in which it changed. Pure.
//!
//! One row per instance, one revision per change. A subscriber is a revision: what it has to learn is
//! every row whose revision is higher, in that order, so a row that changed twice is learnt once and no
//! subscriber needs a queue. Withdrawn rows are kept up to a bound; a subscriber from before the oldest
//! that is gone starts again with a snapshot.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use proto::capacity::v1::withdrawn::Reason;
use proto::telemetry::v1::Class;

use super::policy::{Decision, Policy};
use crate::state::fleet::Change;
use crate::state::node::{Node, Observed, holders};

/// Rows that one look into the table may pass over.
const SCAN: usize = 1024;
/// Free memory that differs by this part of the total makes a new version.
const COARSE: u64 = 16;

/// The classes that a subscriber wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter(u16);

/// Idle capacity as it was last read. Ages are taken when it is sent.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The revision at which class, holders, shape or the memory floor last changed.
    pub version: u64,
    /// What it was idle for before it was offered; 0 for free capacity.
    pub dwell_ns: u64,
    pub node: Arc<Node>,
    /// Place in `node.instances()`.
    index: usize,
}

/// What a subscriber learns from one row.
#[derive(Clone, Debug)]
pub enum News {
    Offer(Offer),
    Withdrawn { id: Arc<str>, reason: Reason },
}

/// One look into the table.
#[derive(Clone, Debug)]
pub enum Step {
    /// The next row and its revision.
    News { revision: u64, news: News },
    /// Nothing for this subscriber up to here; look again from here.
    Passed { revision: u64 },
    /// Nothing more: the subscriber holds the `open` offers that there are for it.
    UpToDate { revision: u64, open: u32 },
    /// What changed since is no longer known.
    Forgotten,
}

/// See the module.
#[derive(Debug)]
pub struct Offers {
    policy: Policy,
    withdrawals: usize,
    revision: u64,
    /// Withdrawals up to this revision may be missing.
    forgotten: u64,
    rows: HashMap<Arc<str>, Row>,
    /// Every row by its revision.
    log: BTreeMap<u64, Arc<str>>,
    /// Revisions of withdrawn rows.
    withdrawn: BTreeSet<u64>,
    open: BTreeMap<Class, u32>,
}

#[derive(Debug)]
struct Row {
    revision: u64,
    /// Classes under which this row has been open, for as long as it is remembered.
    seen: Filter,
    state: RowState,
}

#[derive(Debug)]
enum RowState {
    /// With the free memory when the version was given.
    Open(Offer, Option<u64>),
    Withdrawn(Reason),
}

// === impl Filter ===

impl Filter {
    pub const ALL: Self = Self(u16::MAX);

    /// Exactly these; all when there are none.
    #[must_use]
    pub fn of(classes: impl IntoIterator<Item = Class>) -> Self {
        let bits = classes.into_iter().fold(0, |bits, class| bits | Self::bit(class));
        if bits == 0 { Self::ALL } else { Self(bits) }
    }

    #[must_use]
    pub fn wants(self, class: Class) -> bool {
        self.0 & Self::bit(class) != 0
    }

    fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    fn bit(class: Class) -> u16 {
        1 << (class as u32)
    }
}

// === impl Offers ===

impl Offers {
    #[must_use]
    pub fn new(policy: Policy, withdrawals: usize) -> Self {
        Self {
            policy,
            withdrawals,
            revision: 0,
            forgotten: 0,
            rows: HashMap::new(),
            log: BTreeMap::new(),
            withdrawn: BTreeSet::new(),
            open: BTreeMap::new(),
        }
    }

    /// Brings the table up to a node's newest state. True when a subscriber has something to learn.
    pub fn apply(&mut self, change: &Change) -> bool {
        let before = self.revision;
        for id in &change.vanished {
            self.withdraw(id, Reason::Gone);
        }
        for (index, observed) in change.node.instances().enumerate() {
            match self.policy.decide(&observed) {
                Decision::Offer { dwell_ns } => {
                    let node = Arc::clone(&change.node);
                    self.offer(Offer { version: self.revision + 1, dwell_ns, node, index });
                }
                Decision::Withhold(withheld) => self.withdraw(observed.id(), withheld.reason()),
            }
        }
        self.revision != before
    }

    #[must_use]
    pub fn policy(&self) -> Policy {
        self.policy
    }

    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Open offers by class; a class without any is left out.
    #[must_use]
    pub fn open_by_class(&self) -> &BTreeMap<Class, u32> {
        &self.open
    }

    /// Every open offer, in any order.
    #[must_use]
    pub fn open(&self) -> Vec<Offer> {
        self.rows.values().filter_map(Row::offer).cloned().collect()
    }

    /// What comes after `revision` for a subscriber that began with a snapshot at `from`: withdrawals up
    /// to there are not for it.
    #[must_use]
    pub fn after(&self, revision: u64, from: u64, filter: Filter) -> Step {
        if revision > self.revision || revision.max(from) < self.forgotten {
            return Step::Forgotten;
        }
        let mut passed = revision;
        for (at, id) in self.log.range(revision + 1..).take(SCAN) {
            if let Some(news) = self.rows.get(id).and_then(|row| row.news(id, filter, *at <= from))
            {
                return Step::News { revision: *at, news };
            }
            passed = *at;
        }
        if self.log.range(passed + 1..).next().is_some() {
            return Step::Passed { revision: passed };
        }
        let open = self.open.iter().filter(|(class, _)| filter.wants(**class)).map(|(_, it)| it);
        Step::UpToDate { revision: self.revision, open: open.sum() }
    }

    fn offer(&mut self, mut offer: Offer) {
        let observed = offer.observed();
        let (id, class) = (Arc::clone(observed.id()), observed.class());
        let free_bytes = observed.instance.memory_free_bytes;
        if let Some(Row { state: RowState::Open(old, floor_bytes), .. }) = self.rows.get_mut(&id)
            && !differs(&old.observed(), *floor_bytes, &observed)
        {
            offer.version = old.version;
            *old = offer;
            return;
        }
        self.put(&id, RowState::Open(offer, free_bytes));
        *self.open.entry(class).or_insert(0) += 1;
    }

    fn withdraw(&mut self, id: &Arc<str>, reason: Reason) {
        if self.rows.get(id).is_some_and(|it| it.offer().is_some()) {
            self.put(id, RowState::Withdrawn(reason));
            self.withdrawn.insert(self.revision);
            self.compact();
        }
    }

    /// Gives the row its new state and the next revision.
    fn put(&mut self, id: &Arc<str>, state: RowState) {
        self.revision += 1;
        let mut row = Row { revision: self.revision, seen: Filter(0), state };
        if let Some(old) = self.rows.remove(id) {
            self.log.remove(&old.revision);
            self.withdrawn.remove(&old.revision);
            row.seen = old.seen;
            if let Some(count) =
                old.offer().and_then(|it| self.open.get_mut(&it.observed().class()))
            {
                *count -= 1;
            }
            self.open.retain(|_, count| *count > 0);
        }
        if let Some(offer) = row.offer() {
            row.seen.0 |= Filter::bit(offer.observed().class());
        }
        self.log.insert(self.revision, Arc::clone(id));
        self.rows.insert(Arc::clone(id), row);
    }

    fn compact(&mut self) {
        while self.withdrawn.len() > self.withdrawals {
            let Some(oldest) = self.withdrawn.pop_first() else { return };
            self.forgotten = oldest;
            if let Some(id) = self.log.remove(&oldest) {
                self.rows.remove(&id);
            }
        }
    }
}

// === impl Row ===

impl Row {
    fn offer(&self) -> Option<&Offer> {
        match &self.state {
            RowState::Open(offer, _) => Some(offer),
            RowState::Withdrawn(_) => None,
        }
    }

    /// `fresh` = the subscriber holds nothing from before this row's revision.
    fn news(&self, id: &Arc<str>, filter: Filter, fresh: bool) -> Option<News> {
        let may_be_held = !fresh && self.seen.meets(filter);
        let withdrawn = |reason| News::Withdrawn { id: Arc::clone(id), reason };
        match &self.state {
            RowState::Open(offer, _) if filter.wants(offer.observed().class()) => {
                Some(News::Offer(offer.clone()))
            }
            RowState::Open(..) => may_be_held.then(|| withdrawn(Reason::ClassChanged)),
            RowState::Withdrawn(reason) => may_be_held.then(|| withdrawn(*reason)),
        }
    }
}

// === impl Offer ===

impl Offer {
    #[must_use]
    pub fn observed(&self) -> Observed<'_> {
        self.node.instances().nth(self.index).expect("an offer names an instance of its node")
    }
}

/// Whether a scheduler that counts on `old` has to be told anew.
fn differs(old: &Observed<'_>, floor_bytes: Option<u64>, new: &Observed<'_>) -> bool {
    old.class() != new.class()
        || holders(old.instance) != holders(new.instance)
        || shape(old) != shape(new)
        || memory_differs(floor_bytes, new)
}

/// What the instance is.
fn shape<'a>(it: &Observed<'a>) -> (Option<&'a str>, Option<u32>, Option<u32>, Option<u64>) {
    let device = it.device;
    (device.model.as_deref(), device.index, device.numa_node, it.instance.memory_total_bytes)
}

/// Coarsely, and against what the version said: a slow drift adds up to a change, a wobble does not.
fn memory_differs(floor_bytes: Option<u64>, new: &Observed<'_>) -> bool {
    match (floor_bytes, new.instance.memory_free_bytes) {
        (Some(floor), Some(free)) => {
            let total = new.instance.memory_total_bytes.unwrap_or(floor.max(free));
            floor.abs_diff(free) > total / COARSE
        }
        (floor, free) => floor != free,
    }
}
