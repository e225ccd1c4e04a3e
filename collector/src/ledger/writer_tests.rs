//! The writer's thread: group commit, a full volume, damage, and what stands in the way of a start.

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;
use tempfile::tempdir;

use crate::config::{self, RawConfig};
use crate::ledger::fixtures::{SECOND, active, batch_of, hello_of, tile_of};
use crate::ledger::schema::OpenError;
use crate::ledger::usage::Query;
use crate::ledger::{Applied, Condition, LedgerHandle, Refused, WriterThread, open, start};
use crate::metrics::Metrics;
use crate::model::record::Record;

fn config(path: &Path) -> config::Ledger {
    let mut raw = RawConfig::default();
    raw.ledger.path = path.to_owned();
    raw.ledger.min_free_bytes = 0;
    raw.parse().expect("the test's configuration is valid").ledger
}

fn second(index: u64) -> Record {
    tile_of("a", "g", index * SECOND, &[(active("ml"), SECOND)])
}

async fn wall_ns(ledger: &LedgerHandle) -> u128 {
    ledger.usage(Query::default()).await.unwrap().wall.ns
}

async fn stop((ledger, writer): (LedgerHandle, WriterThread)) {
    ledger.stop().await;
    writer.ended().await.unwrap();
    assert_eq!(ledger.hello(hello_of("a")).await, Err(Refused::Stopped));
}

