//! Slices joined into tiles: adding never changes a sum.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::model::ids::{Holder, InstanceId};
use crate::model::units::BootNs;
use crate::model::usage::{MemoryIntegral, Share, Tile};

/// The longest tile. The collector cuts tiles at hours and refuses longer ones.
pub const LONGEST_NS: u64 = 3_600_000_000_000;

/// A tile is not closed for a change of holders before it is this long, so that tenants who come
/// and go many times in a second do not write as many records.
const SHORTEST_NS: u64 = 1_000_000_000;

/// The tile of each instance that still grows.
#[derive(Clone, Debug, Default)]
pub struct OpenTiles {
    open: BTreeMap<InstanceId, Tile>,
    /// Closed already, in the order of closing; handed out by the next `close`.
    closed: Vec<Tile>,
}

// === impl OpenTiles ===

impl OpenTiles {
    /// Takes in a slice or an unobserved span of any length.
    pub fn add(&mut self, tile: Tile) {
        for piece in pieces(tile) {
            self.add_piece(piece);
        }
    }

    /// Tiles that are `length` long at `at`, or that ended because their holders changed.
    pub fn close(&mut self, at: BootNs, length: Duration) -> Vec<Tile> {
        let length = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
        let due: Vec<InstanceId> = self
            .open
            .iter()
            .filter(|(_, it)| at.since(it.start) >= length)
            .map(|(id, _)| id.clone())
            .collect();
        let due: Vec<Tile> = due.iter().filter_map(|id| self.open.remove(id)).collect();
        due.into_iter().for_each(|it| self.finish(it));
        std::mem::take(&mut self.closed)
    }

    pub fn close_all(&mut self) -> Vec<Tile> {
        for tile in std::mem::take(&mut self.open).into_values() {
            self.finish(tile);
        }
        std::mem::take(&mut self.closed)
    }

    fn add_piece(&mut self, piece: Tile) {
        if let Some(open) = self.open.get_mut(&piece.id)
            && joins(open, &piece)
            && open.merge(&piece)
        {
            return;
        }
        if let Some(ended) = self.open.insert(piece.id.clone(), piece) {
            self.finish(ended);
        }
    }

    fn finish(&mut self, mut tile: Tile) {
        tile.shares.retain(|_, nanoseconds| *nanoseconds > 0);
        if tile.span() > 0 {
            self.closed.push(tile);
        }
    }
}

fn joins(open: &Tile, next: &Tile) -> bool {
    let fits = next.end.since(open.start) <= LONGEST_NS;
    fits && alike(open, next) && (open.span() < SHORTEST_NS || holders(open) == holders(next))
}

/// Whether the sum loses nothing that only one of them knows: an unknown part makes the whole
/// unknown, and so does one that was found in another way.
pub(crate) fn alike(a: &Tile, b: &Tile) -> bool {
    let method = |it: &Tile| it.energy.as_ref().map(|it| it.method);
    method(a) == method(b)
        && a.memory.is_some() == b.memory.is_some()
        && a.seen.is_some() == b.seen.is_some()
        && a.slices == b.slices
}

pub(crate) fn holders(tile: &Tile) -> BTreeSet<&Holder> {
    tile.shares.keys().filter_map(Share::holder).collect()
}

/// Only unobserved spans are longer than a tile may be, and they have one share, one class and no
/// figures.
fn pieces(tile: Tile) -> Vec<Tile> {
    let whole = tile.span() <= LONGEST_NS || tile.shares.len() != 1 || tile.classes.len() != 1;
    if whole {
        return vec![tile];
    }
    let mut pieces = Vec::new();
    let mut start = tile.start;
    while start < tile.end {
        let end = tile.end.min(start + LONGEST_NS);
        let mut piece = Tile { start, end, energy: None, memory: None, ..tile.clone() };
        piece.shares.values_mut().for_each(|it| *it = end.since(start));
        piece.classes.values_mut().for_each(|it| *it = end.since(start));
        pieces.push(piece);
        start = end;
    }
    pieces
}

// === impl Tile ===

impl Tile {
    /// Takes in the tile that follows this one. `false`, and nothing is changed, where it does not
    /// follow: another instance, a gap, an overlap, another size.
    #[must_use]
    pub fn merge(&mut self, next: &Self) -> bool {
        if self.id != next.id || self.end != next.start || self.slices != next.slices {
            return false;
        }
        self.end = next.end;
        for (share, nanoseconds) in &next.shares {
            *self.shares.entry(share.clone()).or_default() += nanoseconds;
        }
        for (class, nanoseconds) in &next.classes {
            *self.classes.entry(*class).or_default() += nanoseconds;
        }
        self.energy = self.energy.take().zip(next.energy.as_ref()).and_then(|(a, b)| a.plus(b));
        self.memory = self.memory.zip(next.memory).map(|(a, b)| a.plus(b));
        self.sm = self.sm.plus(next.sm);
        self.seen = self.seen.zip(next.seen).map(|(a, b)| a.plus(b));
        true
    }
}

