//! CUDA driver calls by process, counted in the kernel.
//!
//! `Tracer` owns the eBPF object, the hooked libraries and what is known about processes. It never
//! fails: what cannot be traced is said in `CudaReadings::tracing`, and the agent goes on without.

mod belongings;
pub mod bpf;
mod decode;
mod driver;
mod govern;
mod governor;
pub(crate) mod hooks;
mod inheritance;
pub mod library;
mod lives;
mod log;
pub mod pins;
mod probe;
mod reason;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use agent_ebpf::keys::Program;
use agent_ebpf::{Event, LOSSES, Row, flag};
use tokio::io::unix::AsyncFd;

use crate::clock;
use crate::config;
use crate::model::readings::{Change, CudaReadings, HitCosts, Tracing};
use crate::model::units::BootNs;
use crate::model::usage::CudaBaseline;
use crate::samplers::process::decode::FileId;
use crate::samplers::process::driver::Proc;
use belongings::{Owners, Parts, Uuids};
use driver::{Bounds, Kernel, KernelError};
use governor::driver::Governing;
use hooks::Group;
use inheritance::{Found, Inheritance};
use library::Libraries;
use library::coverage::LibraryCoverage;
use lives::{Around, Lives, Present, Tracked};
use pins::driver::Pins;

/// How many processes are asked for their mappings in one reading: a large one takes milliseconds.
const MAPPINGS_PER_READING: usize = 8;
/// How often it is looked for what ended programs have left, where some have ended.
const SWEEP_NS: u64 = 2_000_000_000;
/// This part of `cuda.max_processes` ended since then is reason not to wait: the maps that hold what
/// they left have room for a few programs of each.
const HURRY: usize = 4;

/// How often what a predecessor left is looked at: a program that ends in between is in the sum of
/// ended programs a moment before its end can be read, and seems to have lost its owner.
const STOCKTAKINGS: usize = 16;

/// How long hooks of a predecessor that nobody has asked for stay: a library may be found late.
const ORPHANS_NS: u64 = 15_000_000_000;

/// Traces CUDA calls. Hooks are gone when it is dropped. When the agent dies, those that are pinned
/// stay for the next one.
#[derive(Debug)]
pub struct Tracer {
    state: State,
    libraries: Libraries,
    proc: Proc,
    config: config::Cuda,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one of it")]
enum State {
    Off {
        reason: String,
        /// When tracing begins again by itself, where somebody asked for a pause.
        until: Option<BootNs>,
    },
    On(Running),
}

#[derive(Debug)]
struct Running {
    /// `None` = there is no bound on what tracing costs. Before the kernel: its thread uses the maps.
    governing: Option<Governing>,
    costs: HitCosts,
    /// Groups that the governor wants on again and that could not be put on.
    unrestored: BTreeMap<FileId, BTreeSet<Group>>,
    kernel: Kernel,
    lives: Lives,
    inherited: Inheritance,
    /// Processes that the driver of the GPU lists, by tgid.
    tracked: BTreeMap<u32, Tracked>,
    max_tracked: usize,
    /// When hooks that a predecessor left and nobody needs go; `None` = they are gone.
    orphans_until: Option<BootNs>,
    uuids: Uuids,
    /// Programs may have ended since it was looked for what they left.
    left: bool,
    /// How many have.
    ended: usize,
    /// What ended so fast is looked at a second time as soon.
    hurried: bool,
    swept: BootNs,
    /// Made on the first wait, because it needs a runtime.
    ring: Option<AsyncFd<OwnedFd>>,
}

impl Tracer {
    /// Loads the object and hooks the libraries that exist. Takes some 100 ms.
    #[must_use]
    pub fn start(config: &config::Cuda, proc_root: &Path) -> Self {
        Self::after(config, proc_root, None)
    }

    /// The same after an agent that has accounted for `baseline` of what is counted in the kernel.
    #[must_use]
    pub fn after(config: &config::Cuda, proc_root: &Path, baseline: Option<&CudaBaseline>) -> Self {
        let proc = Proc::new(proc_root);
        let off = State::Off { reason: "tracing has not begun".to_owned(), until: None };
        let mut tracer = Self {
            state: off,
            libraries: Libraries::new(config, &proc),
            proc,
            config: config.clone(),
        };
        tracer.begin(baseline);
        tracer
    }

