//! The governor's own thread: looks at the counters several times a second, and opens the windows.
//!
//! It has a thread of its own because a window lasts a millisecond or two, and because the kernel
//! takes tens of milliseconds to put hooks on and off. Of these the traced process notices the last
//! tenth of a millisecond of the first, and the first tenth of the second.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use aya::maps::{Array, MapData};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::gates::{self, Gates};
use super::stopwatch::driver::Stopwatches;
use super::{Change, Counted, CpuTimes, Governor, Rows, Window};
use crate::clock;
use crate::model::ids::ProcessId;
use crate::model::units::BootNs;
use crate::samplers::cuda::bpf::multi::Programs;
use crate::samplers::cuda::decode;
use crate::samplers::cuda::driver::{KernelError, RowReader, attach_window};
use crate::samplers::cuda::hooks::Group;
use crate::samplers::cuda::probe::Point;
use crate::samplers::process::decode::FileId;
use crate::samplers::process::driver::Proc;

/// How often the counters are looked at, and how often where something is near its budget.
const LOOK: Duration = Duration::from_millis(200);
const LOOK_CLOSELY: Duration = Duration::from_millis(50);
/// And where nobody makes calls: the tracer tells when somebody begins.
const LOOK_AT_REST: Duration = Duration::from_secs(2);

/// What the thread needs of the kernel.
pub(crate) struct Hands {
    pub(crate) programs: Arc<Programs>,
    pub(crate) rows: RowReader,
    pub(crate) gates: Array<MapData, u64>,
    pub(crate) refused: Array<MapData, u64>,
    pub(crate) proc: Proc,
}

impl fmt::Debug for Hands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hands").field("programs", &self.programs).finish_non_exhaustive()
    }
}

/// What a window puts on.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) file: OwnedFd,
    pub(crate) gates: Gates,
    pub(crate) points: Vec<Point>,
}

#[derive(Debug)]
enum Order {
    /// These groups are off, and their gates closed.
    Sample(FileId, BTreeSet<Group>, Target),
    /// They are on again since then.
    Restored(FileId, BootNs),
    /// Somebody makes calls again.
    Look,
    Stop,
}

/// The thread, as the tracer sees it. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Governing {
    governor: Arc<Mutex<Governor>>,
    orders: Sender<Order>,
    pub(crate) changes: UnboundedReceiver<Change>,
    thread: Option<JoinHandle<()>>,
}

impl Governing {
    pub(crate) fn start(governor: Governor, hands: Hands) -> std::io::Result<Self> {
        let governor = Arc::new(Mutex::new(governor));
        let (orders, inbox) = channel();
        let (outbox, changes) = unbounded_channel();
        let worker = Worker {
            governor: Arc::clone(&governor),
            hands,
            inbox,
            outbox,
            targets: BTreeMap::new(),
            watches: Stopwatches::default(),
            look: clock::boot(),
        };
        let thread =
            std::thread::Builder::new().name("governor".to_owned()).spawn(move || worker.run())?;
        Ok(Self { governor, orders, changes, thread: Some(thread) })
    }

    /// A panic elsewhere leaves a decision half made at worst, never a broken invariant.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Governor> {
        self.governor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn sample(&self, file: FileId, groups: BTreeSet<Group>, target: Target) {
        self.order(Order::Sample(file, groups, target));
    }

    pub(crate) fn restored(&self, file: FileId) {
        self.order(Order::Restored(file, clock::boot()));
    }

    pub(crate) fn look(&self) {
        self.order(Order::Look);
    }

    fn order(&self, order: Order) {
        if self.orders.send(order).is_err() {
            tracing::warn!("the governor's thread is gone: hooks stay as they are");
        }
    }
}

impl Drop for Governing {
    fn drop(&mut self) {
        self.order(Order::Stop);
        if let Some(Err(_panic)) = self.thread.take().map(JoinHandle::join) {
            tracing::warn!("the governor's thread has panicked");
        }
    }
}

struct Worker {
    governor: Arc<Mutex<Governor>>,
    hands: Hands,
    inbox: Receiver<Order>,
    outbox: UnboundedSender<Change>,
    targets: BTreeMap<FileId, Target>,
    watches: Stopwatches,
    /// When the counters are looked at next.
    look: BootNs,
}

impl Worker {
    fn run(mut self) {
        if let Err(error) = nix::sys::prctl::set_timerslack(1_000) {
            tracing::debug!("windows are less exact: {error}");
        }
        loop {
            let window = self.governor().next().map(|(at, length, file, _)| (at, length, file));
            let due = window.map_or(self.look, |it| it.0.min(self.look));
            let wait = Duration::from_nanos(due.since(clock::boot()));
            match self.inbox.recv_timeout(wait) {
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(order) => self.obey(order),
                Err(RecvTimeoutError::Timeout) => match window {
                    Some((at, length, file)) if at <= self.look => self.window(file, length),
                    _ => self.look(),
                },
            }
        }
    }

