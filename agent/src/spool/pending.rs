//! Records that are measured and not yet on disk.
//!
//! Normally empty a moment after it was filled. While the disk refuses, records wait here and are
//! merged, so that hours of it take little memory; past the bound the oldest are lost and counted.

use std::collections::VecDeque;

use crate::model::usage::{CudaBaseline, Record};
use crate::record::Stamp;
use crate::spool::coalesce::{Depth, coalesce};

/// From here on records that wait are merged: a day of eight devices is about 200 after that.
const MERGE_AT: usize = 1_024;
/// At most this many, and `MERGE_AT` more, wait: a few hundred bytes each.
const MOST: usize = 16_384;

#[derive(Debug, Default)]
pub(super) struct Pending {
    records: VecDeque<(Record, Stamp)>,
    /// Of the newest records: it is written with them or not at all.
    baseline: Option<CudaBaseline>,
    /// Length at which merging is worth the next try.
    merge_at: usize,
    /// Records that did not fit, since the agent started.
    pub(super) lost: u64,
}

/// What one transaction writes.
#[derive(Clone, Debug, Default)]
pub(super) struct Measured {
    pub(super) records: Vec<(Record, Stamp)>,
    pub(super) baseline: Option<CudaBaseline>,
}

impl Measured {
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty() && self.baseline.is_none()
    }
}

impl Pending {
    pub(super) fn push(
        &mut self,
        records: impl IntoIterator<Item = (Record, Stamp)>,
        baseline: Option<CudaBaseline>,
    ) {
        self.records.extend(records);
        self.baseline = baseline.or(self.baseline.take());
        self.bound();
    }

    /// What could not be written goes back to the front, in its order.
    pub(super) fn put_back(&mut self, measured: Measured) {
        self.baseline = self.baseline.take().or(measured.baseline);
        for record in measured.records.into_iter().rev() {
            self.records.push_front(record);
        }
        self.bound();
    }

    pub(super) fn take(&mut self) -> Measured {
        let records = std::mem::take(&mut self.records).into();
        Measured { records, baseline: self.baseline.take() }
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
        let records = std::mem::take(&mut self.records);
        let records = records.into_iter().map(|(record, stamp)| (0, record, stamp));
        self.records =
            coalesce(records, depth).into_iter().map(|it| (it.record, it.stamp)).collect();
    }
}
