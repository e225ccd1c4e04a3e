//! What was measured and not yet acknowledged, on disk.
//!
//! One thread owns the database; this module is how the rest of the agent talks to it. Appending
//! never waits and never fails: while the disk refuses, records wait in bounded memory. A record gets
//! its number when it is first picked for sending and never changes after that. Nothing is dropped
//! for its age. Who is told what over the network is `uplink`'s matter.

mod baseline;
mod coalesce;
mod pending;
mod rows;
mod schema;
mod store;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prost::Message;
use proto::telemetry::v1::SealedRecord;
use tokio::sync::{oneshot, watch};

use crate::clock;
use crate::config;
use crate::model::ids::InstanceId;
use crate::model::units::BootNs;
use crate::model::usage::{CudaBaseline, Record};
use crate::record::Stamp;
use crate::spool::pending::Pending;
use crate::spool::writer::{Command, Known, Writer};

/// Questions that may wait for the writer. Only the uplink asks, one at a time.
const COMMANDS: usize = 64;

/// Names one sequence of records. A new sequence has a new name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SpoolId(pub [u8; 16]);

/// How much one batch may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    pub records: u32,
    /// Of the records on the wire; a single record that is larger is a batch of its own.
    pub bytes: u64,
}

/// Records that follow each other without a hole, each with its number for ever.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    pub spool_id: SpoolId,
    pub first_seq: u64,
    pub records: Vec<SealedRecord>,
}

/// How the spool is, for the uplink, `/status` and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpoolStatus {
    /// `None` = the database is not open.
    pub open: Option<OpenSpool>,
    /// Records in memory that are not on disk yet.
    pub held_records: u64,
    /// Records that did not fit into memory while the disk refused, since the agent started.
    pub lost_records: u64,
    pub state: SpoolState,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenSpool {
    pub spool_id: SpoolId,
    /// Highest number given; 0 = none yet.
    pub sealed_through: u64,
    pub acked_through: u64,
    /// Of the collector that gave `acked_through`; empty = never connected.
    pub ledger_id: Vec<u8>,
    /// On disk and not acknowledged.
    pub unsent_records: u64,
    pub used_bytes: u64,
}

/// Whether what is measured reaches the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SpoolState {
    #[default]
    Writing,
    /// The disk or the cap; the text says which.
    Full(String),
    Failing(String),
}

/// Why the spool could not be used.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The spool of a running agent, somebody else's file, or a newer agent's.
    #[error("{0}")]
    Refused(String),
    #[error("the thread of the spool cannot be started: {0}")]
    Thread(std::io::Error),
    #[error("the spool cannot be read or written now: {0}")]
    Unavailable(String),
    /// What was asked is about a sequence that is no longer the spool's; nothing was changed.
    #[error("the spool has begun a new sequence")]
    Replaced,
    #[error("the spool is closed")]
    Closed,
}

/// The spool, owned by the agent's loop.
#[derive(Debug)]
pub struct Spool {
    handle: SpoolHandle,
    known: Known,
}

/// For everyone who appends or sends. Cheap to clone. Who speaks of numbers names the sequence that
/// it means: they say nothing about another one.
#[derive(Clone, Debug)]
pub struct SpoolHandle {
    boot_id: Arc<str>,
    commands: SyncSender<Command>,
    pending: Arc<Mutex<Pending>>,
    status: watch::Receiver<SpoolStatus>,
}

// === impl Spool ===

impl Spool {
    /// Opens the spool, or begins to retry where the disk does not let it: only a second agent and a
    /// file that must not be touched are errors. `boot_id` is this boot's.
    pub fn open(config: &config::Spool, boot_id: &str) -> Result<Self, SpoolError> {
        let pending = Arc::new(Mutex::new(Pending::default()));
        let (commands, queue) = std::sync::mpsc::sync_channel(COMMANDS);
        let (status_sender, status) = watch::channel(SpoolStatus::default());
        let (writer, known) = Writer::open(config, boot_id, Arc::clone(&pending), status_sender)?;
        std::thread::Builder::new()
            .name("spool-writer".to_owned())
            .spawn(move || writer.run(&queue))
            .map_err(SpoolError::Thread)?;
        let handle = SpoolHandle { boot_id: boot_id.into(), commands, pending, status };
        Ok(Self { handle, known })
    }

    #[must_use]
    pub fn handle(&self) -> SpoolHandle {
        self.handle.clone()
    }

