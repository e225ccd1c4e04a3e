//! The eBPF object in the kernel: loads it, attaches it, reads its maps and its ring. What the
//! numbers mean is in `decode.rs`.

#![expect(unsafe_code, reason = "the runtime's event loop and the allocator are spoken to here")]

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use agent_ebpf::keys::Sight;
use agent_ebpf::layout::LAYOUT;
use agent_ebpf::{Cgroup, LOSSES, Offsets, Ownership, Record, Row};
use aya::maps::{Array, HashMap, Map, MapData, MapError, RingBuf};
use aya::programs::uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope};
use aya::programs::{ProgramError, UProbe};
use aya::{Ebpf, EbpfError, EbpfLoader};
use aya_log::EbpfLogger;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::belongings::driver::Belongings;
use super::bpf::driver::{self as bpf, Batch, LinkInfo, Moment, Places};
use super::bpf::multi::{MultiError, Programs};
use super::governor::calibration::{self, driver::CalibrationError};
use super::governor::cost::ASSUMED;
use super::governor::driver::Hands;
use super::governor::gates::{self, Gates};
use super::hooks::{Group, HOOKS, Kind};
use super::library::driver::LibraryFile;
use super::log::Bridge;
use super::pins::driver::{Link, PinError, Pins};
use super::pins::{LeftMaps, LinkName, MapSize};
use super::probe::Point;
use crate::clock;
use crate::model::readings::HitCosts;
use crate::model::units::BootNs;
use crate::samplers::process::decode as records;
use crate::samplers::process::decode::FileId;
use crate::samplers::process::driver::{self as process, Proc, ProcessError, Tracepoint};

/// The object that `cargo xtask bpf` built.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/gleaner-ebpf"));

