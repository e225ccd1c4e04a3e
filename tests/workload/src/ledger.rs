//! Which memory this process has, and how much it had at most.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::calls::Kind;

/// Memory by the pointer or handle that the driver gave for it.
#[derive(Debug)]
pub(crate) struct Ledger {
    pieces: BTreeMap<u64, Piece>,
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
            held: Held::default(),
            by_place: vec![Held::default(); places],
        }
    }

    /// Memory that was given.
    pub(crate) fn add(&mut self, pointer: u64, piece: Piece) {
        self.pieces.insert(pointer, piece);
        self.held.add(piece);
        if let Some(place) = piece.place {
            self.by_place[place].add(piece);
        }
    }

    /// Memory that is about to be given back. Before the call: after it, another thread may have been
    /// given the same address.
    pub(crate) fn take_out(&mut self, pointer: u64) -> Option<Piece> {
        self.pieces.remove(&pointer)
    }

    /// It was not given back after all.
    pub(crate) fn put_back(&mut self, pointer: u64, piece: Piece) {
        self.pieces.insert(pointer, piece);
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