    fn begin(&mut self, baseline: Option<&CudaBaseline>) {
        self.state = match Running::start(&self.config, &self.proc, baseline) {
            Ok(mut running) => {
                running.refresh(&mut self.libraries, clock::boot());
                driver::trim_memory();
                State::On(running)
            }
            Err(reason) => {
                tracing::warn!("CUDA calls are not traced: {reason}");
                State::Off { reason, until: None }
            }
        };
    }

    /// Takes every hook off until then; pins and counts go, too. What is counted is read before.
    pub fn pause(&mut self, until: BootNs, reason: String) {
        self.state = State::Off { reason, until: Some(until) };
        self.libraries = Libraries::new(&self.config, &self.proc);
    }

    /// Ends a pause. Returns whether there was one.
    pub fn resume(&mut self) -> bool {
        let paused = matches!(self.state, State::Off { until: Some(_), .. });
        if paused {
            self.begin(None);
        }
        paused
    }

    /// Everything that was counted. Costs two system calls for each 256 processes.
    pub fn read(&mut self, at: BootNs) -> CudaReadings {
        if matches!(self.state, State::Off { until: Some(until), .. } if until <= at) {
            tracing::info!("the pause of tracing has ended");
            self.begin(None);
        }
        match &mut self.state {
            State::Off { reason, .. } => untraced(reason.clone()),
            State::On(running) => {
                running.refresh(&mut self.libraries, at);
                running.govern_all(&mut self.libraries);
                running
                    .read(at, &mut self.libraries, &self.proc)
                    .unwrap_or_else(|error| untraced(error.to_string()))
            }
        }
    }

    /// Names the processes that the GPU's driver lists: their exit must be noticed even if they
    /// never make a CUDA call, and their silence is reported. Beyond `cuda.max_processes` the
    /// ones with the highest tgid are left out.
    pub fn track(&mut self, tgids: &BTreeSet<u32>) {
        if let State::On(running) = &mut self.state {
            running.track(tgids, &self.proc);
        }
    }

    /// To be called before the first record of what was read goes to the spool: a successor that finds
    /// no baseline there then knows that it may be elsewhere.
    pub fn note_recorded(&mut self) {
        if let State::On(running) = &mut self.state
            && let Err(error) = running.kernel.note_recorded()
        {
            tracing::warn!("a successor without this spool may count calls again: {error}");
        }
    }

    /// Resolves when a process appeared, executed another program, exited, or launched after a
    /// silence. May be dropped at any time without losing anything.
    pub async fn changed(&mut self) -> Change {
        match &mut self.state {
            State::Off { .. } => std::future::pending().await,
            State::On(running) => loop {
                match running.event().await {
                    Happened::Told(change) => return change,
                    Happened::Wished(change) => running.govern(change, &mut self.libraries),
                }
            },
        }
    }

    /// Ends without detaching: hooks and counts that are pinned stay, for a successor. Returns
    /// whether there are any; else everything is detached.
    pub fn leave(self) -> bool {
        match &self.state {
            State::On(running) => running.kernel.leave(),
            State::Off { .. } => false,
        }
    }

    /// Detaches every hook.
    pub fn stop(self) {
        let begun = clock::boot();
        library::driver::settle_pages();
        drop(self);
        let took_ms = clock::boot().since(begun) / 1_000_000;
        tracing::debug!(took_ms, "tracing of CUDA calls has stopped");
    }