#[tokio::test]
async fn what_is_acknowledged_is_there_after_a_restart() {
    let folder = tempdir().unwrap();
    let metrics = Metrics::default().ledger;
    let (ledger, writer) = start(&config(folder.path()), metrics.clone()).unwrap();
    let (id, totals) = (ledger.id(), ledger.totals());
    ledger.hello(hello_of("a")).await.unwrap();
    let applied = ledger.apply(batch_of("a", 1, &[second(0), second(1)])).await;
    assert_eq!(applied, Ok(Applied::Through(2)));
    assert_eq!((metrics.applied.get(), metrics.commits.get()), (2, 2));
    let shown = totals.read().unwrap().clone();
    stop((ledger, writer)).await;

    let (ledger, writer) = start(&config(folder.path()), Metrics::default().ledger).unwrap();
    assert_eq!(ledger.id(), id);
    assert_eq!(*ledger.totals().read().unwrap(), shown);
    let welcome = ledger.hello(hello_of("a")).await.unwrap();
    assert_eq!((welcome.epoch, welcome.cursor), (2, 2));
    assert_eq!(wall_ns(&ledger).await, u128::from(2 * SECOND));
    stop((ledger, writer)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_nodes_share_commits() {
    const NODES: usize = 50;
    let folder = tempdir().unwrap();
    let metrics = Metrics::default().ledger;
    let (ledger, writer) = start(&config(folder.path()), metrics.clone()).unwrap();
    let mut nodes = tokio::task::JoinSet::new();
    for node in 0..NODES {
        let ledger = ledger.clone();
        nodes.spawn(async move {
            let name = format!("n{node}");
            ledger.hello(hello_of(&name)).await.unwrap();
            let record = tile_of(&name, &name, 0, &[(active("ml"), SECOND)]);
            ledger.apply(batch_of(&name, 1, &[record])).await.unwrap()
        });
    }
    assert!(nodes.join_all().await.into_iter().all(|it| it == Applied::Through(1)));
    assert_eq!(wall_ns(&ledger).await, u128::from(SECOND) * 50);
    assert!(metrics.commits.get() < 50, "{} commits for 100 requests", metrics.commits.get());
    stop((ledger, writer)).await;
}

#[tokio::test]
async fn a_full_volume_refuses_and_goes_on_by_itself() {
    let folder = tempdir().unwrap();
    let (ledger, writer) = open(&config(folder.path()), Metrics::default().ledger).unwrap();
    writer.db.pragma_update(None, "max_page_count", 40).unwrap();
    let writer = WriterThread::spawn(writer).unwrap();
    ledger.hello(hello_of("a")).await.unwrap();
    let mut acked = 0;
    let refused = loop {
        match ledger.apply(batch_of("a", acked + 1, &[second(acked)])).await {
            Ok(Applied::Through(through)) => acked = through,
            Ok(other) => panic!("{other:?}"),
            Err(refused) => break refused,
        }
    };
    assert!(refused.to_string().contains("nothing is lost"), "{refused}");
    assert!(matches!(*ledger.condition().borrow(), Condition::Full(_)));
    assert_eq!(wall_ns(&ledger).await, u128::from(acked * SECOND), "reads go on");

    // The volume itself has room, so the next tick says that it goes on.
    ledger.tick().await;
    let mut condition = ledger.condition();
    let writable = condition.wait_for(|it| *it == Condition::Writable);
    tokio::time::timeout(Duration::from_secs(5), writable).await.unwrap().unwrap();
    stop((ledger, writer)).await;
}

#[tokio::test]
async fn below_the_stop_line_nothing_is_taken() {
    let folder = tempdir().unwrap();
    let config = config::Ledger { min_free_bytes: u64::MAX / 2, ..config(folder.path()) };
    let (ledger, writer) = start(&config, Metrics::default().ledger).unwrap();
    let refused = ledger.hello(hello_of("a")).await.unwrap_err();
    let Refused::Full { text, what_to_do } = refused else { panic!("{refused}") };
    assert!(text.contains("less than its stop line"), "{text}");
    assert!(what_to_do.starts_with("free space or grow the volume"), "{what_to_do}");
    stop((ledger, writer)).await;
}

#[tokio::test]
async fn a_write_that_fails_ends_the_writer() {
    let folder = tempdir().unwrap();
    let (ledger, writer) = start(&config(folder.path()), Metrics::default().ledger).unwrap();
    ledger.hello(hello_of("a")).await.unwrap();
    // Somebody drops a table: what the writer meets is no full disk.
    let other = Connection::open(folder.path().join("ledger.db")).unwrap();
    other.execute_batch("DROP TABLE hour").unwrap();
    let applied = ledger.apply(batch_of("a", 1, &[second(0)])).await;
    assert_eq!(applied, Err(Refused::Stopped));
    let error = writer.ended().await.unwrap_err().to_string();
    assert!(error.contains("Everything acknowledged is kept"), "{error}");
}

// === what stands in the way of a start ===

#[tokio::test]
async fn a_damaged_ledger_is_set_aside() {
    let folder = tempdir().unwrap();
    let path = folder.path();
    let (ledger, writer) = start(&config(path), Metrics::default().ledger).unwrap();
    let id = ledger.id();
    stop((ledger, writer)).await;
    std::fs::write(path.join("ledger.db"), b"this is no database, and it is long enough to tell")
        .unwrap();
    std::fs::write(path.join("ledger.db-wal"), b"its log").unwrap();

    let (ledger, writer) = start(&config(path), Metrics::default().ledger).unwrap();
    assert_ne!(ledger.id(), id);
    assert!(path.join("ledger.db.corrupt").exists());
    assert_eq!(std::fs::read(path.join("ledger.db.corrupt-wal")).unwrap(), b"its log");
    stop((ledger, writer)).await;

    std::fs::write(path.join("ledger.db.damaged"), b"found while writing").unwrap();
    let (again, writer) = start(&config(path), Metrics::default().ledger).unwrap();
    assert!(!path.join("ledger.db.damaged").exists());
    stop((again, writer)).await;
}

fn refused_start(path: &Path) -> String {
    start(&config(path), Metrics::default().ledger).expect_err("it does not start").to_string()
}

#[tokio::test]
async fn two_collectors_do_not_share_a_ledger() {
    let folder = tempdir().unwrap();
    let first = start(&config(folder.path()), Metrics::default().ledger).unwrap();
    let text = refused_start(folder.path());
    assert!(text.starts_with("another collector uses the ledger in "), "{text}");
    stop(first).await;
}

#[test]
fn databases_of_others_are_left_alone() {
    let check = |sql: &str, expected: &str| {
        let folder = tempdir().unwrap();
        let path = folder.path().join("ledger.db");
        Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        let before = std::fs::read(&path).unwrap();
        let text = refused_start(folder.path());
        assert!(text.contains(expected), "{text}");
        assert_eq!(std::fs::read(&path).unwrap(), before);
    };
    check("CREATE TABLE theirs (it)", "is the database of another program");
    check("PRAGMA application_id = 77; CREATE TABLE t (it)", "is the database of another program");
    check(
        "PRAGMA application_id = 0x676c6e72; PRAGMA user_version = 99; CREATE TABLE t (it)",
        "was written by a newer collector (schema 99, this one knows 4)",
    );
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let error = start(&config(&file.join("ledger")), Metrics::default().ledger);
    assert!(matches!(error, Err(OpenError::Folder { .. })), "{error:?}");
}
