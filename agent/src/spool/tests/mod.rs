//! The spool on real files: what was promised holds after a stop, a refusal and a full disk.

mod damage;
mod handle;
mod merging;

use std::collections::BTreeMap;
use std::path::Path;

use crate::attribution::fixtures;
use crate::model::metering::{Energy, EnergyMethod, SmActivity};
use crate::model::usage::{Class, CudaBaseline, Record, Share, Tile};
use crate::record::{self, Stamp};
use crate::spool::schema::{Place, StoreError};
use crate::spool::store::Store;
use crate::spool::{Batch, BatchLimits};

const SECOND: u64 = 1_000_000_000;
const MIB: u64 = 1024 * 1024;
const WIDE: BatchLimits = BatchLimits { records: 4_096, bytes: MIB };

fn stamp() -> Stamp {
    Stamp { boot_id: "boot".into(), real_ns: 1 }
}

/// Ten seconds of a device, the `index`th.
fn tile(device: u32, index: u64) -> Record {
    let span = 10 * SECOND;
    let held = Share::HeldIdle(fixtures::holder("unit"));
    let shares = BTreeMap::from([(held.clone(), 7), (Share::Free, span - 7)]);
    let classes = BTreeMap::from([(Class::MemoryHeld, span)]);
    let energy = Energy {
        mj: 3,
        method: Some(EnergyMethod::FloorDynamic),
        shares: BTreeMap::from([(held, 2), (Share::Free, 1)]),
        classes: BTreeMap::from([(Class::MemoryHeld, 3)]),
    };
    Record::Tile(Box::new(Tile {
        id: fixtures::id(device),
        energy: Some(energy),
        sm: SmActivity { active_ns: 5, measured_ns: span },
        ..fixtures::tile((index * span, (index + 1) * span), shares, classes)
    }))
}

fn cuda(index: u64) -> Record {
    let span = (index * SECOND, (index + 1) * SECOND);
    let counts = fixtures::launched(2);
    Record::Cuda(Box::new(fixtures::activity(fixtures::holder("unit"), span, counts)))
}

fn stamped(records: impl IntoIterator<Item = Record>) -> Vec<(Record, Stamp)> {
    records.into_iter().map(|it| (it, stamp())).collect()
}

fn place(folder: &Path, max_bytes: u64) -> Place {
    Place { folder: folder.to_owned(), max_bytes }
}

fn open(folder: &Path) -> Store {
    Store::open(&place(folder, 64 * MIB)).unwrap()
}

fn decoded(batch: &Batch) -> Vec<Record> {
    batch.records.iter().map(|it| record::decode(&it.payload).unwrap().0).collect()
}

#[test]
fn a_sealed_record_is_the_same_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    store.append(&stamped([tile(0, 0), tile(1, 0), cuda(0)]), None).unwrap();
    let first = store.next_batch(1, WIDE).unwrap().unwrap();
    assert_eq!((first.first_seq, first.last_seq()), (1, 3));
    assert_eq!(decoded(&first), [tile(0, 0), tile(1, 0), cuda(0)]);
    assert_eq!(blake3::hash(&first.records[2].payload).as_bytes()[..], first.records[2].hash[..]);

    store.append(&stamped([tile(0, 1)]), None).unwrap();
    assert_eq!(store.next_batch(1, WIDE).unwrap().unwrap(), first);
    drop(store);
    let mut store = open(folder.path());
    assert_eq!(store.next_batch(1, WIDE).unwrap().unwrap(), first);
    assert_eq!(decoded(&store.next_batch(4, WIDE).unwrap().unwrap()), [tile(0, 1)]);
    assert_eq!(store.next_batch(5, WIDE).unwrap(), None);
}

#[test]
fn a_stop_between_seal_and_ack_loses_and_doubles_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    store.append(&stamped((0..5).map(|index| tile(0, index))), None).unwrap();
    let narrow = BatchLimits { records: 2, ..WIDE };
    let sent = store.next_batch(1, narrow).unwrap().unwrap();
    let id = store.meta.spool_id;
    drop(store);

    let mut store = open(folder.path());
    assert_eq!(store.meta.spool_id, id);
    assert_eq!((store.meta.sealed_through, store.meta.acked_through, store.unsent()), (2, 0, 5));
    assert_eq!(store.next_batch(1, narrow).unwrap().unwrap(), sent);
    assert_eq!(decoded(&store.next_batch(3, WIDE).unwrap().unwrap())[0], tile(0, 2));
    store.acked(5, b"ledger").unwrap();
    drop(store);
    let store = open(folder.path());
    assert_eq!((store.meta.acked_through, store.unsent()), (5, 0));
    assert_eq!(store.meta.ledger_id, b"ledger");
}

#[test]
fn a_batch_keeps_to_its_limits_and_has_at_least_one_record() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    store.append(&stamped((0..10).map(|index| tile(0, index))), None).unwrap();
    let one = store.next_batch(1, BatchLimits { bytes: 1, ..WIDE }).unwrap().unwrap();
    assert_eq!(one.records.len(), 1);
    let bytes = 3 * Batch::wire_bytes(&one.records[0]) + 20;
    let three = store.next_batch(2, BatchLimits { bytes, ..WIDE }).unwrap().unwrap();
    assert_eq!((three.first_seq, three.records.len()), (2, 3));
}

