//! The usage ledger: what was used, exactly, counted once whatever crashes, repeats or reorders.
//!
//! One SQLite database (WAL, synchronous=FULL) with one writer thread. A group of batches is one
//! transaction: records, cursors, sums per hour, running totals. `clock_map`, `split`, `decide`,
//! `energy`, `posting`, `amounts` and `accounts` are pure; `schema`, `names`, `places`, `sums`, `view` and
//! `apply` are the transaction; `writer` owns the thread. Who sends, and over what, is `ingest`'s business.

pub mod amounts;
pub mod clock_map;
pub mod decide;
pub mod posting;
pub mod schema;
pub mod split;
pub mod totals;
pub mod usage;
pub mod writer;

mod accounts;
mod apply;
mod closing;
mod dating;
mod energy;
#[cfg(test)]
mod fixtures;
mod memory;
#[cfg(test)]
mod metering_tests;
mod names;
mod places;
mod placing;
mod retention;
mod space;
mod sums;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod torture;
mod view;
#[cfg(test)]
mod writer_tests;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};

use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::clock;
use crate::config;
use crate::ledger::clock_map::Pair;
use crate::ledger::closing::closed_through;
use crate::ledger::decide::Quarantine;
use crate::ledger::memory::Memory;
use crate::ledger::names::Names;
use crate::ledger::schema::{Folder, OpenError};
use crate::ledger::space::Space;
use crate::ledger::totals::Totals;
use crate::ledger::usage::{Query, Usage, UsageError};
use crate::ledger::view::View;
use crate::ledger::writer::{Command, Timers, WriteError, Writer};
use crate::metrics;
use crate::model::ids::{LedgerId, NodeKey, SpoolId};
use crate::model::record::Record;

/// Commands that wait for the writer; a stream waits when it is full.
const QUEUE: usize = 1024;
/// Bytes of batches that wait for the writer, in KiB; a stream waits beyond it.
const WAITING_KIB: usize = 64 * 1024;
/// Queries that run at one time.
const QUERIES: usize = 4;

/// The way to the ledger. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LedgerHandle {
    id: LedgerId,
    database: Arc<PathBuf>,
    commands: mpsc::Sender<Command>,
    waiting: Arc<Semaphore>,
    queries: Arc<Semaphore>,
    totals: Arc<RwLock<Totals>>,
    condition: watch::Receiver<Condition>,
}

/// The writer's thread, as seen by whoever must know when it ends.
#[derive(Debug)]
pub struct WriterThread(oneshot::Receiver<Result<(), WriteError>>);

/// Whether the ledger takes records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    Writable,
    /// For people: what is full and what to do.
    Full(String),
}

/// An agent presents itself.
#[derive(Clone, Debug)]
pub struct Hello {
    pub node: NodeKey,
    pub boot_id: Arc<str>,
    pub spool: SpoolId,
    /// The highest sequence number that the agent knows as acknowledged; 0 = none.
    pub acked_through: u64,
    /// By which ledger; `None` = the agent never met one.
    pub ledger_seen: Option<LedgerId>,
    /// The node's boot time at the Hello, and this collector's UTC when it arrived.
    pub clock: Pair,
    /// Devices that the node has now.
    pub devices: Vec<Arc<str>>,
}

/// The Hello is committed: every earlier stream of the node is fenced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Names the node to `LedgerHandle::closed`.
    pub node: i64,
    pub ledger_id: LedgerId,
    pub epoch: u64,
    /// Every record up to this one is committed; 0 = none.
    pub cursor: u64,
    /// This ledger once acknowledged more than it now holds: it was restored from an older copy, or its
    /// storage was damaged.
    pub regressed: bool,
}

/// Consecutive records of a spool.
#[derive(Clone, Debug)]
pub struct Batch {
    pub node: NodeKey,
    pub epoch: u64,
    pub spool: SpoolId,
    /// Boot of the Hello, and the node's boot time now by this collector's clock.
    pub boot_id: Arc<str>,
    pub boot_now_ns: u64,
    /// From 1; `first_seq + records.len()` is below 2^63.
    pub first_seq: u64,
    /// The agent was asked for the records before `first_seq` and does not have them any more.
    pub accept_gap: bool,
    pub records: Vec<Sealed>,
}

/// One record of a batch.
#[derive(Clone, Debug)]
pub struct Sealed {
    pub payload: Vec<u8>,
    /// blake3 of `payload`, computed here.
    pub hash: [u8; 32],
    /// Why it is set aside, where its form is wrong.
    pub content: Result<Record, Quarantine>,
}

/// What became of a batch. Nothing is left half done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Every record up to this one is committed and synced.
    Through(u64),
    /// Records before the batch are missing; nothing was applied.
    Resume { next: u64 },
    /// A later stream of the node exists (0 = the node is not known); nothing was applied.
    StaleEpoch { newest: u64 },
    /// This number came before with other content, which stands; nothing was applied.
    SequenceReuse { seq: u64, first_received_ns: i64 },
}

/// The ledger did not take it; nothing was recorded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("{text}")]
    Full { text: String, what_to_do: String },
    #[error("the collector knows {limit} nodes, which is its limit")]
    TooManyNodes { limit: usize },
    #[error("the collector is stopping")]
    Stopped,
}

/// Opens the ledger, loads the running totals and starts the writer.
pub fn start(
    config: &config::Ledger,
    metrics: metrics::Ledger,
) -> Result<(LedgerHandle, WriterThread), OpenError> {
    let (handle, writer) = open(config, metrics)?;
    Ok((handle, WriterThread::spawn(writer)?))
}

