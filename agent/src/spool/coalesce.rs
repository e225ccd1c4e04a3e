//! Fewer records that say the same: what was not sent yet may be merged, and no sum changes.
//!
//! Tiles of one instance that follow each other become one tile; CUDA activities of one holder become
//! one activity. Pure; used on the database when its cap is near and on records that wait in memory.

use std::collections::BTreeMap;

use crate::accounting::tiles::{LONGEST_NS, alike, holders};
use crate::model::ids::{DeviceId, Holder, InstanceId};
use crate::model::usage::{CudaActivity, Record, Tile};
use crate::record::Stamp;

/// Holders that one tile may name; a merge that would name more is not made.
const MOST_HOLDERS: usize = 64;

/// What may be merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// Tiles with the same holders: only the times of the cuts are lost.
    SameHolders,
    /// Any tiles that follow each other: who held the instance when within the hour is lost too.
    AnyHolders,
}

/// A record, and which of the records given made it up.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Merged {
    /// Of the first record, whose place it takes.
    pub(super) id: i64,
    pub(super) record: Record,
    /// Of the last record, where it ends.
    pub(super) stamp: Stamp,
    /// The others; empty where nothing was merged.
    pub(super) absorbed: Vec<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Tile(InstanceId),
    Cuda(Holder, Option<DeviceId>),
}

/// Merges what may be merged. The order of what remains is that of the first parts, so tiles of an
/// instance stay in the order of time.
#[must_use]
pub(super) fn coalesce(
    records: impl IntoIterator<Item = (i64, Record, Stamp)>,
    depth: Depth,
) -> Vec<Merged> {
    let mut merged: Vec<Merged> = Vec::new();
    let mut newest: BTreeMap<Key, usize> = BTreeMap::new();
    for (id, record, stamp) in records {
        let key = Key::of(&record);
        if let Some(index) = newest.get(&key)
            && merged[*index].absorb(&record, &stamp, depth)
        {
            merged[*index].absorbed.push(id);
            continue;
        }
        newest.insert(key, merged.len());
        merged.push(Merged { id, record, stamp, absorbed: Vec::new() });
    }
    merged
}

// === impl Merged ===

impl Merged {
    fn absorb(&mut self, next: &Record, stamp: &Stamp, depth: Depth) -> bool {
        let absorbed = self.stamp.boot_id == stamp.boot_id
            && match (&mut self.record, next) {
                (Record::Tile(tile), Record::Tile(next)) => {
                    may_join(tile, next, depth) && tile.merge(next)
                }
                (Record::Cuda(activity), Record::Cuda(next)) => add(activity, next),
                _ => false,
            };
        if absorbed {
            self.stamp = stamp.clone();
        }
        absorbed
    }
}

fn may_join(tile: &Tile, next: &Tile, depth: Depth) -> bool {
    let fits = next.end.since(tile.start) <= LONGEST_NS && alike(tile, next);
    let (now, then) = (holders(tile), holders(next));
    fits && match depth {
        Depth::SameHolders => now == then,
        Depth::AnyHolders => now.union(&then).count() <= MOST_HOLDERS,
    }
}

/// Activities cover no exclusive time: those of a holder add up over a gap too. In a gap it made no
/// call; that this was watched is said by the ends of the gap, when both were.
fn add(activity: &mut CudaActivity, next: &CudaActivity) -> bool {
    let fits = next.start >= activity.start && next.end.since(activity.start) <= LONGEST_NS;
    if fits {
        let exact = activity.sampled_ns() == 0 && next.sampled_ns() == 0;
        let gap = if exact { next.start.since(activity.end) } else { 0 };
        activity.watched_ns =
            activity.watched_ns.saturating_add(gap).saturating_add(next.watched_ns);
        activity.memory_known &= next.memory_known;
        activity.end = activity.end.max(next.end);
        activity.watched_ns = activity.watched_ns.min(activity.span());
        activity.counts = activity.counts.plus(&next.counts);
    }
    fits
}

// === impl Key ===

impl Key {
    fn of(record: &Record) -> Self {
        match record {
            Record::Tile(tile) => Self::Tile(tile.id.clone()),
            Record::Cuda(activity) => Self::Cuda(activity.holder.clone(), activity.device.clone()),
        }
    }
}
