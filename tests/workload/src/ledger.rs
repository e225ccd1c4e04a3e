//! Which memory this process has, and how much it had at most.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::calls::Kind;

/// Memory by the pointer or handle that the driver gave for it.
#[derive(Debug)]
pub(crate) struct Ledger {
    pieces: BTreeMap<u64, Piece>,
    /// Handles and mappings of physical memory, by handle.
    holds: BTreeMap<u64, u64>,
    /// Bytes and handle of what is mapped, by address.
    mappings: BTreeMap<u64, (u64, u64)>,
    held: Held,
    by_place: Vec<Held>,
}

/// One allocation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) kind: Kind,
    pub(crate) bytes: u64,
    pub(crate) place: Option<usize>,
}

/// Sums of what is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Held {
    /// Device, managed and virtual memory.
    live_bytes: u64,
    peak_bytes: u64,
    stream_ordered_bytes: u64,
    host_bytes: u64,
    host_peak_bytes: u64,
}

impl Ledger {
    pub(crate) fn new(places: usize) -> Self {
        Self {
            pieces: BTreeMap::new(),
            holds: BTreeMap::new(),
            mappings: BTreeMap::new(),
            held: Held::default(),
            by_place: vec![Held::default(); places],
        }
    }

    /// Memory that was given.
    pub(crate) fn add(&mut self, pointer: u64, piece: Piece) {
        self.pieces.insert(pointer, piece);
        if piece.kind == Kind::Virtual {
            self.holds.insert(pointer, 1);
        }
        self.held.add(piece);
        if let Some(place) = piece.place {
            self.by_place[place].add(piece);
        }
    }

    /// Memory that is about to be given back. Before the call: after it, another thread may have been
    /// given the same address. Nothing of physical memory that is held elsewhere.
    pub(crate) fn take_out(&mut self, pointer: u64) -> Option<Piece> {
        let piece = *self.pieces.get(&pointer)?;
        if let Some(holds) = self.holds.get_mut(&pointer) {
            *holds -= 1;
            if *holds > 0 {
                return Some(Piece { bytes: 0, ..piece });
            }
            self.holds.remove(&pointer);
        }
        self.pieces.remove(&pointer)
    }

    /// It was not given back after all.
    pub(crate) fn put_back(&mut self, pointer: u64, piece: Piece) {
        if piece.kind == Kind::Virtual {
            *self.holds.entry(pointer).or_default() += 1;
        }
        self.pieces.entry(pointer).or_insert(piece);
    }

    /// Physical memory is held once more.
    pub(crate) fn retain(&mut self, handle: u64) {
        if let Some(holds) = self.holds.get_mut(&handle) {
            *holds += 1;
        }
    }

    pub(crate) fn map(&mut self, address: u64, bytes: u64, handle: u64) {
        self.mappings.insert(address, (bytes, handle));
        self.retain(handle);
    }

    /// Ends the mappings in this range. Returns the bytes that were given back with them.
    pub(crate) fn unmap(&mut self, address: u64, bytes: u64) -> u64 {
        let ended: Vec<(u64, u64)> =
            self.mappings.range(address..address + bytes).map(|(at, it)| (*at, it.1)).collect();
        let mut given_back = 0;
        for (at, handle) in ended {
            self.mappings.remove(&at);
            if let Some(piece) = self.take_out(handle) {
                given_back += piece.bytes;
                self.gone(piece);
            }
        }
        given_back
    }

    /// It was given back.
    pub(crate) fn gone(&mut self, piece: Piece) {
        self.held.remove(piece);
        if let Some(place) = piece.place {
            self.by_place[place].remove(piece);
        }
    }

    pub(crate) fn held(&self, place: Option<usize>) -> Held {
        place.map_or(self.held, |it| self.by_place[it])
    }
}

impl Held {
    fn add(&mut self, piece: Piece) {
        *self.sum(piece.kind) += piece.bytes;
        self.peak_bytes = self.peak_bytes.max(self.live_bytes);
        self.host_peak_bytes = self.host_peak_bytes.max(self.host_bytes);
    }

    fn remove(&mut self, piece: Piece) {
        *self.sum(piece.kind) -= piece.bytes;
    }

    fn sum(&mut self, kind: Kind) -> &mut u64 {
        match kind {
            Kind::Host => &mut self.host_bytes,
            Kind::StreamOrdered => &mut self.stream_ordered_bytes,
            Kind::Device | Kind::Managed | Kind::Virtual | Kind::Imported => &mut self.live_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Held, Ledger, Piece};
    use crate::calls::Kind;

    #[test]
    fn physical_memory_is_held_by_its_handles_and_mappings() {
        let mut ledger = Ledger::new(0);
        ledger.add(7, Piece { kind: Kind::Virtual, bytes: 10, place: None });
        ledger.map(100, 6, 7);
        ledger.map(106, 4, 7);
        ledger.retain(7);
        assert_eq!([ledger.take_out(7), ledger.take_out(7)].map(|it| it.unwrap().bytes), [0, 0]);
        assert_eq!([ledger.unmap(100, 6), ledger.unmap(106, 4)], [0, 10]);
        assert_eq!(ledger.held(None).live_bytes, 0);
    }

    #[test]
    fn the_peak_stays_and_each_place_has_its_own() {
        let mut ledger = Ledger::new(2);
        let piece = |kind, bytes, place| Piece { kind, bytes, place: Some(place) };
        ledger.add(1, piece(Kind::Device, 10, 0));
        ledger.add(2, piece(Kind::Virtual, 5, 1));
        ledger.add(3, piece(Kind::Host, 7, 1));
        let gone = ledger.take_out(1).unwrap();
        ledger.gone(gone);
        assert!(ledger.take_out(1).is_none());
        let both = Held {
            live_bytes: 5,
            peak_bytes: 15,
            stream_ordered_bytes: 0,
            host_bytes: 7,
            host_peak_bytes: 7,
        };
        assert_eq!(ledger.held(None), both);
        let second = Held { peak_bytes: 5, ..both };
        assert_eq!(ledger.held(Some(1)), second);
    }
}
