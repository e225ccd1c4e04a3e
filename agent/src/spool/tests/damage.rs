//! Files that were cut, changed, or are somebody else's.

use std::path::Path;

use super::{MIB, WIDE, open, place, stamped, tile};
use crate::spool::schema::StoreError;
use crate::spool::store::Store;

/// Rows per append, so that a prefix of the appends shows in the number of rows.
const SIZES: [u64; 3] = [1, 2, 4];

/// A database whose three appends are in the log only.
fn three_appends(folder: &Path) {
    let mut store = open(folder);
    let mut index = 0;
    for size in SIZES {
        store.append(&stamped((0..size).map(|it| tile(0, index + it))), None).unwrap();
        index += size;
    }
}

/// Opens a copy with another log; gives the appends that it has.
fn appends_with_log(origin: &Path, log: &[u8]) -> u64 {
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(origin.join("spool.db"), copy.path().join("spool.db")).unwrap();
    std::fs::write(copy.path().join("spool.db-wal"), log).unwrap();
    let mut store = open(copy.path());
    let appends = store.meta.appends;
    let rows: u64 = SIZES[..usize::try_from(appends).unwrap()].iter().sum();
    assert_eq!(store.unsent(), rows, "the rows of {appends} appends");
    let sent = store.next_batch(1, WIDE).unwrap().map_or(0, |it| it.records.len() as u64);
    assert_eq!(sent, rows);
    appends
}

#[test]
fn a_log_cut_anywhere_leaves_whole_appends() {
    const HEADER: usize = 32;
    const FRAME: usize = 24 + 4_096;
    let folder = tempfile::tempdir().unwrap();
    three_appends(folder.path());
    let log = std::fs::read(folder.path().join("spool.db-wal")).unwrap();
    assert_eq!((log.len() - HEADER) % FRAME, 0);
    let near_an_edge = |at: usize| {
        let offset = (at + FRAME - HEADER + 2) % FRAME;
        offset <= 4 || at < HEADER + 2
    };
    let mut last = 0;
    for at in (0..=log.len()).filter(|at| at % 257 == 0 || near_an_edge(*at)) {
        let appends = appends_with_log(folder.path(), &log[..at]);
        assert!(appends >= last, "a longer log has no fewer appends");
        last = appends;
    }
    assert_eq!(last, 3);
}

#[test]
fn a_flipped_bit_in_a_record_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    three_appends(folder.path());
    drop(open(folder.path()));
    let path = folder.path().join("spool.db");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(6).position(|it| it == b"unit\x1a\x04").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = open(folder.path()).next_batch(1, WIDE).unwrap_err();
    assert!(matches!(error, StoreError::Damaged(_)), "{error}");
}

fn check_refused(change: &str, expected: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spool.db");
    rusqlite::Connection::open(&path).unwrap().execute_batch(change).unwrap();
    let before = std::fs::read(&path).unwrap();
    let error = Store::open(&place(folder.path(), MIB)).unwrap_err();
    assert!(matches!(error, StoreError::Refused(_)), "{error}");
    assert!(error.to_string().contains(expected), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), before, "it was not changed");
}

#[test]
fn files_of_others_are_not_touched() {
    check_refused("CREATE TABLE recipes (name TEXT)", "is a database of another program");
    check_refused(
        "PRAGMA application_id = 1735618668; PRAGMA user_version = 2; CREATE TABLE x (y)",
        "was written by a newer agent (schema 2, this one reads 1)",
    );
}
