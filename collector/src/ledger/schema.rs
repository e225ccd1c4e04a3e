//! The database file: opening it, its tables, and what happens when it cannot be used.
//!
//! A damaged ledger is set aside, never deleted and never a reason not to start: agents still hold
//! what they kept after acknowledgement and send it again to the new one, whose id is new too.

use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::model::ids::LedgerId;

/// `glnr`: what `file` and other tools see.
const APPLICATION_ID: i32 = 0x676c_6e72;
/// The first bytes of every SQLite file.
const HEADER: &[u8; 16] = b"SQLite format 3\0";
/// Raised with every change of `TABLES` or of what amounts mean.
const VERSION: i32 = 4;

/// Amounts are unsigned 128-bit integers, big-endian, one after the other; `amounts.rs` has their
/// meaning. Absent texts are empty. Times are UTC.
const TABLES: &str = "
CREATE TABLE meta (
    ledger_id BLOB NOT NULL, created_ns INTEGER NOT NULL,
    -- Hours up to this one are final: what comes later for them is a correction. NULL = none is.
    closed_through INTEGER,
    -- Hours from this one on can be computed again from the records of which they consist. NULL = all.
    proven_from INTEGER);

-- A node and its fence: a batch of another epoch is refused.
CREATE TABLE node (
    id INTEGER PRIMARY KEY, cluster TEXT NOT NULL, name TEXT NOT NULL, epoch INTEGER NOT NULL,
    UNIQUE (cluster, name));

-- The cursor: every record of the spool up to `through` is in this ledger.
CREATE TABLE spool (
    id INTEGER PRIMARY KEY, node INTEGER NOT NULL, spool_id BLOB NOT NULL, through INTEGER NOT NULL,
    -- Records up to this one are folded: only their sums and how many ended how are kept.
    folded_through INTEGER NOT NULL DEFAULT 0,
    UNIQUE (node, spool_id));

-- Records as they came, for as long as the configuration says. `reason` is empty when applied; `dated`
-- has the hours that an applied record counts in, as `dating.rs` writes them.
CREATE TABLE record (
    spool INTEGER NOT NULL, seq INTEGER NOT NULL, hash BLOB NOT NULL, reason TEXT NOT NULL,
    payload BLOB NOT NULL, received_ns INTEGER NOT NULL, dated BLOB,
    PRIMARY KEY (spool, seq)) WITHOUT ROWID;

-- Sequence numbers that the agent could not send any more.
CREATE TABLE gap (
    spool INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    received_ns INTEGER NOT NULL, PRIMARY KEY (spool, first)) WITHOUT ROWID;

-- Boots of a node, and their clock maps. `source`: 0 = this collector's clock, 1 = the node's.
CREATE TABLE boot (
    id INTEGER PRIMARY KEY, node INTEGER NOT NULL, boot_id TEXT NOT NULL, UNIQUE (node, boot_id));
CREATE TABLE clock (
    boot INTEGER NOT NULL, boot_ns INTEGER NOT NULL, utc_ns INTEGER NOT NULL,
    source INTEGER NOT NULL, PRIMARY KEY (boot, boot_ns)) WITHOUT ROWID;

-- Instances on nodes, with the end of their last tile; `gpu` is empty for the node itself.
CREATE TABLE place (
    id INTEGER PRIMARY KEY, node INTEGER NOT NULL, gpu TEXT NOT NULL, mig TEXT NOT NULL,
    boot INTEGER, end_ns INTEGER, end_utc_ns INTEGER, UNIQUE (node, gpu, mig));
-- Boots that another one has followed at a place.
CREATE TABLE past_boot (
    place INTEGER NOT NULL, boot INTEGER NOT NULL, PRIMARY KEY (place, boot)) WITHOUT ROWID;
CREATE TABLE device (gpu TEXT PRIMARY KEY, node INTEGER NOT NULL) WITHOUT ROWID;

CREATE TABLE account (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL, share TEXT NOT NULL, detail TEXT NOT NULL,
    holder_kind TEXT NOT NULL, holder TEXT NOT NULL, tenant TEXT NOT NULL,
    namespace TEXT NOT NULL, pod TEXT NOT NULL, container TEXT NOT NULL,
    UNIQUE (tenant, namespace, pod, container, holder_kind, holder, kind, share, detail));

-- Sums per UTC hour (hours since the Unix epoch).
CREATE TABLE hour (
    hour INTEGER NOT NULL, place INTEGER NOT NULL, account INTEGER NOT NULL, amounts BLOB NOT NULL,
    PRIMARY KEY (hour, place, account)) WITHOUT ROWID;
