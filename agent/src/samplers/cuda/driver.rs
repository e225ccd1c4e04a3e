//! The eBPF object in the kernel: loads it, attaches it, reads its maps and its ring. What the
//! numbers mean is in `decode.rs`.

#![expect(unsafe_code, reason = "the runtime's event loop and the allocator are spoken to here")]

use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agent_ebpf::{LOSSES, Offsets, Record, Row};
use aya::maps::{Array, HashMap, Map, MapData, MapError, RingBuf};
use aya::programs::uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope};
use aya::programs::{ProgramError, UProbe};
use aya::{Ebpf, EbpfError, EbpfLoader};
use aya_log::EbpfLogger;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::bpf::driver::{Batch, Cursor, Found, Moment, Places};
use super::bpf::multi::{MultiError, Programs};
use super::hooks::{Group, Kind};
use super::library::driver::LibraryFile;
use super::log::Bridge;
use super::probe::Point;
use crate::samplers::process::decode as records;
use crate::samplers::process::driver::{self as process, Proc, ProcessError};

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
}

/// The loaded object. Dropping it detaches everything.
pub(crate) struct Kernel {
    /// Owns the tracepoints, and the programs where they are attached one by one.
    ebpf: Ebpf,
    /// `None` on kernels before 6.6: every place is attached for itself.
    multi: Option<Programs>,
    /// Untyped, because it is read in batches through its descriptor.
    counters: Map,
    overflow: Array<MapData, Row>,
    lost: Array<MapData, u64>,
    tracked: HashMap<MapData, u32, u8>,
    events: RingBuf<MapData>,
    logs: EbpfLogger<Bridge>,
    batch: Batch,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").field("multi", &self.multi).finish_non_exhaustive()
    }
}

/// What keeps one group of one library hooked; dropping it detaches.
#[derive(Debug)]
#[expect(dead_code, reason = "the links are held for what their drop does")]
pub(crate) enum Links {
    Multi(Vec<OwnedFd>),
    Single(Vec<UProbeLink>),
}

/// Entries that are read at once.
const BATCH: usize = 256;

impl Kernel {
    /// Loads the object and hooks process life. No library is hooked yet.
    pub(crate) fn load(max_processes: u32, proc: &Proc) -> Result<Self, KernelError> {
        proc.check_namespace()?;
        let offsets = process::offsets()?;
        let mut ebpf = load_object(&offsets, max_processes)?;
        let multi = load_multi(&ebpf);
        // Before the maps are taken out: a program is loaded on top of all of them.
        process::attach(&mut ebpf)?;
        if multi.is_none() {
            load_singles(&mut ebpf)?;
        }
        let logs = EbpfLogger::init_with_logger(&mut ebpf, Bridge)
            .map_err(|_not_a_ring| KernelError::NoMap("AYA_LOGS"))?;
        Ok(Self {
            multi,
            counters: take(&mut ebpf, "COUNTERS")?,
            overflow: take(&mut ebpf, "OVERFLOW")?.try_into()?,
            lost: take(&mut ebpf, "LOST")?.try_into()?,
            tracked: take(&mut ebpf, "TRACKED")?.try_into()?,
            events: take(&mut ebpf, "EVENTS")?.try_into()?,
            logs,
            batch: Batch::new(size_of::<u32>(), size_of::<Row>(), BATCH),
            ebpf,
        })
    }

    /// Hooks every point of one group of a library, or none.
    pub(crate) fn attach(
        &mut self,
        library: &LibraryFile,
        group: Group,
    ) -> Result<Links, KernelError> {
        let path = format!("/proc/self/fd/{}", library.descriptor());
        let points = library.plan.points.iter().filter(|it| it.hook.group == group);
        let points: Vec<Point> = points.copied().collect();
        match &self.multi {
            Some(programs) => attach_multi(programs, &path, &points).map(Links::Multi),
            None => attach_singles(&mut self.ebpf, &path, &points).map(Links::Single),
        }
    }

    /// Every row, as it is now.
    pub(crate) fn rows(&mut self) -> Result<Vec<(u32, Row)>, KernelError> {
        let mut rows = Vec::new();
        let mut cursor: Option<Cursor> = None;
        loop {
            let map = descriptor(&self.counters).ok_or(KernelError::NoMap("COUNTERS"))?;
            let (count, last) =
                match self.batch.read(map, &mut cursor).map_err(KernelError::Read)? {
                    Found::Some(count) => (count, false),
                    Found::Last(count) => (count, true),
                    Found::TooSmall => {
                        self.batch.grow();
                        continue;
                    }
                };
            rows.extend(decode_batch(&self.batch, count));
            if last {
                return Ok(rows);
            }
        }
    }