/// What failed in the kernel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KernelError {
    #[error("cannot load the eBPF object: {0}")]
    Load(#[from] EbpfError),
    #[error("the eBPF object has no map {0}")]
    NoMap(&'static str),
    #[error("cannot use a map of the eBPF object: {0}")]
    Map(#[from] MapError),
    #[error("cannot read the counters: {0}")]
    Read(#[source] io::Error),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    Multi(#[from] MultiError),
    #[error("the eBPF object has no program {0}")]
    NoProgram(&'static str),
    #[error("cannot attach uprobes: {0}")]
    Attach(#[from] ProgramError),
    #[error("another agent has taken the hooks over")]
    Replaced,
}

/// The loaded object. Dropping it detaches everything, unless what is pinned is kept.
pub(crate) struct Kernel {
    _life: Vec<Link>,
    /// Owns the programs where they are attached one by one.
    ebpf: Ebpf,
    /// `None` on kernels before 6.6: every place is attached for itself.
    multi: Option<Arc<Programs>>,
    /// Untyped, because it is read in batches through its descriptor.
    counters: Map,
    overflow: Array<MapData, Row>,
    retired: Array<MapData, Row>,
    lost: Array<MapData, u64>,
    tracked: HashMap<MapData, u32, u8>,
    cgroups: HashMap<MapData, u64, Cgroup>,
    events: RingBuf<MapData>,
    /// What programs have beside their rows.
    pub(crate) belongings: Belongings,
    owner: Array<MapData, u64>,
    ownership: Owned,
    logs: EbpfLogger<Bridge>,
    sights: Array<MapData, Sight>,
    gates: Map,
    refused: Map,
    rows: RowReader,
    offsets: Offsets,
    /// Of programs that are pinned.
    build: u64,
    /// The bounds of a predecessor's maps that go on, where they are not those that are configured.
    kept: Option<Bounds>,
    /// After the links: what is left of the folder goes with it.
    pins: Result<Pins, String>,
}

/// Reads every row, through a descriptor of its own.
#[derive(Debug)]
pub(crate) struct RowReader {
    counters: OwnedFd,
    batch: Batch,
}

impl RowReader {
    fn new(counters: &Map) -> Result<Self, KernelError> {
        Ok(Self {
            counters: again(counters)?,
            batch: Batch::new(size_of::<u32>(), size_of::<Row>(), BATCH),
        })
    }

    /// Two system calls for each 256 processes.
    pub(crate) fn read(&mut self) -> Result<Vec<(u32, Row)>, KernelError> {
        let mut rows = Vec::new();
        let scanned = self.batch.scan(self.counters.as_fd(), |key, value| {
            let tgid = key.try_into().ok().map(u32::from_ne_bytes);
            rows.extend(tgid.zip(records::row(value)));
        });
        scanned.map_err(KernelError::Read)?;
        Ok(rows)
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").field("multi", &self.multi).finish_non_exhaustive()
    }
}

/// What keeps one group of one library hooked; dropping it detaches.
#[derive(Debug)]
pub(crate) enum Links {
    Multi(Vec<Link>),
    Single(Vec<UProbeLink>, BootNs),
}

/// Links that are closed at one time: each takes a thread.
const CLOSED_AT_ONCE: usize = 32;

/// The kernel waits for each link tens of milliseconds until nobody runs its program any more. It can
/// wait for many at once.
pub(crate) fn detach(links: impl IntoIterator<Item = Links>) {
    let mut multi = Vec::new();
    for it in links {
        match it {
            Links::Multi(links) => multi.extend(links),
            Links::Single(links, _) => drop(links),
        }
    }
    while !multi.is_empty() {
        let rest = multi.split_off(multi.len().min(CLOSED_AT_ONCE));
        std::thread::scope(|scope| {
            for link in multi.drain(..) {
                // Where there is no thread for it, it is closed here and now.
                drop(std::thread::Builder::new().spawn_scoped(scope, move || drop(link)));
            }
        });
        multi = rest;
    }
}

impl Links {
    /// How many were there already: nothing was attached for them.
    pub(crate) fn adopted(&self) -> usize {
        match self {
            Self::Multi(links) => links.iter().filter(|it| it.adopted).count(),
            Self::Single(..) => 0,
        }
    }

    /// Since when no call of the group goes unseen.
    pub(crate) fn since(&self) -> BootNs {
        match self {
            Self::Multi(links) => links.iter().map(|it| it.since).max().unwrap_or_default(),
            Self::Single(_, since) => *since,
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Multi(links) => links.len(),
            Self::Single(links, _) => links.len(),
        }
    }
}

/// Entries that are read at once.
const BATCH: usize = 256;

/// How much the maps hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) max_processes: u32,
    pub(crate) max_allocations: u32,
}

const LEAST_ENTRIES: u32 = 1_024;

impl Bounds {
    /// The bounds of maps that go on, where they are others.
    fn kept_by(self, left: &LeftMaps) -> Option<Self> {
        let kept =
            Self { max_processes: left.room("COUNTERS")?, max_allocations: left.room("LIVE")? };
        (kept != self).then_some(kept)
    }

    fn of_maps(self) -> [(&'static str, u32); 7] {
        // A few processes may have many threads.
        let per_process =
            |entries: u32| self.max_processes.saturating_mul(entries).max(LEAST_ENTRIES);
        [
            ("COUNTERS", self.max_processes),
            ("TRACKED", self.max_processes),
            ("THREADS", per_process(4)),
            ("LIVE", self.max_allocations),
            ("CONTEXTS", per_process(4)),
            ("DEVICES", per_process(1)),
            ("UUIDS", per_process(8)),
        ]
    }
}

impl Kernel {
    /// Loads the object and hooks process life, or goes on with what a predecessor has pinned. No
    /// library is hooked yet. `pins`: the folder, or why there is none.
    pub(crate) fn load(
        bounds: Bounds,
        proc: &Proc,
        pins: Result<Pins, String>,
    ) -> Result<Self, KernelError> {
        proc.check_namespace()?;
        let offsets = process::offsets()?;
        let mut pins = pins;
        let (mut ebpf, kept) = load_object(&offsets, bounds, &mut pins)?;
        let build = build();
        let multi = load_multi(&ebpf).map(Arc::new);
        if multi.is_none() && pins.is_ok() {
            pins = Err("hooks cannot be pinned before Linux 6.6".to_owned());
            (ebpf, _) = load_object(&offsets, bounds, &mut pins)?;
        }
        // Before the maps are taken out: a program is loaded on top of all of them.
        let life = hook_life(&mut ebpf, &mut pins, build)?;
        if multi.is_none() {
            load_singles(&mut ebpf)?;
            if let Err(error) = bpf::raise_file_limit() {
                tracing::debug!("hooks of a few libraries only will find room: {error}");
            }
        }
        let logs = EbpfLogger::init_with_logger(&mut ebpf, Bridge)
            .map_err(|_not_a_ring| KernelError::NoMap("AYA_LOGS"))?;
        let mut owner = take(&mut ebpf, "OWNER")?.try_into()?;
        let counters = take(&mut ebpf, "COUNTERS")?;
        Ok(Self {
            _life: life,
            multi,
            rows: RowReader::new(&counters)?,
            counters,
            sights: take(&mut ebpf, "SIGHTS")?.try_into()?,
            gates: take(&mut ebpf, "GATES")?,
            refused: take(&mut ebpf, "REFUSED")?,
            overflow: take(&mut ebpf, "OVERFLOW")?.try_into()?,
            retired: take(&mut ebpf, "RETIRED")?.try_into()?,
            lost: take(&mut ebpf, "LOST")?.try_into()?,
            tracked: take(&mut ebpf, "TRACKED")?.try_into()?,
            cgroups: take(&mut ebpf, "CGROUPS")?.try_into()?,
            events: take(&mut ebpf, "EVENTS")?.try_into()?,
            belongings: Belongings::take(&mut ebpf)?,
            ownership: take_over(&mut owner)?,
            owner,
            logs,
            ebpf,
            offsets,
            build,
            kept: kept.filter(|_| pins.is_ok()),
            pins,
        })
    }

    /// The bounds that hold, where they are not those that are configured.
    pub(crate) fn kept_bounds(&self) -> Option<Bounds> {
        self.kept
    }

    /// Why nothing outlives this agent; `None` = hooks and counts do.
    pub(crate) fn unpinned(&self) -> Option<&str> {
        self.pins.as_ref().err().map(String::as_str)
    }

    /// Whether hooks come and go one by one, as on kernels before 6.6.
    pub(crate) fn is_one_by_one(&self) -> bool {
        self.multi.is_none()
    }

    /// Names the maps that count.
    pub(crate) fn epoch(&self) -> u64 {
        self.ownership.epoch
    }

    /// Whether no agent has used the maps before.
    pub(crate) fn is_fresh(&self) -> bool {
        self.ownership.generation == 1
    }

    /// Whether records of what is counted may be in a spool.
    pub(crate) fn is_recorded(&self) -> Result<bool, KernelError> {
        Ok(self.owner.get(&(Ownership::Recorded as u32), 0)? != 0)
    }

    /// There are going to be such records.
    pub(crate) fn note_recorded(&mut self) -> Result<(), KernelError> {
        if !self.is_recorded()? {
            self.owner.set(Ownership::Recorded as u32, 1, 0)?;
        }
        Ok(())
    }

    /// Fails when another agent counts on these maps.
    pub(crate) fn check_owner(&self) -> Result<(), KernelError> {
        let now = self.owner.get(&(Ownership::Generation as u32), 0)?;
        if now == self.ownership.generation { Ok(()) } else { Err(KernelError::Replaced) }
    }

    /// What is pinned stays when everything is dropped. Returns whether there is something.
    pub(crate) fn leave(&self) -> bool {
        self.pins.as_ref().map(Pins::keep).is_ok()
    }

    /// Detaches what a predecessor hooked and nobody has asked for since.
    pub(crate) fn remove_orphans(&self) {
        let removed = self.pins.as_ref().map_or(0, Pins::remove_unknown);
        if removed > 0 {
            tracing::info!(
                links = removed,
                "removed hooks in libraries that are not traced any more"
            );
        }
    }

    /// Whether a predecessor's hooks of a group are there: attaching goes on with them.
    pub(crate) fn holds(&self, library: &LibraryFile, group: Group) -> bool {
        let (Ok(pins), true) = (&self.pins, self.multi.is_some()) else { return false };
        let points = library.plan.points.iter().filter(|it| it.hook.group == group);
        let points: Vec<Point> = points.copied().collect();
        Kind::ALL.into_iter().all(|kind| {
            let places = places(&points, kind, library.gates);
            let programs = std::iter::once(kind.entry_program()).chain(kind.return_program());
            let mut names =
                programs.map(|it| LinkName::of_library(library.id, group, it, &places, self.build));
            places.offsets.is_empty() || names.all(|it| pins.has_link(&it))
        })
    }

    /// Hooks every point of one group of a library, or none.
    pub(crate) fn attach(
        &mut self,
        library: &LibraryFile,
        group: Group,
    ) -> Result<Links, KernelError> {
        let path = path_of(library.descriptor());
        let points = library.plan.points.iter().filter(|it| it.hook.group == group);
        let points: Vec<Point> = points.copied().collect();
        let links = match &self.multi {
            Some(programs) => {
                let (file, gates, build) = (library.id, library.gates, self.build);
                let target = Target { path: &path, file, gates, group, build };
                attach_multi(programs, &mut self.pins, &target, &points).map(Links::Multi)
            }
            None => attach_singles(&mut self.ebpf, &path, library.gates, &points)
                .map(|it| Links::Single(it, clock::boot())),
        }?;
        self.open_gate(library.gates, group, &links)?;
        Ok(links)
    }

    /// A gate that is open stays as it is where nothing was attached anew: then no call was missed. A
    /// predecessor may have closed it.
    fn open_gate(&mut self, gates: Gates, group: Group, links: &Links) -> Result<(), KernelError> {
        let Some(gate) = gates.of(group) else { return Ok(()) };
        let held = Array::<_, u64>::try_from(&self.gates)?.get(&gate, 0)?;
        if links.adopted() < links.len() || gates::is_closed(held) {
            self.set_gate(gates, group, false)?;
        }
        Ok(())
    }

    /// Says from when on all work of a file's processes is seen: of those that are older, none is known
    /// from `blind` on. `None` = of no process.
    pub(crate) fn set_sight(
        &mut self,
        gates: Gates,
        since: Option<BootNs>,
        blind: BootNs,
    ) -> Result<(), KernelError> {
        let sight = Sight { since_ns: since.map_or(0, |it| it.0), blind_ns: blind.0 };
        Ok(self.sights.set(gates.file(), sight, 0)?)
    }

    /// Every row, as it is now.
    pub(crate) fn rows(&mut self) -> Result<Vec<(u32, Row)>, KernelError> {
        self.rows.read()
    }

    /// What the governor's thread needs; `None` where hooks cannot be taken off quickly.
    pub(crate) fn hands(&self, proc: &Proc) -> Result<Option<Hands>, KernelError> {
        let Some(programs) = &self.multi else { return Ok(None) };
        Ok(Some(Hands {
            programs: Arc::clone(programs),
            rows: RowReader::new(&self.counters)?,
            gates: array(&self.gates)?,
            refused: array(&self.refused)?,
            proc: proc.clone(),
        }))
    }

    /// What hits cost on this machine, or what they may cost where that cannot be measured.
    pub(crate) fn hit_costs(&self) -> HitCosts {
        if self.multi.is_none() {
            return ASSUMED;
        }
        measure_hits(&self.offsets).unwrap_or_else(|error| {
            tracing::warn!("what a hit costs is assumed, not measured: {error}");
            ASSUMED
        })
    }

    /// Calls of a group count no more, or again.
    pub(crate) fn set_gate(
        &mut self,
        gates: Gates,
        group: Group,
        closed: bool,
    ) -> Result<(), KernelError> {
        if let Some(gate) = gates.of(group) {
            let held = gates::held(closed, clock::boot());
            Array::<_, u64>::try_from(&mut self.gates)?.set(gate, held, 0)?;
        }
        Ok(())
    }

    /// Removes the row of a process that is gone, which nobody else changes any more. Returns whether
    /// it was there: another process may have the tgid by now.
    pub(crate) fn remove(&mut self, tgid: u32, dead: &Row) -> bool {
        let removed = HashMap::<_, u32, Row>::try_from(&mut self.counters).and_then(|mut rows| {
            let found = rows.get(&tgid, 0)? == *dead;
            if found {
                rows.remove(&tgid)?;
            }
            Ok(found)
        });
        removed.unwrap_or_else(|error| {
            tracing::debug!(tgid, "the row of an exited process was gone already: {error}");
            false
        })
    }

    /// Takes every record that has arrived.
    pub(crate) fn drain(&mut self, mut take: impl FnMut(agent_ebpf::Event, &Record)) {
        while let Some(bytes) = self.events.next() {
            if let Some((event, record)) = records::record(&bytes) {
                take(event, &record);
            }
        }
        self.logs.flush();
    }

    /// Readable when a record has arrived. Needs a runtime.
    pub(crate) fn watch(&self) -> io::Result<AsyncFd<OwnedFd>> {
        let ring = self.events.as_fd().try_clone_to_owned()?;
        // SAFETY: an `OwnedFd` names the same open descriptor until it is dropped.
        Ok(unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?)
    }

    /// Calls without an owner, since the object was loaded.
    pub(crate) fn overflow(&self) -> Result<Row, KernelError> {
        Ok(self.overflow.get(&0, 0)?)
    }

    /// The sum of all rows that have left the kernel, since the object was loaded.
    pub(crate) fn retired(&self) -> Result<Row, KernelError> {
        Ok(self.retired.get(&0, 0)?)
    }

    /// By `Loss`, since the object was loaded.
    pub(crate) fn lost(&self) -> Result<[u64; LOSSES], KernelError> {
        let mut lost = [0; LOSSES];
        for (index, count) in (0..).zip(lost.iter_mut()) {
            *count = self.lost.get(&index, 0)?;
        }
        Ok(lost)
    }

    /// Groups of processes that have appeared, by id, since they were last taken.
    pub(crate) fn cgroups(&mut self) -> Result<Vec<(u64, Cgroup)>, KernelError> {
        let ids: Vec<u64> = self.cgroups.keys().collect::<Result<_, _>>()?;
        let mut cgroups = Vec::with_capacity(ids.len());
        for id in ids {
            match self.cgroups.get(&id, 0) {
                // Its names are being read.
                Ok(group) if group.levels == 0 => {}
                Ok(group) => {
                    cgroups.push((id, group));
                    self.cgroups.remove(&id)?;
                }
                // They could not be read.
                Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(cgroups)
    }

    /// Asks for records about a process that has made no call.
    pub(crate) fn track(&mut self, tgid: u32) -> Result<(), KernelError> {
        Ok(self.tracked.insert(tgid, 0, 0)?)
    }

    pub(crate) fn untrack(&mut self, tgid: u32) {
        if let Err(error) = self.tracked.remove(&tgid) {
            tracing::trace!(tgid, "was not tracked any more: {error}");
        }
    }
}

fn load_object(
    offsets: &Offsets,
    bounds: Bounds,
    pins: &mut Result<Pins, String>,
) -> Result<(Ebpf, Option<Bounds>), KernelError> {
    let wanted = map_sizes()?;
    let mut loader = EbpfLoader::new();
    // Rust emits no relocations against kernel types: what it parsed is dropped before the load.
    loader.btf(None);
    loader.override_global("OFFSETS", offsets, true);
    for (map, entries) in bounds.of_maps() {
        loader.map_max_entries(map, entries);
    }
    let mut kept = None;
    if let Ok(folder) = pins {
        match make_room(folder, &wanted) {
            Ok(left) => {
                kept = left.and_then(|it| bounds.kept_by(&it));
                for name in wanted.keys() {
                    loader.map_pin_path(name, folder.map_path(name));
                }
            }
            Err(error) => *pins = Err(error.to_string()),
        }
    }
    Ok((loader.load(OBJECT)?, kept))
}

/// On maps of their own: where there is no row for this process in those that count, its calls would
/// count without an owner.
fn measure_hits(offsets: &Offsets) -> Result<HitCosts, CalibrationError> {
    let mut unpinned = Err("the maps of a measurement go with it".to_owned());
    let bounds = Bounds { max_processes: 1, max_allocations: 1 };
    let (ebpf, _) = load_object(offsets, bounds, &mut unpinned).map_err(Box::new)?;
    let programs = Programs::load(OBJECT, descriptors(&ebpf), calibration::driver::uses)?;
    calibration::driver::measure(&programs)
}

/// The maps that a predecessor left, where this agent can go on with them; else nothing is left. A
/// part of a set is worth nothing: links would count into maps that nobody reads.
fn make_room(
    folder: &Pins,
    wanted: &BTreeMap<String, MapSize>,
) -> Result<Option<LeftMaps>, PinError> {
    let left = folder.maps();
    if left.as_ref().is_some_and(|it| it.fit(wanted)) {
        return Ok(left);
    }
    if left.is_some() {
        tracing::warn!(
            "a predecessor left maps of another layout: what they counted and no record has is lost"
        );
    }
    folder.clear()?;
    Ok(None)
}

/// Of all maps but constants, which the programs of each agent have for themselves.
fn map_sizes() -> Result<BTreeMap<String, MapSize>, KernelError> {
    let object = aya_obj::Object::parse(OBJECT).map_err(EbpfError::ParseError)?;
    let size = |it: &aya_obj::Map| MapSize {
        key: it.key_size(),
        value: it.value_size(),
        entries: it.max_entries(),
    };
    let maps = object.maps.iter().filter(|(name, _)| !name.starts_with('.'));
    Ok(maps.map(|(name, it)| (name.clone(), size(it))).collect())
}

/// Names the programs of this agent: those of another build may count otherwise.
fn build() -> u64 {
    let hash = blake3::hash(OBJECT);
    let (first, _) = hash.as_bytes().split_first_chunk().expect("a hash has 32 bytes");
    u64::from_le_bytes(*first)
}

/// What this agent is to the maps.
#[derive(Clone, Copy, Debug)]
struct Owned {
    /// Names the maps.
    epoch: u64,
    /// How many agents there were on them, this one included.
    generation: u64,
}

/// Gives the maps their name where they are new.
fn take_over(owner: &mut Array<MapData, u64>) -> Result<Owned, KernelError> {
    let (identity, generation) = (Ownership::Identity as u32, Ownership::Generation as u32);
    if owner.get(&identity, 0)? == 0 {
        owner.set(identity, fastrand::u64(1..), 0)?;
        owner.set(Ownership::Layout as u32, LAYOUT, 0)?;
    }
    let owned =
        Owned { epoch: owner.get(&identity, 0)?, generation: owner.get(&generation, 0)? + 1 };
    owner.set(generation, owned.generation, 0)?;
    Ok(owned)
}

/// A process may end while the programs of two builds are hooked: the second one finds nothing to do.
/// So there is no gap here.
fn hook_life(
    ebpf: &mut Ebpf,
    pins: &mut Result<Pins, String>,
    build: u64,
) -> Result<Vec<Link>, KernelError> {
    let mut links = Vec::new();
    for Tracepoint { name, program } in process::tracepoints(ebpf)? {
        let is_right = |it: BorrowedFd<'_>| is_tracepoint(it);
        let link_name = LinkName::of_life(name, build);
        let link = hook(pins, &link_name, is_right, || {
            let c_name = CString::new(name).expect("a fixed text holds no zero byte");
            bpf::link_tracepoint(program.as_fd(), &c_name)
                .map_err(|source| ProcessError::Attach { name, source })
        })?;
        if let Ok(pins) = pins {
            pins.remove_stale(&link_name);
        }
        links.push(link);
    }
    Ok(links)
}

/// The link that a predecessor left, or a new one.
fn hook<E>(
    pins: &mut Result<Pins, String>,
    name: &LinkName,
    is_right: impl FnOnce(BorrowedFd<'_>) -> bool,
    attach: impl FnOnce() -> Result<OwnedFd, E>,
) -> Result<Link, E> {
    let Ok(pins) = pins else { return attach().map(Link::unpinned) };
    match pins.adopt(name, is_right) {
        Some(link) => Ok(link),
        None => Ok(pins.pin(name, attach()?)),
    }
}

fn is_tracepoint(link: BorrowedFd<'_>) -> bool {
    bpf::link_info(link, 0).is_ok_and(|it| it == LinkInfo::Tracepoint)
}

/// Where the kernel does not tell the places, the name of the pin vouches for them.
fn is_at(link: BorrowedFd<'_>, places: &Places, moment: Moment) -> bool {
    match bpf::link_info(link, places.offsets.len()) {
        Ok(LinkInfo::Multi(Some(told), at)) => told == *places && at == moment,
        Ok(LinkInfo::Multi(None, _)) => true,
        Ok(LinkInfo::Tracepoint | LinkInfo::Other) | Err(_) => false,
    }
}

/// Where the kernel cannot do it, every place gets a link of its own.
fn load_multi(ebpf: &Ebpf) -> Option<Programs> {
    match Programs::load(OBJECT, descriptors(ebpf), |_| true) {
        Ok(programs) => Some(programs),
        Err(error) => {
            tracing::info!("attaching uprobes one by one, which makes detaching slow: {error}");
            None
        }
    }
}

fn descriptors(ebpf: &Ebpf) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
    ebpf.maps().filter_map(|(name, map)| Some((name, descriptor(map)?)))
}

/// The programs of hooks that are always wanted; the others when one is. What they serve is rare, and
/// some of them take a kernel seconds to verify.
fn load_singles(ebpf: &mut Ebpf) -> Result<(), KernelError> {
    let is_needed = |it: &Kind| HOOKS.iter().any(|hook| hook.kind == *it && hook.extra.is_none());
    for kind in Kind::ALL.into_iter().filter(is_needed) {
        for name in std::iter::once(kind.entry_program()).chain(kind.return_program()) {
            uprobe(ebpf, name)?.load()?;
        }
    }
    Ok(())
}

fn uprobe<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut UProbe, KernelError> {
    let program = ebpf.program_mut(name).ok_or(KernelError::NoProgram(name))?;
    Ok(program.try_into()?)
}

/// The very file that was decoded, whatever its path leads to by now.
fn path_of(file: RawFd) -> String {
    format!("/proc/self/fd/{file}")
}

/// What is hooked.
struct Target<'a> {
    path: &'a str,
    file: FileId,
    gates: Gates,
    group: Group,
    build: u64,
}

/// Hooks for a while: they are not pinned.
pub(crate) fn attach_window(
    programs: &Programs,
    file: BorrowedFd<'_>,
    gates: Gates,
    points: &[Point],
) -> Result<Vec<OwnedFd>, KernelError> {
    let path = CString::new(path_of(file.as_raw_fd())).expect("a number and a text have no zero");
    let mut links = Vec::new();
    for kind in Kind::ALL {
        let places = places(points, kind, gates);
        if places.offsets.is_empty() {
            continue;
        }
        let returns = kind.return_program().map(|it| (it, Moment::Return));
        for (name, moment) in returns.into_iter().chain([(kind.entry_program(), Moment::Entry)]) {
            links.push(programs.attach(name, &path, &places, moment)?);
        }
    }
    Ok(links)
}

fn attach_multi(
    programs: &Programs,
    pins: &mut Result<Pins, String>,
    target: &Target<'_>,
    points: &[Point],
) -> Result<Vec<Link>, KernelError> {
    let path = CString::new(target.path).expect("a number and a fixed text hold no zero byte");
    let (mut links, mut replaced, begun) = (Vec::new(), 0, clock::boot());
    for kind in Kind::ALL {
        let places = places(points, kind, target.gates);
        if places.offsets.is_empty() {
            continue;
        }
        // Returns first: a call that is seen to start is then seen to end.
        let returns = kind.return_program().map(|it| (it, Moment::Return));
        for (name, moment) in returns.into_iter().chain([(kind.entry_program(), Moment::Entry)]) {
            let pin = LinkName::of_library(target.file, target.group, name, &places, target.build);
            // First, because a call that two links see counts twice. Those in between do not count.
            if let Ok(pins) = pins {
                replaced += pins.remove_stale(&pin);
            }
            let is_right = |it: BorrowedFd<'_>| is_at(it, &places, moment);
            let attach = || programs.attach(name, &path, &places, moment);
            links.push(hook(pins, &pin, is_right, attach)?);
        }
    }
    if replaced > 0 {
        tracing::info!(
            library = ?target.file,
            links = replaced,
            within_ms = clock::boot().since(begun) / 1_000_000,
            "replaced hooks of another build one after the other; calls in between do not count"
        );
    }
    Ok(links)
}

fn places(points: &[Point], kind: Kind, gates: Gates) -> Places {
    let mut places = Places::default();
    for point in points.iter().filter(|it| it.hook.kind == kind) {
        places.offsets.push(point.offset);
        places.cookies.push(gates.cookie(point.hook));
    }
    places
}

fn attach_singles(
    ebpf: &mut Ebpf,
    path: &str,
    gates: Gates,
    points: &[Point],
) -> Result<Vec<UProbeLink>, KernelError> {
    let mut links = Vec::new();
    for point in points {
        let kind = point.hook.kind;
        for name in kind.return_program().into_iter().chain([kind.entry_program()]) {
            let location = UProbeAttachLocation::AbsoluteOffset(point.offset);
            let place = UProbeAttachPoint { location, cookie: Some(gates.cookie(point.hook)) };
            let program = uprobe(ebpf, name)?;
            if program.fd().is_err() {
                program.load()?;
            }
            let link = program.attach(place, path, UProbeScope::AllProcesses)?;
            links.push(program.take_link(link)?);
        }
    }
    Ok(links)
}

pub(super) fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, KernelError> {
    ebpf.take_map(name).ok_or(KernelError::NoMap(name))
}

pub(super) fn descriptor(map: &Map) -> Option<BorrowedFd<'_>> {
    match map {
        Map::Array(data) | Map::HashMap(data) | Map::RingBuf(data) => Some(data.fd().as_fd()),
        _ => None,
    }
}

/// The same map through another descriptor.
fn again(map: &Map) -> Result<OwnedFd, KernelError> {
    let map = descriptor(map).ok_or(KernelError::NoMap("of a kind that is read"))?;
    map.try_clone_to_owned().map_err(KernelError::Read)
}

fn array(map: &Map) -> Result<Array<MapData, u64>, KernelError> {
    Ok(Map::Array(MapData::from_fd(again(map)?)?).try_into()?)
}

/// Gives back what only the loading needed: the kernel's type information is megabytes, and the
/// allocator would keep its place for ever.
pub(crate) fn trim_memory() {
    // SAFETY: it takes no pointer, and frees only what nobody owns.
    let trimmed = unsafe { libc::malloc_trim(0) };
    tracing::debug!(trimmed, "memory of the start given back");
}