impl MemoryIntegral {
    fn plus(self, next: Self) -> Self {
        Self {
            byte_ns: self.byte_ns.saturating_add(next.byte_ns),
            peak_bytes: self.peak_bytes.max(next.peak_bytes),
        }
    }
}

impl Share {
    /// Whose it is; `None` = nobody's.
    #[must_use]
    pub fn holder(&self) -> Option<&Holder> {
        match self {
            Self::Active(holder, _) | Self::HeldIdle(holder) | Self::HeldUnknown(holder) => {
                Some(holder)
            }
            Self::Free | Self::Unconfigured | Self::Unattributed(_) | Self::Unobserved(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::{OpenTiles, SHORTEST_NS};
    use crate::attribution::fixtures;
    use crate::model::metering::{Energy, EnergyMethod, Slices, SmActivity};
    use crate::model::units::BootNs;
    use crate::model::usage::{Class, Share, Tile};

    /// Held, idle, from `start` to `end` seconds.
    fn held(start: u64, end: u64, by: &str) -> Tile {
        let span = (end - start) * SHORTEST_NS;
        let shares = BTreeMap::from([(Share::HeldIdle(fixtures::holder(by)), span)]);
        let classes = BTreeMap::from([(Class::MemoryHeld, span)]);
        Tile {
            energy: Some(Energy {
                mj: span,
                method: Some(EnergyMethod::Time),
                shares: shares.clone(),
                classes: classes.clone(),
            }),
            sm: SmActivity { active_ns: span / 2, measured_ns: span },
            ..fixtures::tile((start * SHORTEST_NS, end * SHORTEST_NS), shares, classes)
        }
    }

    fn cut_by(method: EnergyMethod, tile: Tile) -> Tile {
        let energy = tile.energy.map(|it| Energy { method: Some(method), ..it });
        Tile { energy, ..tile }
    }

    #[test]
    fn only_what_follows_is_taken_in() {
        let refuses = |next: &Tile| {
            let mut tile = held(0, 5, "a");
            assert!(!tile.merge(next));
            assert_eq!(tile, held(0, 5, "a"));
        };
        refuses(&held(6, 7, "a"));
        refuses(&held(4, 7, "a"));
        refuses(&Tile { id: fixtures::id(1), ..held(5, 7, "a") });
        let slices = Some(Slices { instance: 1, device: 7 });
        refuses(&Tile { slices, ..held(5, 7, "a") });
        let mut tile = held(0, 5, "a");
        assert!(tile.merge(&held(5, 7, "a")));
        assert_eq!(tile, held(0, 7, "a"));
    }

    /// Spans in seconds after the tiles went in one by one.
    fn check(tiles: &[Tile], expected: &[u64]) {
        let mut open = OpenTiles::default();
        tiles.iter().for_each(|it| open.add(it.clone()));
        let spans: Vec<u64> = open.close_all().iter().map(|it| it.span() / SHORTEST_NS).collect();
        assert_eq!(spans, expected);
    }

    #[test]
    fn a_tile_ends_where_its_sum_would_say_less() {
        check(&[held(0, 2, "a"), held(2, 4, "a")], &[4]);
        check(&[held(0, 2, "a"), held(2, 4, "b")], &[2, 2]);
        check(&[held(0, 2, "a"), held(3, 4, "a")], &[2, 1]);
        check(&[held(0, 2, "a"), Tile { energy: None, ..held(2, 4, "a") }], &[2, 2]);
        check(&[held(0, 2, "a"), Tile { seen: None, ..held(2, 4, "a") }], &[2, 2]);
        check(&[held(0, 2, "a"), Tile { sm: SmActivity::default(), ..held(2, 4, "a") }], &[4]);
        check(&[held(0, 2, "a"), cut_by(EnergyMethod::FloorDynamic, held(2, 4, "a"))], &[2, 2]);
        check(&[held(0, 3_000, "a"), held(3_000, 4_000, "a")], &[3_000, 1_000]);
    }

    #[test]
    fn a_tile_is_due_by_its_length() {
        let mut open = OpenTiles::default();
        open.add(held(0, 9, "a"));
        let close = |open: &mut OpenTiles, at: u64| {
            open.close(BootNs(at * SHORTEST_NS), Duration::from_secs(10)).len()
        };
        assert_eq!(close(&mut open, 9), 0);
        open.add(held(9, 10, "a"));
        assert_eq!(close(&mut open, 10), 1);
        assert_eq!(close(&mut open, 99), 0);
    }
}
