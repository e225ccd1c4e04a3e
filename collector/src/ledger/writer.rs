//! The one thread that writes: group commit, answers, housekeeping.
//!
//! What waits when a commit is done goes into the next one, and commits are at least `COMMIT_EVERY`
//! apart, so a lone batch is committed at once and a thousand share one sync. Answers leave and totals
//! change only after COMMIT returned. On any error nothing of the group stays, in the database or in
//! memory.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock;
use crate::ledger::apply::Transaction;
use crate::ledger::closing::{Closing, Terms};
use crate::ledger::memory::{Connected, Memory, Outcomes};
use crate::ledger::names::Names;
use crate::ledger::retention::Retention;
use crate::ledger::schema::{Folder, is_damage, is_full};
use crate::ledger::space::Space;
use crate::ledger::totals::{Series, Totals};
use crate::ledger::{Applied, Batch, Condition, Hello, Refused, Welcome};
use crate::metrics;

/// Commits begin at least this far apart.
const COMMIT_EVERY: Duration = Duration::from_millis(5);
/// A group takes no further batch beyond either.
const GROUP_BYTES: usize = 1024 * 1024;
const GROUP_COMMANDS: usize = 1024;
/// How often series that nothing is posted to leave the view.
const RETIRE_EVERY: Duration = Duration::from_secs(60);

pub(super) type Reply<T> = oneshot::Sender<Result<T, Refused>>;

#[derive(Debug)]
pub(super) enum Command {
    Hello(Hello, Reply<Welcome>),
    Apply(Batch, Reply<Applied>),
    /// The stream with this epoch has ended; `node` is a row id.
    Closed {
        node: i64,
        epoch: u64,
    },
    /// About once per second.
    Tick,
    Stop,
}

/// The ledger can no longer be written, and is not safe to retry on the same connection. Everything
/// that was acknowledged is in it.
#[derive(Debug, thiserror::Error)]
#[error(
    "the ledger cannot be written: {0}. Everything acknowledged is kept and agents keep the rest; check the volume (dmesg) and start again"
)]
pub struct WriteError(rusqlite::Error);

#[derive(Debug)]
pub(super) struct Writer {
    pub(super) db: Connection,
    pub(super) folder: Folder,
    pub(super) memory: Memory,
    pub(super) space: Space,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) totals: Arc<RwLock<Totals>>,
    pub(super) condition: watch::Sender<Condition>,
    pub(super) metrics: metrics::Ledger,
    pub(super) keep_records: Duration,
    pub(super) final_after: Duration,
    pub(super) timers: Timers,
}

/// When things were done last; CLOCK_BOOTTIME nanoseconds.
#[derive(Debug, Default)]
pub(super) struct Timers {
    commit_ns: u64,
    retire_ns: u64,
    closing: Closing,
    retention: Retention,
}

/// Commands that share a transaction.
#[derive(Debug, Default)]
struct Group {
    writes: Vec<Write>,
    bytes: usize,
    tick: bool,
    stop: bool,
}

#[derive(Debug)]
enum Write {
    Hello(Hello, Reply<Welcome>),
    Apply(Batch, Reply<Applied>),
}

/// What a write came to, to be told after COMMIT.
enum Answer {
    /// `None` = refused: there are too many nodes.
    Hello(Option<Welcome>),
    Applied(Applied),
}

/// A transaction that was committed.
struct Committed {
    answers: Vec<Answer>,
    totals: Vec<(Series, Vec<u128>)>,
    outcomes: Outcomes,
}

// === impl Writer ===

impl Writer {
    /// Until `Stop`, until every handle is gone, or until the ledger cannot be written.
    pub(super) fn run(mut self) -> Result<(), WriteError> {
        while let Some(first) = self.commands.blocking_recv() {
            let group = self.gather(first);
            let (tick, stop) = (group.tick, group.stop);
            self.write(group.writes)?;
            if tick {
                self.keep_house()?;
            }
            if stop {
                break;
            }
        }
        Ok(())
    }

