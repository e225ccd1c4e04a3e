//! The database file: how it is opened, checked and set aside. Nothing here knows what a record is.
//!
//! WAL with `synchronous = FULL`, because what was sent must survive a power cut: a sequence number
//! that came back with other content would be taken for a repetition. `locking_mode = EXCLUSIVE`
//! needs no shared memory and keeps every other program out.

use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OptionalExtension};

/// `gspl`, in the file's header: it is ours.
const APPLICATION_ID: i64 = 0x6773_706c;
/// Counts up with every change of the tables.
const VERSION: i64 = 1;
const PAGE_BYTES: u64 = 4_096;
/// The part of the cap that the write-ahead log may take.
const WAL_PART: u64 = 8;
/// Above this many pages a longer log buys nothing.
const WAL_PAGES: u64 = 1_000;

const TABLES: &str = "
CREATE TABLE meta (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    spool_id BLOB NOT NULL,
    sealed_through INTEGER NOT NULL,
    acked_through INTEGER NOT NULL,
    ledger_id BLOB NOT NULL,
    -- Transactions that appended: says after a failed commit whether it took place.
    appends INTEGER NOT NULL
);
CREATE TABLE record (
    -- Never reused, so that what is not sealed always comes after what is.
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    -- NULL until it is picked for sending; from then on the row never changes.
    seq INTEGER UNIQUE,
    payload BLOB NOT NULL,
    hash BLOB NOT NULL
);
CREATE TABLE position (
    gpu_uuid TEXT NOT NULL,
    mig_uuid TEXT NOT NULL,
    boot_id TEXT NOT NULL,
    end_ns INTEGER NOT NULL,
    PRIMARY KEY (gpu_uuid, mig_uuid)
);
INSERT INTO meta VALUES (1, randomblob(16), 0, 0, x'', 0);
";

/// Not in every database of this version: what is in no record yet is then counted anew.
const BASELINE: &str = "
CREATE TABLE IF NOT EXISTS cuda_baseline (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    boot_id TEXT NOT NULL,
    payload BLOB NOT NULL
);
";

/// Why the database could not be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    /// The disk, or the cap.
    #[error("{0}")]
    Full(rusqlite::Error),
    /// The content is not what was written.
    #[error("{0}")]
    Damaged(String),
    #[error("{0}")]
    Failed(rusqlite::Error),
    #[error("{0}")]
    Folder(std::io::Error),
    /// A file that must not be touched.
    #[error("{0}")]
    Refused(String),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::Error as Sql;
        match (&error, error.sqlite_error_code()) {
            (_, Some(ErrorCode::DiskFull)) => Self::Full(error),
            (_, Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
            | (Sql::FromSqlConversionFailure(..) | Sql::InvalidColumnType(..), _) => {
                Self::Damaged(error.to_string())
            }
            _ => Self::Failed(error),
        }
    }
}

/// Where the files are.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) folder: PathBuf,
    /// Of the database and its log together, about: one transaction may exceed it for a moment.
    pub(super) max_bytes: u64,
}

impl Place {
    pub(super) fn database(&self) -> PathBuf {
        self.folder.join("spool.db")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("spool.db-wal")
    }

    /// Pages that the database may have.
    pub(super) fn pages(&self) -> u64 {
        (self.max_bytes - self.max_bytes / WAL_PART) / PAGE_BYTES
    }

    /// Moves a damaged database away together with its log: one without the other means something
    /// else. An older one that was set aside is replaced.
    pub(super) fn set_aside(&self) -> Result<PathBuf, StoreError> {
        let target = self.folder.join("spool.db.corrupt");
        rename(&self.log(), &self.folder.join("spool.db.corrupt-wal"))?;
        rename(&self.database(), &target)?;
        Ok(target)
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::Folder(error))
        }
        _ => Ok(()),
    }
}