    /// Where the previous run of the agent stopped on each instance, within this boot.
    #[must_use]
    pub fn positions(&self) -> &BTreeMap<InstanceId, BootNs> {
        &self.known.positions
    }

    /// What of the kernel's counts the previous run of the agent has accounted for, in this boot.
    #[must_use]
    pub fn baseline(&self) -> Option<&CudaBaseline> {
        self.known.baseline.as_ref()
    }

    /// Writes what is pending and closes the database; gives up after `deadline`, for instance on a
    /// disk that does not answer. `false` = it gave up, or records stayed in memory.
    pub async fn close(self, deadline: Duration) -> bool {
        let asked = self.handle.ask(|reply| Command::Close { reply });
        matches!(tokio::time::timeout(deadline, asked).await, Ok(Ok(true)))
    }
}

// === impl SpoolHandle ===

impl SpoolHandle {
    /// Hands over what was measured in this boot. Returns at once; nothing is refused. `baseline`:
    /// what of the kernel's counts is in records with these; it is on disk when they are.
    pub fn append(&self, records: Vec<Record>, baseline: Option<CudaBaseline>) {
        if records.is_empty() && baseline.is_none() {
            return;
        }
        let (boot, real_ns) = (clock::boot(), clock::real_ns());
        let stamped = records.into_iter().map(|record| {
            let age = i64::try_from(boot.since(end_of(&record))).unwrap_or(i64::MAX);
            let real_ns = real_ns.saturating_sub(age);
            (record, Stamp { boot_id: Arc::clone(&self.boot_id), real_ns })
        });
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).push(stamped, baseline);
        // A full queue means that the writer is about to look anyway; a closed one that it has
        // looked for the last time, which `close` reports.
        if let Err(TrySendError::Disconnected(_)) = self.commands.try_send(Command::Flush) {
            tracing::debug!("records were measured after the spool was closed");
        }
    }

    /// The next records from the number `from` on; `None` = nothing there yet. Begins later than
    /// `from` where records that were acknowledged are no longer kept; says of which sequence it is.
    pub async fn next_batch(
        &self,
        from: u64,
        limits: BatchLimits,
    ) -> Result<Option<Batch>, SpoolError> {
        self.ask(|reply| Command::NextBatch { from, limits, reply }).await?
    }

    /// The collector has committed everything up to `through`.
    pub async fn acked(
        &self,
        spool: SpoolId,
        through: u64,
        ledger_id: Vec<u8>,
    ) -> Result<(), SpoolError> {
        self.ask(|reply| Command::Acked { spool, through, ledger_id, reply }).await?
    }

    /// The collector's ledger ends at `cursor`, before what was acknowledged. Gives how many of the
    /// records after it are no longer here to be sent again.
    pub async fn went_back(
        &self,
        spool: SpoolId,
        cursor: u64,
        ledger_id: Vec<u8>,
    ) -> Result<u64, SpoolError> {
        self.ask(|reply| Command::WentBack { spool, cursor, ledger_id, reply }).await?
    }

    /// Begins a new sequence with every record after `after`.
    pub async fn renumber(&self, spool: SpoolId, after: u64) -> Result<(), SpoolError> {
        self.ask(|reply| Command::Renumber { spool, after, reply }).await?
    }

    /// Changes with every append, seal and acknowledgement.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<SpoolStatus> {
        self.status.clone()
    }

    async fn ask<T>(
        &self,
        question: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, SpoolError> {
        let (reply, answer) = oneshot::channel();
        self.commands.try_send(question(reply)).map_err(|error| match error {
            TrySendError::Full(_) => SpoolError::Unavailable("its disk does not answer".to_owned()),
            TrySendError::Disconnected(_) => SpoolError::Closed,
        })?;
        // The writer answers every question that it takes.
        answer.await.map_err(|_closed| SpoolError::Closed)
    }
}

fn end_of(record: &Record) -> BootNs {
    match record {
        Record::Tile(tile) => tile.end,
        Record::Cuda(activity) => activity.end,
    }
}

// === impl Batch ===

impl Batch {
    /// Number of the last record.
    #[must_use]
    pub fn last_seq(&self) -> u64 {
        self.first_seq + (self.records.len() as u64).saturating_sub(1)
    }

    /// What a record adds to a message: itself, its tag and its length.
    fn wire_bytes(record: &SealedRecord) -> u64 {
        record.encoded_len() as u64 + 8
    }
}

// === impl SpoolId ===

impl std::fmt::Display for SpoolId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}
