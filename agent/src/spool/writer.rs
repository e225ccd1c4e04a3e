//! The thread that owns the database: writes what is pending, answers questions, opens again after an
//! error.
//!
//! Says what happened once per change of state, not per attempt. After an error in a write the
//! connection is closed and the database opened anew, because a sync that failed once may succeed the
//! second time without having written.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio::sync::{oneshot, watch};
use tracing::{error, info, warn};

use crate::config;
use crate::model::ids::InstanceId;
use crate::model::units::BootNs;
use crate::model::usage::CudaBaseline;
use crate::spool::pending::{Measured, Pending};
use crate::spool::schema::{Place, StoreError};
use crate::spool::store::Store;
use crate::spool::{Batch, BatchLimits, OpenSpool, SpoolError, SpoolId, SpoolState, SpoolStatus};

/// How long to wait before a disk that refused is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// A batch is at most this part of the cap, so that the window of sealed records, which cannot be
/// merged any more, leaves room for those that can.
const BATCH_PART: u64 = 32;

#[derive(Debug)]
pub(super) enum Command {
    /// Something is pending.
    Flush,
    NextBatch {
        from: u64,
        limits: BatchLimits,
        reply: oneshot::Sender<Result<Option<Batch>, SpoolError>>,
    },
    Acked {
        spool: SpoolId,
        through: u64,
        ledger_id: Vec<u8>,
        reply: oneshot::Sender<Result<(), SpoolError>>,
    },
    WentBack {
        spool: SpoolId,
        cursor: u64,
        ledger_id: Vec<u8>,
        reply: oneshot::Sender<Result<u64, SpoolError>>,
    },
    Renumber {
        spool: SpoolId,
        after: u64,
        reply: oneshot::Sender<Result<(), SpoolError>>,
    },
    /// Whether everything is on disk.
    Close {
        reply: oneshot::Sender<bool>,
    },
}

#[derive(Debug)]
pub(super) struct Writer {
    place: Place,
    boot_id: Arc<str>,
    pending: Arc<Mutex<Pending>>,
    status: watch::Sender<SpoolStatus>,
    state: SpoolState,
    /// Loss that was already reported.
    lost: u64,
    /// `None` while the database cannot be used.
    store: Option<Store>,
    /// The last append, where its commit failed in a way that does not say whether it took place.
    uncertain: Option<Uncertain>,
    /// Held while the agent runs; `None` where the folder could not be written at the start.
    lock: Option<Flock<File>>,
}

/// What the previous run of the agent left, within this boot.
#[derive(Debug)]
pub(super) struct Known {
    /// Where it stopped on each instance.
    pub(super) positions: BTreeMap<InstanceId, BootNs>,
    /// What of the kernel's counts is in records.
    pub(super) baseline: Option<CudaBaseline>,
}

#[derive(Debug)]
struct Uncertain {
    /// What `Meta::appends` is if it took place.
    appends: u64,
    measured: Measured,
}

// === impl Writer ===

impl Writer {
    pub(super) fn open(
        config: &config::Spool,
        boot_id: &str,
        pending: Arc<Mutex<Pending>>,
        status: watch::Sender<SpoolStatus>,
    ) -> Result<(Self, Known), SpoolError> {
        let place = Place { folder: config.path.clone(), max_bytes: config.max_bytes };
        let mut writer = Self {
            place,
            boot_id: boot_id.into(),
            pending,
            status,
            state: SpoolState::Writing,
            lost: 0,
            store: None,
            uncertain: None,
            lock: None,
        };
        let failed = writer.reopen().err();
        if let Some(StoreError::Refused(text)) = failed {
            return Err(SpoolError::Refused(text));
        }
        writer.note(failed);
        let positions = writer.with_store(|store| store.positions(boot_id)).unwrap_or_default();
        let baseline = writer.with_store(|store| store.baseline(boot_id)).unwrap_or_default();
        writer.publish();
        Ok((writer, Known { positions, baseline }))
    }