    /// What is hooked in each library file, for people.
    #[must_use]
    pub fn coverage(&self) -> Vec<LibraryCoverage> {
        self.libraries.coverage()
    }
}

/// Where hooks and counts outlive this agent, or why they do not.
fn pins(root: Option<&Path>) -> Result<Pins, String> {
    let root = root.ok_or("cuda.pin_root is empty")?;
    Pins::open(root).map_err(|it| it.to_string())
}

/// Takes stock of what a predecessor left.
fn inherit(
    kernel: &mut Kernel,
    lives: &mut Lives,
    baseline: Option<&CudaBaseline>,
) -> Result<Inheritance, KernelError> {
    let mut found = Found { epoch: kernel.epoch(), fresh: kernel.is_fresh(), ..Found::default() };
    found.recorded = kernel.is_recorded()?;
    if found.fresh {
        return Ok(Inheritance::new(&found, baseline));
    }
    // Records that a predecessor wrote know open spans until then.
    let now = clock::boot();
    let ticks = Proc::ticks_per_second();
    let identify = |tgid: u32, row: &Row| decode::process_id(tgid, row, ticks);
    for (tgid, row) in kernel.rows()? {
        let (process, counts) = (identify(tgid, &row), decode::counts_at(&row, now));
        match row.flags[flag::DEAD] {
            0 => drop(found.live.insert(process, counts)),
            _ => found.ends.push((process, counts)),
        }
    }
    let mut inherited: Option<Inheritance> = None;
    for _ in 0..STOCKTAKINGS {
        kernel.drain(|event, record| {
            if matches!(event, Event::Exited | Event::Executed) {
                let process = identify(record.tgid, &record.row);
                found.ends.push((process, decode::counts(&record.row)));
            }
            lives.note(event, record);
        });
        found.retired = decode::counts(&kernel.retired()?);
        let next = Inheritance::new(&found, baseline);
        inherited = Some(inherited.map_or(next, |it| it.least(&next)));
    }
    Ok(inherited.unwrap_or_default())
}

/// Nothing is known: not even that nobody launched.
fn untraced(reason: String) -> CudaReadings {
    let tracing = Tracing { reason, ..Tracing::default() };
    CudaReadings { tracing, ..CudaReadings::default() }
}

impl Running {
    fn start(
        config: &config::Cuda,
        proc: &Proc,
        baseline: Option<&CudaBaseline>,
    ) -> Result<Self, String> {
        if !config.enabled {
            return Err("cuda.enabled is false".to_owned());
        }
        let pins = pins(config.pin_root.as_deref());
        let bounds =
            Bounds { max_processes: config.max_processes, max_allocations: config.max_allocations };
        let mut kernel = Kernel::load(bounds, proc, pins).map_err(|it| reason::of(&it))?;
        if let Some(why) = kernel.unpinned() {
            tracing::warn!("CUDA calls during a restart of the agent are not counted: {why}");
        }
        if let Some(kept) = kernel.kept_bounds() {
            tracing::warn!("{}", reason::of_kept(kept));
        }
        let mut lives = Lives::new(Proc::ticks_per_second(), config.max_processes);
        let inherited = inherit(&mut kernel, &mut lives, baseline).map_err(|it| reason::of(&it))?;
        let costs = kernel.hit_costs();
        tracing::info!(?costs, "what a hit on a hook costs the process that makes it");
        let governing = govern::start(config, &kernel, proc);
        Ok(Self {
            governing,
            costs,
            unrestored: BTreeMap::new(),
            inherited,
            kernel,
            lives,
            tracked: BTreeMap::new(),
            max_tracked: usize::try_from(config.max_processes).unwrap_or(usize::MAX),
            orphans_until: Some(clock::boot() + ORPHANS_NS),
            uuids: Uuids::new(),
            left: true,
            ended: 0,
            hurried: false,
            swept: BootNs::default(),
            ring: None,
        })
    }

    fn refresh(&mut self, libraries: &mut Libraries, at: BootNs) {
        let urgent = self.lives.mapping_others(&libraries.known_files());
        let mapped = self.lives.mapped_files();
        if libraries.refresh(&mut self.kernel, at, urgent, &mapped) {
            self.lives.forget_mappings();
            self.tell_files(libraries);
        }
        if self.orphans_until.is_some_and(|it| it <= at) {
            self.orphans_until = None;
            self.kernel.remove_orphans();
        }
    }