    fn governor(&self) -> MutexGuard<'_, Governor> {
        self.governor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Sample(file, groups, target) => {
                self.targets.insert(file, target);
                let cpu = self.follow();
                let Some(rows) = self.rows() else { return };
                self.governor().sampled(clock::boot(), file, groups, (&rows, &cpu));
            }
            Order::Restored(file, at) => {
                let cpu = self.follow();
                self.governor().restored(at, file, &cpu);
                self.targets.remove(&file);
                self.follow();
            }
            Order::Look => self.look = self.look.min(clock::boot() + as_ns(LOOK)),
            Order::Stop => {}
        }
    }

    fn look(&mut self) {
        let rows = self.rows();
        let at = clock::boot();
        let mut governor = self.governor.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = rows.map(|it| governor.observe(at, &it)).unwrap_or_default();
        let pause = match (governor.is_near(), governor.is_at_rest(at)) {
            (true, _) => LOOK_CLOSELY,
            (false, false) => LOOK,
            (false, true) => LOOK_AT_REST,
        };
        drop(governor);
        for change in changes {
            // The tracer is gone: so will this thread be.
            drop(self.outbox.send(change));
        }
        self.look = at + as_ns(pause);
    }

    fn window(&mut self, file: FileId, length_ns: u64) {
        match self.open(file, length_ns) {
            Ok(Some(window)) => self.governor().closed(&window),
            Ok(None) => self.governor().skipped(clock::boot(), file),
            Err(error) => {
                tracing::warn!("calls between two windows are not estimated: {error}");
                self.governor().skipped(clock::boot(), file);
            }
        }
    }

    fn open(&mut self, file: FileId, length_ns: u64) -> Result<Option<Window>, KernelError> {
        // Before the hooks are on: it takes a while.
        self.follow();
        let Some(target) = self.targets.get(&file) else { return Ok(None) };
        let gates: BTreeSet<u32> =
            target.points.iter().filter_map(|it| target.gates.of(it.hook.group)).collect();
        let before = self.refused(&gates)?;
        let links =
            attach_window(&self.hands.programs, target.file.as_fd(), target.gates, &target.points)?;
        self.set(&gates, false)?;
        let (opened, ran_before) = (clock::boot(), self.watches.read());
        std::thread::sleep(Duration::from_nanos(length_ns));
        self.set(&gates, true)?;
        let (closed, cpu) = (clock::boot(), self.watches.read());
        let_go(links);
        let refused = self.refused(&gates)?.saturating_sub(before);
        let rows = self.rows();
        Ok(rows.map(|rows| Window {
            file,
            opened,
            closed,
            refused,
            ran: difference(&ran_before, &cpu),
            cpu,
            rows,
        }))
    }

    fn set(&mut self, all: &BTreeSet<u32>, closed: bool) -> Result<(), KernelError> {
        for gate in all {
            self.hands.gates.set(*gate, gates::held(closed, clock::boot()), 0)?;
        }
        Ok(())
    }

    fn refused(&self, gates: &BTreeSet<u32>) -> Result<u64, KernelError> {
        gates.iter().try_fold(0, |sum, gate| Ok(sum + self.hands.refused.get(gate, 0)?))
    }

    fn rows(&mut self) -> Option<Rows> {
        match self.hands.rows.read() {
            Ok(rows) => {
                let (at, ticks) = (clock::boot(), Proc::ticks_per_second());
                let counted = rows.into_iter().map(|(tgid, row)| {
                    let start = BootNs(row.start_boottime_ns);
                    let counts = *decode::counts_at(&row, at).as_array();
                    let waits_ended = row.waits_ended;
                    let counted = Counted { start, counts, waits_ended };
                    (decode::process_id(tgid, &row, ticks), counted)
                });
                Some(counted.collect())
            }
            Err(error) => {
                tracing::warn!("the cost of tracing is not known: {error}");
                None
            }
        }
    }

    /// CPU time of all processes of sampled files, from now on with the threads that they have now.
    fn follow(&mut self) -> CpuTimes {
        let governor = self.governor();
        let users: BTreeSet<ProcessId> =
            self.targets.keys().flat_map(|file| governor.users_of(*file)).collect();
        drop(governor);
        self.watches.follow(&self.hands.proc, &users.into_iter().collect::<Vec<_>>());
        self.watches.read()
    }
}

fn as_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What was added to each that is in both.
fn difference(before: &CpuTimes, after: &CpuTimes) -> CpuTimes {
    let added = |(key, to): (&ProcessId, &u64)| Some((*key, to.saturating_sub(*before.get(key)?)));
    after.iter().filter_map(added).collect()
}

/// Detaches. The breakpoints of a link go at once, then the kernel waits for tens of milliseconds:
/// each link but the last goes on a thread of its own.
pub(crate) fn let_go(mut links: Vec<OwnedFd>) {
    let last = links.pop();
    for link in links {
        let spawned = std::thread::Builder::new().spawn(move || drop(link));
        if let Err(error) = spawned {
            // Dropped with the closure that could not be run.
            tracing::debug!("a link was let go here: {error}");
        }
    }
    drop(last);
}