fn open(
    config: &config::Ledger,
    metrics: metrics::Ledger,
) -> Result<(LedgerHandle, Writer), OpenError> {
    let folder = Folder::open(&config.path)?;
    let now_ns = clock::real_ns();
    let (db, ledger_id) = folder.connect(now_ns)?;
    let now_s = (now_ns / 1_000_000_000).cast_signed();
    let (view, totals) = View::load(&db, config.max_tenants, now_s)
        .map_err(|source| OpenError::Database { path: folder.database(), source })?;
    let totals = Arc::new(RwLock::new(totals));
    let (commands, receiver) = mpsc::channel(QUEUE);
    let (condition, watched) = watch::channel(Condition::Writable);
    let handle = LedgerHandle {
        id: ledger_id,
        database: Arc::new(folder.database()),
        commands,
        waiting: Arc::new(Semaphore::new(WAITING_KIB)),
        queries: Arc::new(Semaphore::new(QUERIES)),
        totals: Arc::clone(&totals),
        condition: watched,
    };
    let memory = Memory {
        ledger_id,
        max_nodes: config.max_nodes,
        closed_through: closed_through(&db)
            .map_err(|source| OpenError::Database { path: folder.database(), source })?,
        names: Names::default(),
        view,
        connected: HashMap::new(),
    };
    metrics.writable.set(1);
    let writer = Writer {
        db,
        space: Space::new(folder.path.clone(), config.min_free_bytes),
        folder,
        memory,
        commands: receiver,
        totals,
        condition,
        metrics,
        keep_records: config.keep_records,
        final_after: config.final_after,
        timers: Timers::default(),
    };
    Ok((handle, writer))
}

// === impl WriterThread ===

impl WriterThread {
    fn spawn(writer: Writer) -> Result<Self, OpenError> {
        let path = writer.folder.path.clone();
        let (done, end) = oneshot::channel();
        std::thread::Builder::new()
            .name("ledger-writer".to_owned())
            .spawn(move || {
                if done.send(writer.run()).is_err() {
                    tracing::debug!("nobody waited for the ledger's writer");
                }
            })
            .map_err(|source| OpenError::Folder { path, source })?;
        Ok(Self(end))
    }

    /// Resolves when the writer has ended and closed the database: in order after `stop`, or with the
    /// error that made it stop. A writer that panicked has ended without a word.
    pub async fn ended(self) -> Result<(), WriteError> {
        self.0.await.unwrap_or(Ok(()))
    }
}

// === impl LedgerHandle ===

impl LedgerHandle {
    #[must_use]
    pub fn id(&self) -> LedgerId {
        self.id
    }

    /// Committed and synced when it returns.
    pub async fn hello(&self, hello: Hello) -> Result<Welcome, Refused> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Hello(hello, reply)).await?;
        answer.await.map_err(|_closed| Refused::Stopped)?
    }

    /// Committed and synced when it returns `Through`.
    pub async fn apply(&self, batch: Batch) -> Result<Applied, Refused> {
        let kibibytes = (batch.bytes() / 1024).clamp(1, WAITING_KIB);
        let kibibytes = u32::try_from(kibibytes).unwrap_or(u32::MAX);
        let _room =
            self.waiting.acquire_many(kibibytes).await.map_err(|_closed| Refused::Stopped)?;
        let (reply, answer) = oneshot::channel();
        self.send(Command::Apply(batch, reply)).await?;
        answer.await.map_err(|_closed| Refused::Stopped)?
    }

    /// The stream that got this Welcome has ended.
    pub async fn closed(&self, welcome: &Welcome) {
        let command = Command::Closed { node: welcome.node, epoch: welcome.epoch };
        if self.send(command).await.is_err() {
            tracing::debug!("a stream ended after the ledger's writer");
        }
    }

    /// To be called about once per second: free space, retention, retired series.
    pub async fn tick(&self) {
        if self.send(Command::Tick).await.is_err() {
            tracing::debug!("a tick came after the ledger's writer had ended");
        }
    }

    /// Ends the writer after what it has already taken; later calls are refused.
    pub async fn stop(&self) {
        if self.send(Command::Stop).await.is_err() {
            tracing::debug!("the ledger's writer had ended before");
        }
    }

    /// Running totals, never ahead of what is committed.
    #[must_use]
    pub fn totals(&self) -> Arc<RwLock<Totals>> {
        Arc::clone(&self.totals)
    }

    /// Whether the ledger takes records, and every change of it.
    #[must_use]
    pub fn condition(&self) -> watch::Receiver<Condition> {
        self.condition.clone()
    }

    /// Sums over hours, from committed rows.
    pub async fn usage(&self, query: Query) -> Result<Usage, UsageError> {
        let _turn = self.queries.acquire().await.map_err(|_closed| UsageError::Stopped)?;
        let database = Arc::clone(&self.database);
        tokio::task::spawn_blocking(move || usage::read(&database, &query))
            .await
            .map_err(|_panicked| UsageError::Stopped)?
    }

    async fn send(&self, command: Command) -> Result<(), Refused> {
        self.commands.send(command).await.map_err(|_closed| Refused::Stopped)
    }
}

// === impl Batch ===

impl Batch {
    /// About what it takes in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.records.iter().map(|it| it.payload.len() + 256).sum()
    }
}