    fn read(
        &mut self,
        at: BootNs,
        libraries: &mut Libraries,
        proc: &Proc,
    ) -> Result<CudaReadings, KernelError> {
        self.kernel.check_owner()?;
        // The overflow before rows: what a row lost to it in between is missing, not counted twice.
        let overflow = decode::counts(&self.kernel.overflow()?);
        // Rows before records: a process that exits in between is found in both, never in neither.
        let rows = self.kernel.rows()?;
        self.drain();
        let owners = Owners::new(&rows);
        let is_on_several = rows.iter().any(|(_, it)| it.flags[flag::SEVERAL_DEVICES] != 0);
        self.left |= rows.iter().any(|(_, it)| it.resets != 0);
        let mut present = self.lives.observe(rows, self.tracked.values().copied());
        for (tgid, row) in std::mem::take(&mut present.dead) {
            // Else the kernel took it out meanwhile, and will say so.
            if self.kernel.remove(tgid, &row) {
                self.lives.bury(&mut present, tgid, row);
            }
        }
        let hooked = libraries.take_hooked_files();
        self.map(&present, at, libraries);
        let lost = self.kernel.lost()?;
        let several = is_on_several || self.lives.ended_on_several();
        let parts = if several { self.kernel.belongings.parts()? } else { Parts::new() };
        self.name_devices(&present)?;
        let around = Around {
            at,
            hooked: &hooked,
            blind_until: &libraries.blind_until(),
            memory_since: &libraries.memory_since(),
            parts: &parts,
            uuids: &self.uuids,
        };
        self.tell_mappings();
        let mut replaced = self.lives.replaced(around);
        let mut processes = self.lives.report(&present, around);
        self.add_missed(at, &mut replaced, &mut processes);
        self.sweep(at, &owners, proc)?;
        Ok(CudaReadings {
            tracing: self.tracing(libraries, &lost, at),
            processes,
            replaced,
            cgroups: self.cgroups()?,
            overflow: overflow.plus(&self.inherited.ownerless).plus(&self.lives.overflow()),
            lineage: self.inherited.lineage,
        })
    }

    /// A process can make who reads its mappings wait: so they are not read here.
    fn map(&mut self, present: &Present, at: BootNs, libraries: &mut Libraries) {
        let due = self.lives.unmapped(present, at, MAPPINGS_PER_READING);
        if libraries.ask_mappings(&due) {
            self.lives.asked(due);
        }
        for (process, files) in libraries.take_mappings() {
            self.lives.mapped(process, at, files);
        }
    }

    fn cgroups(&mut self) -> Result<BTreeMap<u64, Arc<str>>, KernelError> {
        let cgroups = self.kernel.cgroups()?.into_iter();
        Ok(cgroups.filter_map(|(id, it)| Some((id, decode::cgroup_path(&it)?.into()))).collect())
    }

    /// One system call for each program that uses a device and has not asked for its name.
    fn name_devices(&mut self, present: &Present) -> Result<(), KernelError> {
        for (program, device) in self.lives.unnamed(present, &self.uuids) {
            if let Some(uuid) = self.kernel.belongings.uuid(program, device)? {
                self.uuids.insert((program, device), uuid);
            }
        }
        Ok(())
    }

    /// Removes what ended programs have left in the kernel, some time after they ended.
    fn sweep(&mut self, at: BootNs, owners: &Owners, proc: &Proc) -> Result<(), KernelError> {
        let has_suspects = self.kernel.belongings.has_suspects();
        let many = self.ended >= self.max_tracked / HURRY;
        let is_time = at.since(self.swept) >= SWEEP_NS || many || self.hurried && has_suspects;
        if !(self.left || has_suspects) || !is_time {
            return Ok(());
        }
        (self.left, self.ended, self.hurried) = (false, 0, many);
        self.swept = at;
        self.uuids.retain(|(program, _), _| owners.has(*program));
        let ticks = Proc::ticks_per_second();
        let is_alive = |it: Program| {
            let started = decode::started(it, ticks);
            proc.process_id(it.tgid).is_some_and(|it| it.start_ticks == started)
        };
        self.kernel.belongings.sweep(owners, is_alive)
    }