#[test]
fn acknowledged_records_stay_for_a_refill() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    store.append(&stamped((0..4).map(|index| tile(0, index))), None).unwrap();
    let sent = store.next_batch(1, WIDE).unwrap().unwrap();
    store.acked(4, b"old").unwrap();
    assert_eq!(store.unsent(), 0);
    assert_eq!(store.went_back(0, b"new").unwrap(), 0);
    assert_eq!(store.unsent(), 4);
    assert_eq!(store.next_batch(1, WIDE).unwrap().unwrap(), sent);
}

#[test]
fn a_new_sequence_begins_with_what_comes_after() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    store.append(&stamped((0..4).map(|index| tile(0, index))), None).unwrap();
    store.next_batch(1, BatchLimits { records: 3, ..WIDE }).unwrap().unwrap();
    let before = store.meta.spool_id;
    store.renumber(2).unwrap();
    assert_ne!(store.meta.spool_id, before);
    assert_eq!((store.meta.sealed_through, store.meta.acked_through, store.unsent()), (0, 0, 2));
    let batch = store.next_batch(1, WIDE).unwrap().unwrap();
    assert_eq!(batch.spool_id, store.meta.spool_id);
    assert_eq!(decoded(&batch), [tile(0, 2), tile(0, 3)]);
}

#[test]
fn a_refill_says_what_is_no_longer_there() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(&place(folder.path(), MIB)).unwrap();
    // Half full with what was acknowledged, which then makes room.
    for index in 0..30 {
        store.append(&stamped((0..100).map(|it| tile(0, index * 100 + it))), None).unwrap();
        let next = store.meta.sealed_through + 1;
        let through = store.next_batch(next, WIDE).unwrap().unwrap().last_seq();
        store.acked(through, b"old").unwrap();
    }
    let gone = store.went_back(0, b"new").unwrap();
    assert!(gone > 0 && gone < 3_000, "{gone} records are gone");
    let error = store.next_batch(1, WIDE).unwrap_err();
    assert!(matches!(error, StoreError::Damaged(_)), "what is not acknowledged must be there");
    store.renumber(0).unwrap();
    assert_eq!(store.unsent(), 3_000 - gone);
}

#[test]
fn a_batch_begins_after_what_was_acknowledged_and_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(&place(folder.path(), MIB)).unwrap();
    store.append(&stamped((0..3_000).map(|index| tile(0, index))), None).unwrap();
    while let Some(batch) = store.next_batch(store.meta.sealed_through + 1, WIDE).unwrap() {
        store.acked(batch.last_seq().min(2_999), b"ledger").unwrap();
    }
    let batch = store.next_batch(1, WIDE).unwrap().unwrap();
    assert!(batch.first_seq > 1 && batch.first_seq <= 3_000);
}

#[test]
fn positions_are_those_of_the_boot_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    store.append(&stamped([tile(0, 0), tile(1, 0), tile(0, 1), cuda(0)]), None).unwrap();
    let ends: Vec<u64> = store.positions("boot").unwrap().values().map(|it| it.0).collect();
    assert_eq!(ends, [20 * SECOND, 10 * SECOND]);
    assert!(store.positions("another boot").unwrap().is_empty());
}

#[test]
fn a_full_spool_refuses_and_is_writable_again_after_an_ack() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(&place(folder.path(), MIB)).unwrap();
    let mut next = 1;
    let mut index = 0;
    // Sealed records cannot be merged: they fill the cap.
    let full = loop {
        match store.append(&stamped((0..100).map(|it| tile(0, index + it))), None) {
            Ok(()) => index += 100,
            Err(error) => break error,
        }
        if let Some(batch) = store.next_batch(next, WIDE).unwrap() {
            next = batch.last_seq() + 1;
        }
    };
    assert!(matches!(full, StoreError::Full(_)), "{full}");
    assert!(store.used_bytes().unwrap() <= MIB);
    assert_eq!(store.unsent(), index, "a refused append leaves nothing behind");
    store.acked(next - 1, b"ledger").unwrap();
    store.append(&stamped([tile(0, index)]), None).unwrap();
}

#[test]
fn what_is_accounted_for_is_stored_with_its_records() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    let baseline = |epoch| CudaBaseline { epoch, ..CudaBaseline::default() };
    store.append(&stamped([cuda(0)]), Some(("boot", &baseline(1)))).unwrap();
    store.append(&stamped([tile(0, 0)]), None).unwrap();
    drop(store);
    let mut store = open(folder.path());
    assert_eq!(store.baseline("boot").unwrap(), Some(baseline(1)));
    assert_eq!(store.baseline("another boot").unwrap(), None);
    store.append(&[], Some(("another boot", &baseline(2)))).unwrap();
    assert_eq!(store.baseline("boot").unwrap(), None, "it says nothing any more");
}