    /// Removes the row of a process that is gone.
    pub(crate) fn remove(&mut self, tgid: u32) {
        let removed = HashMap::<_, u32, Row>::try_from(&mut self.counters)
            .and_then(|mut rows| rows.remove(&tgid));
        if let Err(error) = removed {
            tracing::debug!(tgid, "the row of an exited process was gone already: {error}");
        }
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

    /// By `Loss`, since the object was loaded.
    pub(crate) fn lost(&self) -> Result<[u64; LOSSES], KernelError> {
        let mut lost = [0; LOSSES];
        for (index, count) in (0..).zip(lost.iter_mut()) {
            *count = self.lost.get(&index, 0)?;
        }
        Ok(lost)
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

fn load_object(offsets: &Offsets, max_processes: u32) -> Result<Ebpf, KernelError> {
    let mut loader = EbpfLoader::new();
    // Rust emits no relocations against kernel types: what it parsed is dropped before the load.
    loader.btf(None);
    loader
        .override_global("OFFSETS", offsets, true)
        .map_max_entries("COUNTERS", max_processes)
        .map_max_entries("TRACKED", max_processes);
    Ok(loader.load(OBJECT)?)
}

/// A kernel that cannot do it refuses to load: then every place gets a link of its own.
fn load_multi(ebpf: &Ebpf) -> Option<Programs> {
    let maps = ebpf.maps().filter_map(|(name, map)| Some((name, descriptor(map)?)));
    match Programs::load(OBJECT, maps) {
        Ok(programs) => Some(programs),
        Err(error) => {
            tracing::info!("attaching uprobes one by one, which makes detaching slow: {error}");
            None
        }
    }
}

fn load_singles(ebpf: &mut Ebpf) -> Result<(), KernelError> {
    for kind in Kind::ALL {
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

fn attach_multi(
    programs: &Programs,
    path: &str,
    points: &[Point],
) -> Result<Vec<OwnedFd>, KernelError> {
    let path = CString::new(path).expect("a number and a fixed text hold no zero byte");
    let mut links = Vec::new();
    for kind in Kind::ALL {
        let mut places = Places::default();
        for point in points.iter().filter(|it| it.hook.kind == kind) {
            places.offsets.push(point.offset);
            places.cookies.push(point.hook.cookie.0);
        }
        if places.offsets.is_empty() {
            continue;
        }
        // Returns first: a call that is seen to start is then seen to end.
        if let Some(name) = kind.return_program() {
            links.push(programs.attach(name, &path, &places, Moment::Return)?);
        }
        links.push(programs.attach(kind.entry_program(), &path, &places, Moment::Entry)?);
    }
    Ok(links)
}

fn attach_singles(
    ebpf: &mut Ebpf,
    path: &str,
    points: &[Point],
) -> Result<Vec<UProbeLink>, KernelError> {
    let mut links = Vec::new();
    for point in points {
        let kind = point.hook.kind;
        for name in kind.return_program().into_iter().chain([kind.entry_program()]) {
            let location = UProbeAttachLocation::AbsoluteOffset(point.offset);
            let place = UProbeAttachPoint { location, cookie: Some(point.hook.cookie.0) };
            let program = uprobe(ebpf, name)?;
            let link = program.attach(place, path, UProbeScope::AllProcesses)?;
            links.push(program.take_link(link)?);
        }
    }
    Ok(links)
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, KernelError> {
    ebpf.take_map(name).ok_or(KernelError::NoMap(name))
}

fn descriptor(map: &Map) -> Option<BorrowedFd<'_>> {
    match map {
        Map::Array(data) | Map::HashMap(data) | Map::PerCpuArray(data) | Map::RingBuf(data) => {
            Some(data.fd().as_fd())
        }
        _ => None,
    }
}

fn decode_batch(batch: &Batch, count: usize) -> impl Iterator<Item = (u32, Row)> {
    let keys = batch.keys.chunks_exact(size_of::<u32>()).take(count);
    keys.zip(batch.values.chunks_exact(size_of::<Row>())).filter_map(|(key, value)| {
        Some((u32::from_ne_bytes(key.try_into().ok()?), records::row(value)?))
    })
}

/// Gives back what only the loading needed: the kernel's type information is megabytes, and the
/// allocator would keep its place for ever.
pub(crate) fn trim_memory() {
    // SAFETY: it takes no pointer, and frees only what nobody owns.
    let trimmed = unsafe { libc::malloc_trim(0) };
    tracing::debug!(trimmed, "memory of the start given back");
}