    fn gather(&mut self, first: Command) -> Group {
        let mut group = Group::default();
        self.take(first, &mut group);
        let since = clock::boot_ns().saturating_sub(self.timers.commit_ns);
        let wait = COMMIT_EVERY.saturating_sub(Duration::from_nanos(since));
        if !wait.is_zero() && !group.writes.is_empty() {
            std::thread::sleep(wait);
        }
        while group.has_room() {
            match self.commands.try_recv() {
                Ok(command) => self.take(command, &mut group),
                Err(_empty_or_closed) => break,
            }
        }
        group
    }

    fn take(&mut self, command: Command, group: &mut Group) {
        match command {
            Command::Hello(hello, reply) => group.writes.push(Write::Hello(hello, reply)),
            Command::Apply(batch, reply) => {
                group.bytes += batch.bytes();
                group.writes.push(Write::Apply(batch, reply));
            }
            Command::Closed { node, epoch } => self.memory.close(node, epoch),
            Command::Tick => group.tick = true,
            Command::Stop => group.stop = true,
        }
    }

    fn write(&mut self, writes: Vec<Write>) -> Result<(), WriteError> {
        if writes.is_empty() {
            return Ok(());
        }
        if let Some(text) = self.space.shortage() {
            self.refuse(writes, &text);
            return Ok(());
        }
        self.timers.commit_ns = clock::boot_ns();
        match self.transact(&writes) {
            Ok(committed) => {
                self.deliver(writes, committed);
                Ok(())
            }
            Err(error) => {
                self.memory.names = Names::default();
                if !is_full(&error) {
                    return Err(self.fail(error));
                }
                self.space.ran_out();
                self.refuse(writes, "the collector's volume is full. Nothing was recorded and nothing is lost: agents keep what is not acknowledged");
                Ok(())
            }
        }
    }

    fn transact(&mut self, writes: &[Write]) -> rusqlite::Result<Committed> {
        let now_ns = i64::try_from(clock::real_ns()).unwrap_or(i64::MAX);
        self.memory.names.keep_small();
        let sql = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut transaction = Transaction::new(&sql, &mut self.memory, now_ns);
        let mut answers = Vec::with_capacity(writes.len());
        for write in writes {
            answers.push(match write {
                Write::Hello(hello, _) => Answer::Hello(transaction.hello(hello)?),
                Write::Apply(batch, _) => Answer::Applied(transaction.batch(batch)?),
            });
        }
        let totals = transaction.finish()?;
        let outcomes = std::mem::take(&mut transaction.outcomes);
        sql.commit()?;
        let spent = clock::boot_ns().saturating_sub(self.timers.commit_ns);
        self.metrics.commit_seconds.observe(Duration::from_nanos(spent).as_secs_f64());
        Ok(Committed { answers, totals, outcomes })
    }

    /// After COMMIT: totals first, so that whoever is answered sees them.
    fn deliver(&mut self, writes: Vec<Write>, committed: Committed) {
        self.set_condition(Condition::Writable);
        self.count(&committed.outcomes);
        let mut totals = self.totals.write().unwrap_or_else(PoisonError::into_inner);
        for (series, amounts) in committed.totals {
            totals.set(series, &amounts);
        }
        drop(totals);
        for (write, answer) in writes.into_iter().zip(committed.answers) {
            match (write, answer) {
                (Write::Hello(hello, reply), Answer::Hello(welcomed)) => {
                    self.welcome(hello, reply, welcomed);
                }
                (Write::Apply(_, reply), Answer::Applied(applied)) => {
                    answer_with(reply, Ok(applied))
                }
                _ => {}
            }
        }
    }

    fn welcome(&mut self, hello: Hello, reply: Reply<Welcome>, welcomed: Option<Welcome>) {
        let Some(welcome) = welcomed else {
            let limit = self.memory.max_nodes;
            return answer_with(reply, Err(Refused::TooManyNodes { limit }));
        };
        if welcome.regressed {
            self.metrics.regressions.inc();
        }
        let devices = hello.devices.into_iter().collect();
        self.memory.connected.insert(welcome.node, Connected { epoch: welcome.epoch, devices });
        answer_with(reply, Ok(welcome));
    }

    fn refuse(&mut self, writes: Vec<Write>, text: &str) {
        let what_to_do = self.space.what_to_do();
        let full = || Refused::Full { text: text.to_owned(), what_to_do: what_to_do.clone() };
        self.set_condition(Condition::Full(format!("{text}; {what_to_do}")));
        for write in writes {
            match write {
                Write::Hello(_, reply) => answer_with(reply, Err(full())),
                Write::Apply(_, reply) => answer_with(reply, Err(full())),
            }
        }
    }