    fn tracing(&self, libraries: &Libraries, lost: &[u64; LOSSES], at: BootNs) -> Tracing {
        let totals = libraries.totals();
        let complaint = libraries.complaint();
        let unwatched = libraries.unwatched(at);
        let others = decode::Losses {
            ends: self.lives.lost(),
            looks: unwatched.times,
            waits: self.waits_cut(),
        };
        Tracing {
            on: complaint.is_none(),
            reason: complaint.unwrap_or_else(|| libraries.shortfalls()),
            hooks_attached: totals.attached,
            hooks_wanted: totals.wanted,
            hooks_slow: totals.slow,
            lost: decode::lost(lost, others),
            unwatched_ns: unwatched.ns,
            sampling: self.sampling(),
            hit_costs: Some(self.costs),
            memory_held_back: libraries.memory_held_back(),
            unpinned: self.kernel.unpinned().map(str::to_owned),
            kept_bounds: self.kernel.kept_bounds().map(reason::of_kept),
            kernel_lacks: self.kernel.is_one_by_one().then_some(reason::ONE_BY_ONE),
        }
    }

    /// The most urgent of what was told; `None` = nothing was.
    fn drain(&mut self) -> Option<Change> {
        let (lives, tracked) = (&mut self.lives, &mut self.tracked);
        let (left, ended) = (&mut self.left, &mut self.ended);
        let governing = self.governing.as_ref();
        let mut change = None;
        self.kernel.drain(|event, record| {
            change = match event {
                Event::Awoke => change.or(Some(Change::Wake)),
                _ => Some(Change::Life),
            };
            if let (Event::Appeared | Event::Awoke, Some(it)) = (event, &governing) {
                it.look();
            }
            lives.note(event, record);
            if matches!(event, Event::Executed | Event::Exited) {
                *left = true;
                *ended += 1;
            }
            if event == Event::Exited {
                tracked.remove(&record.tgid);
            }
        });
        change
    }

    fn track(&mut self, tgids: &BTreeSet<u32>, proc: &Proc) {
        let gone: Vec<u32> =
            self.tracked.keys().filter(|it| !tgids.contains(it)).copied().collect();
        for tgid in gone {
            self.tracked.remove(&tgid);
            self.kernel.untrack(tgid);
        }
        for tgid in tgids {
            if self.tracked.len() < self.max_tracked && !self.tracked.contains_key(tgid) {
                self.track_one(*tgid, proc);
            }
        }
    }

    /// The kernel first: a process that exits while we look it up is then noticed.
    fn track_one(&mut self, tgid: u32, proc: &Proc) {
        if let Err(error) = self.kernel.track(tgid) {
            tracing::debug!(tgid, "its exit will be seen at a tick only: {error}");
            return;
        }
        match (proc.process_id(tgid), proc.uid(tgid)) {
            (Some(process), Some(uid)) => {
                self.tracked.insert(tgid, Tracked { process, uid });
            }
            _ => self.kernel.untrack(tgid),
        }
    }

    async fn event(&mut self) -> Happened {
        loop {
            self.watch_ring();
            let wished = async {
                match &mut self.governing {
                    Some(it) => it.changes.recv().await,
                    None => None,
                }
            };
            tokio::select! {
                Some(change) = wished => return Happened::Wished(change),
                () = readable(self.ring.as_ref()) => {}
            }
            if let Some(change) = self.drain() {
                return Happened::Told(change);
            }
        }
    }

    fn watch_ring(&mut self) {
        if self.ring.is_none() {
            match self.kernel.watch() {
                Ok(watched) => self.ring = Some(watched),
                Err(error) => {
                    tracing::warn!("process events are seen at the tick only: {error}");
                }
            }
        }
    }
}

/// Resolves when a record has arrived; never without a ring.
async fn readable(ring: Option<&AsyncFd<OwnedFd>>) {
    let Some(ring) = ring else { return std::future::pending().await };
    match ring.readable().await {
        Ok(mut guard) => guard.clear_ready(),
        Err(error) => {
            tracing::warn!("process events are seen at the tick only: {error}");
            std::future::pending().await
        }
    }
}

/// What the tracer waits for.
#[derive(Debug)]
enum Happened {
    Told(Change),
    Wished(governor::Change),
}