-- Running totals of first postings, as counters show them; `place` is 0 for tenants.
CREATE TABLE total (
    place INTEGER NOT NULL, account INTEGER NOT NULL, amounts BLOB NOT NULL,
    posted_s INTEGER NOT NULL, PRIMARY KEY (place, account)) WITHOUT ROWID;
";

/// What version 4 has besides.
const BOOKS: &str = "
-- Records that are folded, by how they ended.
CREATE TABLE folded (
    spool INTEGER NOT NULL, reason TEXT NOT NULL, records INTEGER NOT NULL,
    PRIMARY KEY (spool, reason)) WITHOUT ROWID;

-- Where the tiles of a place do not meet in UTC although nothing is missing between them: the place
-- was another node's or did not exist, or a clock was set.
CREATE TABLE seam (
    place INTEGER NOT NULL, from_utc_ns INTEGER NOT NULL, to_utc_ns INTEGER NOT NULL,
    PRIMARY KEY (place, from_utc_ns, to_utc_ns)) WITHOUT ROWID;

-- Final hours. `hash` is of their rows and of the hash of the final hour before; NULL until it is
-- computed. `behind` nodes reported in the hour and had not passed it when it was closed.
CREATE TABLE final (
    hour INTEGER PRIMARY KEY, hash BLOB, rows INTEGER NOT NULL, behind INTEGER NOT NULL,
    closed_ns INTEGER NOT NULL);

-- What came for an hour that was final. Amounts are signed: two's complement.
CREATE TABLE correction (
    id INTEGER PRIMARY KEY, hour INTEGER NOT NULL, place INTEGER NOT NULL, account INTEGER NOT NULL,
    amounts BLOB NOT NULL, reason TEXT NOT NULL, received_ns INTEGER NOT NULL, hash BLOB NOT NULL);
CREATE INDEX correction_hour ON correction (hour, place, account);
";

/// From version 3 to 4. Which hours earlier records count in was not kept.
const UPGRADE: &str = "
ALTER TABLE meta ADD COLUMN closed_through INTEGER;
ALTER TABLE meta ADD COLUMN proven_from INTEGER;
ALTER TABLE spool ADD COLUMN folded_through INTEGER NOT NULL DEFAULT 0;
ALTER TABLE record ADD COLUMN dated BLOB;
UPDATE meta SET proven_from = (SELECT max(hour) + 1 FROM hour);
UPDATE spool SET folded_through = coalesce(
    (SELECT min(seq) - 1 FROM record WHERE record.spool = spool.id), through);
";

/// Why the ledger could not be opened. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "cannot use {path} for the ledger: {source}; create it or make it writable, or set ledger.path"
    )]
    Folder { path: PathBuf, source: std::io::Error },
    #[error(
        "another collector uses the ledger in {path}; stop it, or give this one another ledger.path"
    )]
    Locked { path: PathBuf },
    #[error(
        "{path} was written by a newer collector (schema {found}, this one knows {VERSION}); nothing was changed, start that version"
    )]
    Newer { path: PathBuf, found: i32 },
    #[error("{path} is the database of another program; nothing was changed, set ledger.path")]
    Foreign { path: PathBuf },
    #[error(
        "{path} runs with synchronous={found}, not FULL: an acknowledged record could be lost; nothing was changed"
    )]
    NotSynchronous { path: PathBuf, found: i64 },
    #[error("cannot open {path}: {source}")]
    Database { path: PathBuf, source: rusqlite::Error },
}

/// The folder of a ledger, held against other collectors until it is dropped.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
    _lock: Flock<File>,
}

// === impl Folder ===