    pub(super) fn run(mut self, queue: &Receiver<Command>) {
        loop {
            let command = match self.wait(queue) {
                Ok(command) => command,
                Err(RecvTimeoutError::Timeout) => Command::Flush,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            self.flush();
            let closing = matches!(command, Command::Close { .. });
            self.answer(command);
            if closing {
                return;
            }
        }
    }

    /// With nothing to retry there is nothing to wake up for.
    fn wait(&self, queue: &Receiver<Command>) -> Result<Command, RecvTimeoutError> {
        if self.state == SpoolState::Writing {
            queue.recv().map_err(|_closed| RecvTimeoutError::Disconnected)
        } else {
            queue.recv_timeout(RETRY)
        }
    }

    /// The status is there before the answer, so that whoever is told can rely on it.
    fn answer(&mut self, command: Command) {
        match command {
            Command::Flush => self.publish(),
            Command::NextBatch { from, mut limits, reply } => {
                limits.bytes = limits.bytes.min(self.place.max_bytes / BATCH_PART);
                let batch = self.with_store(|it| it.next_batch(from, limits));
                self.tell(reply, batch);
            }
            Command::Acked { spool, through, ledger_id, reply } => {
                let acked = self.with_sequence(spool, |it| it.acked(through, &ledger_id));
                self.tell(reply, acked);
            }
            Command::WentBack { spool, cursor, ledger_id, reply } => {
                let gone = self.with_sequence(spool, |it| it.went_back(cursor, &ledger_id));
                self.tell(reply, gone);
            }
            Command::Renumber { spool, after, reply } => {
                let renumbered = self.with_sequence(spool, |it| it.renumber(after));
                self.tell(reply, renumbered);
            }
            Command::Close { reply } => {
                // Whoever hears the answer may open the spool at once.
                self.store = None;
                self.lock = None;
                let written = self.uncertain.is_none() && self.lock_pending().len() == 0;
                self.tell(reply, written);
            }
        }
    }

    /// Whoever asked may be gone, and then the answer does not matter.
    fn tell<T>(&mut self, reply: oneshot::Sender<T>, answer: T) {
        self.publish();
        drop(reply.send(answer));
    }

    /// Writes what is pending, or leaves it pending.
    fn flush(&mut self) {
        self.resolve();
        if self.uncertain.is_some() {
            return;
        }
        let measured = self.lock_pending().take();
        // With nothing to write, an append still finds out whether the disk takes it again.
        if measured.is_empty() && self.state == SpoolState::Writing {
            return;
        }
        let before = self.store.as_ref().map(|it| it.meta.appends);
        let boot_id = Arc::clone(&self.boot_id);
        let append = |store: &mut Store| {
            store.append(&measured.records, measured.baseline.as_ref().map(|it| (&*boot_id, it)))
        };
        if self.with_store(append).is_err() {
            match before.filter(|_| self.store.is_none()) {
                Some(before) => self.uncertain = Some(Uncertain { appends: before + 1, measured }),
                None => self.lock_pending().put_back(measured),
            }
        } else {
            self.note(None);
        }
        self.count_lost();
    }

    /// Asks the database that was opened again whether the append that failed took place.
    fn resolve(&mut self) {
        let Some(uncertain) = self.uncertain.take() else { return };
        match self.with_store(|store| Ok(store.meta.appends)) {
            Ok(appends) if appends == uncertain.appends => {}
            Ok(_) => self.lock_pending().put_back(uncertain.measured),
            Err(_) => self.uncertain = Some(uncertain),
        }
    }

    fn count_lost(&mut self) {
        let lost = self.lock_pending().lost;
        if lost > self.lost {
            error!(
                "{} records are lost: the spool in {} could not be written for too long and memory \
                 for records is full. The ledger will show their time as missing",
                lost - self.lost,
                self.place.folder.display()
            );
            self.lost = lost;
        }
    }

    /// Runs one transaction on the sequence that was meant.
    fn with_sequence<T>(
        &mut self,
        spool: SpoolId,
        work: impl FnOnce(&mut Store) -> Result<T, StoreError>,
    ) -> Result<T, SpoolError> {
        let worked = self.with_store(|store| {
            if store.meta.spool_id == spool { work(store).map(Some) } else { Ok(None) }
        });
        worked?.ok_or(SpoolError::Replaced)
    }

    /// Runs one transaction, on a database that is opened again where that is needed.
    fn with_store<T>(
        &mut self,
        work: impl FnOnce(&mut Store) -> Result<T, StoreError>,
    ) -> Result<T, SpoolError> {
        let worked = match self.reopen() {
            Ok(store) => work(store),
            Err(error) => Err(error),
        };
        match worked {
            Ok(value) => {
                // On a full disk reading and sending work: only an append tells that there is room.
                if !matches!(self.state, SpoolState::Full(_)) {
                    self.note(None);
                }
                Ok(value)
            }
            Err(error) => {
                let text = error.to_string();
                self.note(Some(error));
                Err(SpoolError::Unavailable(text))
            }
        }
    }

    fn reopen(&mut self) -> Result<&mut Store, StoreError> {
        if self.lock.is_none() {
            self.lock = Some(self.take_lock()?);
        }
        let store = match self.store.take() {
            Some(store) => store,
            None => match Store::open(&self.place) {
                Err(StoreError::Damaged(text)) => {
                    self.place.set_aside()?;
                    self.say_damaged(&text);
                    Store::open(&self.place)?
                }
                opened => opened?,
            },
        };
        Ok(self.store.insert(store))
    }

    /// Two agents on one spool would give one number to two records.
    fn take_lock(&self) -> Result<Flock<File>, StoreError> {
        std::fs::create_dir_all(&self.place.folder).map_err(StoreError::Folder)?;
        let path = self.place.folder.join("spool.lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(StoreError::Folder)?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_file, errno)| match errno {
            Errno::EWOULDBLOCK => StoreError::Refused(format!(
                "another agent uses the spool in {}; nothing was changed. Stop that agent, or give \
                 this one another spool.path",
                self.place.folder.display()
            )),
            other => StoreError::Folder(other.into()),
        })
    }

