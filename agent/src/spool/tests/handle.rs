//! Through the handle: what the loop and the uplink see while the disk does what it wants.

use std::path::Path;
use std::time::Duration;

use super::{MIB, WIDE, decoded, tile};
use crate::config;
use crate::spool::{Spool, SpoolError, SpoolHandle, SpoolId, SpoolState, SpoolStatus};

const PATIENCE: Duration = Duration::from_secs(20);

fn config(folder: &Path) -> config::Spool {
    config::Spool { path: folder.to_owned(), max_bytes: MIB }
}

fn open(folder: &Path) -> Spool {
    Spool::open(&config(folder), "boot").unwrap()
}

async fn until(handle: &SpoolHandle, holds: impl FnMut(&SpoolStatus) -> bool) -> SpoolStatus {
    let mut status = handle.status();
    let found = tokio::time::timeout(PATIENCE, status.wait_for(holds)).await;
    found.expect("the status is reached in time").unwrap().clone()
}

/// The sequence that the spool has now.
fn id(handle: &SpoolHandle) -> SpoolId {
    handle.status().borrow().open.as_ref().unwrap().spool_id
}

async fn until_unsent(handle: &SpoolHandle, records: u64) -> SpoolStatus {
    let unsent = |it: &SpoolStatus| it.open.as_ref().is_some_and(|it| it.unsent_records == records);
    until(handle, unsent).await
}

#[tokio::test]
async fn appended_sent_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let spool = open(folder.path());
    let handle = spool.handle();
    assert_eq!(handle.next_batch(1, WIDE).await.unwrap(), None);
    handle.append(vec![tile(0, 0), tile(0, 1)], None);
    until_unsent(&handle, 2).await;
    let batch = handle.next_batch(1, WIDE).await.unwrap().unwrap();
    assert_eq!(decoded(&batch), [tile(0, 0), tile(0, 1)]);
    handle.acked(id(&handle), 2, b"ledger".to_vec()).await.unwrap();
    let status = until_unsent(&handle, 0).await;
    assert_eq!(status.open.unwrap().ledger_id, b"ledger");
    assert!(spool.close(PATIENCE).await);
    let closed = handle.next_batch(1, WIDE).await;
    assert!(matches!(closed, Err(SpoolError::Closed)));
}

#[tokio::test]
async fn a_restart_in_the_same_boot_knows_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let spool = open(folder.path());
    spool.handle().append(vec![tile(0, 0)], None);
    assert!(spool.close(PATIENCE).await);
    let spool = open(folder.path());
    assert_eq!(spool.positions().len(), 1);
    assert!(spool.close(PATIENCE).await);
    let spool = Spool::open(&config(folder.path()), "the next boot").unwrap();
    assert!(spool.positions().is_empty());
}

#[tokio::test]
async fn a_second_agent_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path());
    let error = Spool::open(&config(folder.path()), "boot").unwrap_err();
    assert!(error.to_string().starts_with("another agent uses the spool in "), "{error}");
    assert!(first.close(PATIENCE).await);
    open(folder.path());
}

#[tokio::test]
async fn a_folder_that_cannot_be_used_is_tried_again() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("spool");
    std::fs::write(&folder, "a file is in the way").unwrap();
    let spool = open(&folder);
    let handle = spool.handle();
    handle.append(vec![tile(0, 0)], None);
    let status = until(&handle, |it| it.held_records == 1).await;
    assert!(matches!(status.state, SpoolState::Failing(_)) && status.open.is_none());
    let error = handle.next_batch(1, WIDE).await.unwrap_err();
    assert!(matches!(error, SpoolError::Unavailable(_)), "{error}");

    std::fs::remove_file(&folder).unwrap();
    let status = until_unsent(&handle, 1).await;
    assert_eq!((status.state, status.held_records), (SpoolState::Writing, 0));
    assert!(spool.close(PATIENCE).await);
}

