//! Records that are measured and not yet on disk.
//!
//! Normally empty a moment after it was filled. While the disk refuses, records wait here and are
//! merged, so that hours of it take little memory; past the bound the oldest are lost and counted.

use std::collections::VecDeque;

use crate::model::usage::Record;
use crate::record::Stamp;
use crate::spool::coalesce::{Depth, coalesce};

/// From here on records that wait are merged: a day of eight devices is about 200 after that.
const MERGE_AT: usize = 1_024;
/// At most this many, and `MERGE_AT` more, wait: a few hundred bytes each.
const MOST: usize = 16_384;

#[derive(Debug, Default)]
pub(super) struct Pending {
    records: VecDeque<(Record, Stamp)>,
    /// Length at which merging is worth the next try.
    merge_at: usize,
    /// Records that did not fit, since the agent started.
    pub(super) lost: u64,
}

impl Pending {
    pub(super) fn push(&mut self, records: impl IntoIterator<Item = (Record, Stamp)>) {
        self.records.extend(records);
        self.bound();
    }

    /// What could not be written goes back to the front, in its order.
    pub(super) fn put_back(&mut self, records: Vec<(Record, Stamp)>) {
        for record in records.into_iter().rev() {
            self.records.push_front(record);
        }
        self.bound();
    }

    pub(super) fn take(&mut self) -> Vec<(Record, Stamp)> {
        std::mem::take(&mut self.records).into()
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    fn bound(&mut self) {
        if self.records.len() < self.merge_at.max(MERGE_AT) {
            return;
        }
        self.merge(Depth::SameHolders);
        if self.records.len() >= MERGE_AT {
            self.merge(Depth::AnyHolders);
        }
        let excess = self.records.len().saturating_sub(MOST);
        self.records.drain(..excess);
        self.lost += excess as u64;
        // A merge that gained little is not repeated for every record that comes.
        self.merge_at = (2 * self.records.len()).clamp(MERGE_AT, MOST + MERGE_AT);
    }

    fn merge(&mut self, depth: Depth) {
        let records = self.take().into_iter().map(|(record, stamp)| (0, record, stamp));
        self.records =
            coalesce(records, depth).into_iter().map(|it| (it.record, it.stamp)).collect();
    }
}