    /// Takes note of how the last transaction went, and says it when that is a change.
    fn note(&mut self, error: Option<StoreError>) {
        let state = match error {
            None => SpoolState::Writing,
            // The connection stays: the transaction is rolled back, and nothing was half-written.
            Some(StoreError::Full(error)) => SpoolState::Full(error.to_string()),
            Some(StoreError::Damaged(text)) => return self.replace(&text),
            Some(error) => {
                self.store = None;
                SpoolState::Failing(error.to_string())
            }
        };
        self.say(&state);
        self.state = state;
    }

    fn say(&self, state: &SpoolState) {
        let folder = self.place.folder.display();
        match (&self.state, state) {
            (SpoolState::Writing, SpoolState::Full(text)) => warn!(
                "the spool in {folder} is full ({text}): usage goes on being measured and is kept in \
                 memory, nothing is lost while the agent runs. Free space on that disk, connect the \
                 collector, or raise spool.max_bytes; writing resumes by itself"
            ),
            (SpoolState::Writing, SpoolState::Failing(text)) => warn!(
                "the spool in {folder} cannot be used ({text}): usage goes on being measured and is \
                 kept in memory, nothing is lost while the agent runs. Make the folder writable; \
                 writing resumes by itself"
            ),
            (SpoolState::Full(_) | SpoolState::Failing(_), SpoolState::Writing) => {
                info!("the spool in {folder} is written again");
            }
            _ => {}
        }
    }

    /// Sets a damaged database aside; the next transaction begins a new one.
    fn replace(&mut self, text: &str) {
        let moved = match self.store.take() {
            Some(store) => store.set_aside(),
            None => self.place.set_aside(),
        };
        match moved {
            Ok(_) => {
                self.say_damaged(text);
                self.state = SpoolState::Failing(text.to_owned());
            }
            Err(error) => self.note(Some(error)),
        }
    }

    fn say_damaged(&self, text: &str) {
        error!(
            "the spool in {folder} is damaged ({text}): it was moved to spool.db.corrupt, and a new \
             one begins. Records in it that the collector had not acknowledged are not sent; the \
             ledger shows their time as missing. Look for disk errors in the kernel's log",
            folder = self.place.folder.display(),
        );
    }

    fn publish(&mut self) {
        let open = self.store.as_ref().map(|store| OpenSpool {
            spool_id: store.meta.spool_id,
            sealed_through: store.meta.sealed_through,
            acked_through: store.meta.acked_through,
            ledger_id: store.meta.ledger_id.clone(),
            unsent_records: store.unsent(),
            used_bytes: store.used_bytes().unwrap_or(0),
        });
        let uncertain = self.uncertain.as_ref().map_or(0, |it| it.measured.records.len());
        let held_records = (self.lock_pending().len() + uncertain) as u64;
        let status =
            SpoolStatus { open, held_records, lost_records: self.lost, state: self.state.clone() };
        self.status.send_if_modified(|known| {
            let changed = *known != status;
            *known = status;
            changed
        });
    }

    fn lock_pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