/// Opens the database, makes it where there is none.
pub(super) fn open(place: &Place) -> Result<Connection, StoreError> {
    std::fs::create_dir_all(&place.folder).map_err(StoreError::Folder)?;
    let connection = Connection::open(place.database())?;
    // A damaged database is set aside as it is: closing must not write to it.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    let made = identify(&connection, place)?;
    configure(&connection, place)?;
    if !made {
        make(&connection)?;
    }
    connection.execute_batch(BASELINE)?;
    settle(&connection)?;
    Ok(connection)
}

/// Writes and syncs anew what a log holds whose last sync may have failed: the kernel forgets pages
/// that it could not write, and a second sync of the same pages would say nothing. On a full disk the
/// log stays, because reading and sending must go on.
fn settle(connection: &Connection) -> Result<(), StoreError> {
    let checkpoint = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    match checkpoint.map_err(StoreError::from) {
        Err(StoreError::Full(_)) => Ok(()),
        other => other,
    }
}

/// Whether our tables are there; an error where the file is somebody else's or a newer agent's.
fn identify(connection: &Connection, place: &Place) -> Result<bool, StoreError> {
    let application: i64 = pragma(connection, "application_id")?;
    let version: i64 = pragma(connection, "user_version")?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let path = place.database();
    let path = path.display();
    match (application, version) {
        (APPLICATION_ID, VERSION) => Ok(true),
        (0, 0) if tables == 0 => Ok(false),
        (APPLICATION_ID, newer) => Err(StoreError::Refused(format!(
            "{path} was written by a newer agent (schema {newer}, this one reads {VERSION}); it was \
             not changed. Run the newer agent, or give this one another spool.path"
        ))),
        _ => Err(StoreError::Refused(format!(
            "{path} is a database of another program; it was not changed. Give the agent another \
             spool.path"
        ))),
    }
}

fn configure(connection: &Connection, place: &Place) -> Result<(), StoreError> {
    let log_pages = (place.max_bytes / WAL_PART / PAGE_BYTES).clamp(16, WAL_PAGES);
    let log_bytes = log_pages * PAGE_BYTES;
    connection.execute_batch(&format!(
        "PRAGMA journal_mode = WAL;
         PRAGMA synchronous = FULL;
         PRAGMA wal_autocheckpoint = {log_pages};
         PRAGMA journal_size_limit = {log_bytes};
         PRAGMA max_page_count = {pages};
         PRAGMA cache_size = -1024;
         PRAGMA temp_store = MEMORY;",
        pages = place.pages(),
    ))?;
    let journal: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
    let synchronous: i64 = pragma(connection, "synchronous")?;
    if journal != "wal" || synchronous != 2 {
        return Err(StoreError::Refused(format!(
            "{path} cannot be written so that it survives a power cut (journal_mode {journal}, \
             synchronous {synchronous}); nothing was written. Put spool.path on a local disk",
            path = place.database().display(),
        )));
    }
    Ok(())
}

fn make(connection: &Connection) -> Result<(), StoreError> {
    connection.execute_batch(&format!(
        "BEGIN IMMEDIATE;
         {TABLES}
         PRAGMA application_id = {APPLICATION_ID};
         PRAGMA user_version = {VERSION};
         COMMIT;"
    ))?;
    Ok(())
}

fn pragma(connection: &Connection, name: &str) -> Result<i64, StoreError> {
    Ok(connection
        .query_row(&format!("PRAGMA {name}"), [], |row| row.get(0))
        .optional()?
        .unwrap_or(0))
}

/// Pages in use, of those that the file has.
pub(super) fn used_pages(connection: &Connection) -> Result<u64, StoreError> {
    let pages = pragma(connection, "page_count")? - pragma(connection, "freelist_count")?;
    Ok(u64::try_from(pages).unwrap_or(0))
}

#[must_use]
pub(super) fn bytes(pages: u64) -> u64 {
    pages.saturating_mul(PAGE_BYTES)
}