    fn count(&self, outcomes: &Outcomes) {
        self.metrics.commits.inc();
        self.metrics.applied.inc_by(outcomes.applied);
        self.metrics.duplicate.inc_by(outcomes.duplicate);
        self.metrics.gaps.inc_by(outcomes.gaps);
        self.metrics.unknown_counters.inc_by(outcomes.unknown_counters);
        for (reason, count) in &outcomes.quarantined {
            let labels = ["quarantined", *reason];
            self.metrics.quarantined.with_label_values(&labels).inc_by(*count);
        }
    }

    // --- housekeeping ---

    fn keep_house(&mut self) -> Result<(), WriteError> {
        let shortage = self.space.shortage();
        self.set_condition(match &shortage {
            Some(text) => Condition::Full(format!("{text}; {}", self.space.what_to_do())),
            None => Condition::Writable,
        });
        let wal = std::fs::metadata(self.folder.wal()).map_or(0, |it| it.len());
        self.metrics.wal_bytes.set(i64::try_from(wal).unwrap_or(i64::MAX));
        self.retire();
        // Deletion needs room too; it goes on when there is some.
        if shortage.is_some() {
            return Ok(());
        }
        match self.fold() {
            Err(error) if !is_full(&error) => Err(self.fail(error)),
            _ => Ok(()),
        }
    }

    /// Closes hours, and deletes the records of closed ones.
    fn fold(&mut self) -> rusqlite::Result<()> {
        let signed = |duration| nanoseconds(duration).cast_signed();
        let now_ns = i64::try_from(clock::real_ns()).unwrap_or(i64::MAX);
        let at_latest_ns = signed(self.keep_records);
        let final_after_ns = signed(self.final_after);
        let terms = Terms { now_ns, final_after_ns, at_latest_ns };
        if let Some(hour) = self.timers.closing.step(&mut self.db, terms)? {
            self.memory.closed_through = Some(hour);
        }
        let before_ns = now_ns.saturating_sub(at_latest_ns);
        self.timers.retention.step(&mut self.db, before_ns, self.memory.closed_through)
    }

    fn retire(&mut self) {
        let now = clock::boot_ns();
        if now.saturating_sub(self.timers.retire_ns) < nanoseconds(RETIRE_EVERY) {
            return;
        }
        self.timers.retire_ns = now;
        let now_s = (clock::real_ns() / 1_000_000_000).cast_signed();
        let (tenants, instances) = self.memory.view.retire(now_s);
        let mut totals = self.totals.write().unwrap_or_else(PoisonError::into_inner);
        for labels in &tenants {
            totals.retire_tenant(labels);
        }
        if !instances.is_empty() {
            totals.retire_instances(&instances);
        }
    }

    fn set_condition(&self, condition: Condition) {
        self.metrics.writable.set(i64::from(condition == Condition::Writable));
        let changed = |now: &mut Condition| {
            let changed = std::mem::discriminant(now) != std::mem::discriminant(&condition);
            *now = condition.clone();
            changed
        };
        if self.condition.send_if_modified(changed) {
            match &condition {
                Condition::Full(text) => tracing::error!("{text}"),
                Condition::Writable => tracing::info!("the ledger takes records again"),
            }
        }
    }

    /// Marks damage, so that the next start sets the database aside instead of failing again.
    fn fail(&self, error: rusqlite::Error) -> WriteError {
        if is_damage(&error)
            && let Err(failed) = std::fs::write(self.folder.damage_mark(), error.to_string())
        {
            tracing::error!("cannot mark the damaged ledger: {failed}");
        }
        WriteError(error)
    }
}

// === impl Group ===

impl Group {
    fn has_room(&self) -> bool {
        !self.stop && self.bytes < GROUP_BYTES && self.writes.len() < GROUP_COMMANDS
    }
}

/// The one who asked may have gone; its records are committed all the same.
fn answer_with<T>(reply: Reply<T>, answer: Result<T, Refused>) {
    if reply.send(answer).is_err() {
        tracing::debug!("a stream ended before its answer");
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