impl Folder {
    /// Creates it where it is missing.
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Folder { path: path.to_owned(), source };
        fs::create_dir_all(path).map_err(failed)?;
        let lock = path.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(lock);
        let lock = Flock::lock(lock.map_err(failed)?, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, _would_block)| OpenError::Locked { path: path.to_owned() })?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    pub(super) fn database(&self) -> PathBuf {
        self.path.join("ledger.db")
    }

    pub(super) fn wal(&self) -> PathBuf {
        self.path.join("ledger.db-wal")
    }

    /// Left behind by a run that met damage; the next start sets the database aside.
    pub(super) fn damage_mark(&self) -> PathBuf {
        self.path.join("ledger.db.damaged")
    }

    /// Opens or creates the database for the writer. A damaged one is set aside first.
    pub(super) fn connect(&self, now_ns: u64) -> Result<(Connection, LedgerId), OpenError> {
        let failed = |source| OpenError::Database { path: self.database(), source };
        if self.damage_mark().exists() {
            self.set_aside("an earlier run found damage in it")?;
        } else if !self.begins_as_a_database() {
            // Seen before SQLite opens it, which would delete the log.
            self.set_aside("it does not begin as a database")?;
        }
        match self.prepare(now_ns) {
            Err(OpenError::Database { source, .. }) if is_damage(&source) => {
                self.set_aside(&source.to_string())?;
                self.prepare(now_ns)
            }
            Err(OpenError::Database { source, .. }) => Err(failed(source)),
            other => other,
        }
    }

    /// A file that is missing or empty will be one.
    fn begins_as_a_database(&self) -> bool {
        let mut begin = [0; HEADER.len()];
        let file = File::open(self.database());
        file.and_then(|mut it| it.read_exact(&mut begin)).is_err() || begin == *HEADER
    }

    fn prepare(&self, now_ns: u64) -> Result<(Connection, LedgerId), OpenError> {
        let path = self.database();
        let failed = |source| OpenError::Database { path: self.database(), source };
        let mut connection = Connection::open(&path).map_err(failed)?;
        let pragma = |name: &str| connection.pragma_query_value(None, name, |row| row.get(0));
        let application: i32 = pragma("application_id").map_err(failed)?;
        let version: i32 = pragma("user_version").map_err(failed)?;
        let tables: i64 = connection
            .query_row("SELECT count(*) FROM sqlite_schema", (), |row| row.get(0))
            .map_err(failed)?;
        if application != APPLICATION_ID && tables > 0 {
            return Err(OpenError::Foreign { path });
        }
        if version > VERSION {
            return Err(OpenError::Newer { path, found: version });
        }
        configure(&connection).map_err(failed)?;
        let synchronous: i64 =
            connection.pragma_query_value(None, "synchronous", |row| row.get(0)).map_err(failed)?;
        if synchronous != 2 {
            return Err(OpenError::NotSynchronous { path, found: synchronous });
        }
        if version == 0 {
            create(&mut connection, now_ns).map_err(failed)?;
        } else if version < VERSION {
            // Version 2 has more amounts of CUDA activity, version 3 of shares and instances: those
            // that a row lacks are zero, which for the new ones means that they are not known.
            upgrade(&mut connection).map_err(failed)?;
        }
        let id = connection
            .query_row("SELECT ledger_id FROM meta", (), |row| row.get(0))
            .map_err(failed)?;
        Ok((connection, LedgerId(id)))
    }

    /// Renames the database and its log together: one without the other is worth nothing.
    fn set_aside(&self, why: &str) -> Result<(), OpenError> {
        let kept = self.path.join("ledger.db.corrupt");
        for (from, suffix) in [(self.database(), ""), (self.wal(), "-wal")] {
            let to = PathBuf::from(format!("{}{suffix}", kept.display()));
            rename_if_there(&from, &to)
                .map_err(|source| OpenError::Folder { path: from.clone(), source })?;
        }
        for gone in [self.path.join("ledger.db-shm"), self.damage_mark()] {
            if let Err(source) = fs::remove_file(&gone)
                && source.kind() != std::io::ErrorKind::NotFound
            {
                return Err(OpenError::Folder { path: gone, source });
            }
        }
        tracing::error!(
            "the ledger database is damaged ({why}): it was moved to {} and a new ledger was started. \
             Agents send again what they kept; counters start anew. Disk errors? see dmesg",
            kept.display()
        );
        Ok(())
    }
}

fn rename_if_there(from: &Path, to: &Path) -> std::io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // Pages, not bytes: about 16 MiB of log between checkpoints.
    connection.pragma_update(None, "wal_autocheckpoint", 4_000)?;
    // Kibibytes, as the minus sign says.
    connection.pragma_update(None, "cache_size", -65_536)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

fn create(connection: &mut Connection, now_ns: u64) -> rusqlite::Result<()> {
    let id: [u8; 16] = std::array::from_fn(|_| fastrand::u8(..));
    let transaction = connection.transaction()?;
    transaction.execute_batch(TABLES)?;
    transaction.execute_batch(BOOKS)?;
    transaction.execute(
        "INSERT INTO meta (ledger_id, created_ns) VALUES (?1, ?2)",
        (id, i64::try_from(now_ns).unwrap_or(i64::MAX)),
    )?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()
}

fn upgrade(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    transaction.execute_batch(UPGRADE)?;
    transaction.execute_batch(BOOKS)?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()
}

/// A connection that cannot change anything, for queries.
pub(super) fn reader(database: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(database, flags)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    Ok(connection)
}

/// The file is not what it should be; another attempt will not help.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    let codes = [ErrorCode::DatabaseCorrupt, ErrorCode::NotADatabase];
    error.sqlite_error_code().is_some_and(|it| codes.contains(&it))
}

/// There is no room; another attempt helps when there is.
pub(super) fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DiskFull)
}