#[tokio::test]
async fn a_full_spool_holds_records_in_memory_until_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let spool = open(folder.path());
    let handle = spool.handle();
    let mut next = 1;
    let mut index = 0;
    let status = loop {
        handle.append((0..200).map(|it| tile(0, index + it)).collect(), None);
        index += 200;
        // Sealed records cannot be merged: they fill the cap.
        if let Ok(Some(batch)) = handle.next_batch(next, WIDE).await {
            next = batch.last_seq() + 1;
        }
        let status = handle.status().borrow().clone();
        if status.held_records > 0 {
            break status;
        }
    };
    assert!(matches!(status.state, SpoolState::Full(_)), "{status:?}");
    assert_eq!(status.lost_records, 0);
    assert!(status.open.unwrap().used_bytes <= MIB);

    let end = drain(&handle, 1).await;
    let status = until(&handle, |it| it.state == SpoolState::Writing).await;
    assert_eq!((status.held_records, status.lost_records), (0, 0));
    drain(&handle, end).await;
    until_unsent(&handle, 0).await;
    assert!(spool.close(PATIENCE).await);
}

/// Sends and acknowledges everything from `next` on; gives the number after it.
async fn drain(handle: &SpoolHandle, mut next: u64) -> u64 {
    while let Ok(Some(batch)) = handle.next_batch(next, WIDE).await {
        next = batch.last_seq() + 1;
        handle.acked(id(handle), batch.last_seq(), b"ledger".to_vec()).await.unwrap();
    }
    next
}

#[tokio::test]
async fn a_damaged_database_is_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let spool = open(folder.path());
    spool.handle().append(vec![tile(0, 0)], None);
    let before = until_unsent(&spool.handle(), 1).await.open.unwrap().spool_id;
    assert!(spool.close(PATIENCE).await);
    let path = folder.path().join("spool.db");
    std::fs::write(&path, "this was a database").unwrap();
    std::fs::write(folder.path().join("spool.db-wal"), "and this its log").unwrap();

    let spool = open(folder.path());
    let handle = spool.handle();
    assert_eq!(
        std::fs::read(folder.path().join("spool.db.corrupt")).unwrap(),
        b"this was a database"
    );
    handle.append(vec![tile(0, 1)], None);
    let status = until_unsent(&handle, 1).await;
    assert_ne!(status.open.unwrap().spool_id, before);
    assert!(spool.close(PATIENCE).await);
}

#[tokio::test]
async fn damage_that_shows_later_begins_a_new_sequence() {
    let folder = tempfile::tempdir().unwrap();
    let spool = open(folder.path());
    spool.handle().append((0..3).map(|index| tile(0, index)).collect(), None);
    assert!(spool.close(PATIENCE).await);
    // Opening moves the log into the database, where the bit is flipped.
    assert!(open(folder.path()).close(PATIENCE).await);
    let path = folder.path().join("spool.db");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(6).position(|it| it == b"unit\x1a\x04").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();

    let spool = open(folder.path());
    let handle = spool.handle();
    let before = until_unsent(&handle, 3).await.open.unwrap().spool_id;
    assert!(handle.next_batch(1, WIDE).await.is_err());
    handle.append(vec![tile(0, 9)], None);
    let status = until_unsent(&handle, 1).await;
    assert_ne!(status.open.unwrap().spool_id, before);
    assert!(folder.path().join("spool.db.corrupt").exists());
    assert!(spool.close(PATIENCE).await);
}

#[tokio::test]
async fn what_is_meant_for_another_sequence_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let spool = open(folder.path());
    let handle = spool.handle();
    handle.append(vec![tile(0, 0), tile(0, 1)], None);
    until_unsent(&handle, 2).await;
    let old = id(&handle);
    handle.next_batch(1, WIDE).await.unwrap();
    handle.renumber(old, 0).await.unwrap();
    let before = handle.status().borrow().clone();
    assert_ne!(before.open.as_ref().unwrap().spool_id, old);
    let replaced = |answer: Result<(), SpoolError>| matches!(answer, Err(SpoolError::Replaced));
    assert!(replaced(handle.acked(old, 2, b"ledger".to_vec()).await));
    assert!(replaced(handle.went_back(old, 1, b"ledger".to_vec()).await.map(drop)));
    assert!(replaced(handle.renumber(old, 2).await));
    assert_eq!(*handle.status().borrow(), before);
    assert!(spool.close(PATIENCE).await);
}
