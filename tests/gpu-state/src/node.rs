//! A folder with a scenario, opened by a library: what is in the scenario now, and who is alive.

use std::ffi::c_void;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime};

use crate::clock;
use crate::device::Sample;
use crate::place;
use crate::region::Region;
use crate::scenario::{NAME, Scenario, ScenarioError};
use crate::slots::{SLOTS, Shared, Usage};
use crate::timeline;
use crate::watch::Watch;

/// The simulated node as one library in one process has it open.
#[derive(Debug)]
pub struct Node {
    folder: PathBuf,
    region: Region,
    scenario: RwLock<Loaded>,
    /// When `recent_scenario` last looked at the file.
    checked_ns: AtomicU64,
}

/// Stands for `/dev/nvidiactl`.
pub const DEVICE: &str = "nvidiactl";

const RECENT_NS: u64 = 100_000_000;

/// Why a library has no node: to its caller, the driver is not loaded.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the library's own folder is not known to the dynamic linker")]
    NoFolder,
    #[error(transparent)]
    Scenario(#[from] ScenarioError),
    #[error("cannot map the shared state: {0}")]
    State(std::io::Error),
}

#[derive(Debug)]
struct Loaded {
    version: Option<Version>,
    /// With its steps; `None` when the file as it is now cannot be used.
    whole: Option<Arc<Scenario>>,
    /// Steps that `now` has.
    passed: usize,
    now: Option<Arc<Scenario>>,
}

/// Of the file. The inode too, because two changes can fall into one tick of its clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    modified: SystemTime,
    inode: u64,
}

/// Of the process that a slot was given to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    Unused,
    /// With its PID as this process sees it; 0 where it is not visible from here.
    Alive(u32),
    /// With its PID as it saw itself.
    Dead {
        pid: u32,
        since_ns: u64,
    },
}

impl Node {
    /// Opens the folder of the library that contains `address`.
    pub fn beside(address: *const c_void) -> Result<Self, OpenError> {
        Self::open(&place::folder_of(address).ok_or(OpenError::NoFolder)?)
    }

    /// What a driver's library keeps open while it is initialised.
    pub fn open_device(&self) -> std::io::Result<File> {
        File::options().create(true).append(true).open(self.folder.join(DEVICE))
    }

    pub fn open(folder: &Path) -> Result<Self, OpenError> {
        let scenario = Arc::new(Scenario::read(folder)?);
        let version = version(folder);
        let region = Region::open(folder).map_err(OpenError::State)?;
        let loaded = Loaded::new(version, Some(scenario), since_ms(&region));
        Ok(Self {
            folder: folder.to_owned(),
            region,
            scenario: RwLock::new(loaded),
            checked_ns: AtomicU64::new(clock::boot_ns()),
        })
    }

    /// The scenario as the file has it now, with every step that is past; `None` when the file is not
    /// a scenario.
    pub fn scenario(&self) -> Option<Arc<Scenario>> {
        let version = version(&self.folder);
        let after_ms = since_ms(&self.region);
        let whole = {
            let loaded = self.scenario.read().expect("nothing panics while it is held");
            if loaded.version == version && loaded.is_of(after_ms) {
                return loaded.now.clone();
            }
            loaded.whole.clone().filter(|_| loaded.version == version)
        };
        let whole = whole.or_else(|| Scenario::read(&self.folder).ok().map(Arc::new));
        let fresh = Loaded::new(version, whole, after_ms);
        let now = fresh.now.clone();
        *self.scenario.write().expect("nothing panics while it is held") = fresh;
        now
    }

    /// Recorded use of a device by processes: what the driver had told of up to now.
    pub fn recorded_samples(&self, device: usize) -> Vec<Sample> {
        let whole = {
            let loaded = self.scenario.read().expect("nothing panics while it is held");
            loaded.whole.clone()
        };
        let shared = self.shared();
        let began_ns = shared.created_ns.load(Ordering::Relaxed);
        let began_us = (began_ns + shared.epoch_offset_ns.load(Ordering::Relaxed)) / 1_000;
        let after_ms = since_ms(&self.region);
        whole.map(|it| timeline::samples(&it, device, began_us, after_ms)).unwrap_or_default()
    }

    /// The scenario as it was at most 100 ms ago: for calls that must not cost a system call.
    pub fn recent_scenario(&self) -> Option<Arc<Scenario>> {
        let now = clock::boot_ns();
        if now.saturating_sub(self.checked_ns.load(Ordering::Relaxed)) > RECENT_NS {
            self.checked_ns.store(now, Ordering::Relaxed);
            return self.scenario();
        }
        self.scenario.read().expect("nothing panics while it is held").now.clone()
    }

    /// How long the scenario stays what it is if nobody writes it.
    pub fn until_next_step(&self) -> Option<Duration> {
        let loaded = self.scenario.read().expect("nothing panics while it is held");
        let after_ms = since_ms(&self.region);
        let next_ms = timeline::next_ms(loaded.whole.as_ref()?, after_ms)?;
        Some(Duration::from_millis(next_ms.saturating_sub(after_ms)))
    }

    pub fn watch(&self) -> std::io::Result<Watch> {
        Watch::of(&self.folder)
    }

    pub(crate) fn region(&self) -> &Region {
        &self.region
    }

    pub(crate) fn shared(&self) -> &Shared {
        self.region.shared()
    }

    /// Every slot of which a device has something, with the life of its process. Who lives is asked of
    /// the kernel, and so of no others.
    pub(crate) fn slots(
        &self,
        device: usize,
        has: impl Fn(&Usage) -> bool,
    ) -> impl Iterator<Item = (usize, Life)> {
        let slots = (0..SLOTS).filter(move |it| has(&self.shared().usage[*it][device]));
        slots.map(|it| (it, self.life(it))).filter(|(_, life)| *life != Life::Unused)
    }

    pub(crate) fn life(&self, slot: usize) -> Life {
        let state = &self.shared().slots[slot];
        let pid = state.pid.load(Ordering::Acquire);
        if pid == 0 {
            return Life::Unused;
        }
        let dead_since = state.dead_since_ns.load(Ordering::Acquire);
        if dead_since != 0 {
            return Life::Dead { pid, since_ns: dead_since };
        }
        match self.region.owner(slot) {
            Some(visible) => Life::Alive(visible),
            None if pid == std::process::id() => Life::Alive(pid),
            None => self.bury(slot, pid),
        }
    }

    /// Whether the driver still keeps the memory of a process that died then.
    pub(crate) fn keeps(&self, dead_since_ns: u64) -> bool {
        let release_ms = self.scenario().map_or(0, |it| it.release_ms);
        clock::boot_ns() < dead_since_ns.saturating_add(release_ms.saturating_mul(1_000_000))
    }

    /// The first to see that a process is gone decides when that was.
    fn bury(&self, slot: usize, pid: u32) -> Life {
        let now = clock::boot_ns();
        let dead_since = &self.shared().slots[slot].dead_since_ns;
        if let Err(since_ns) =
            dead_since.compare_exchange(0, now, Ordering::AcqRel, Ordering::Acquire)
        {
            return Life::Dead { pid, since_ns };
        }
        // Somebody may have taken the slot since we looked. Who does has its lock before the mark is
        // taken off, so what is locked now was marked by mistake.
        if let Some(visible) = self.region.owner(slot) {
            dead_since.store(0, Ordering::Release);
            return Life::Alive(visible);
        }
        self.cancel(slot, now);
        Life::Dead { pid, since_ns: now }
    }
}

impl Loaded {
    fn new(version: Option<Version>, whole: Option<Arc<Scenario>>, after_ms: u64) -> Self {
        let passed = whole.as_ref().map_or(0, |it| timeline::passed(it, after_ms));
        let now = match &whole {
            Some(whole) if passed > 0 => timeline::at(whole, after_ms).ok().map(Arc::new),
            _ => whole.clone(),
        };
        Self { version, whole, passed, now }
    }

    fn is_of(&self, after_ms: u64) -> bool {
        self.whole.as_ref().is_none_or(|it| timeline::passed(it, after_ms) == self.passed)
    }
}

/// Milliseconds since a library first opened the node's folder.
fn since_ms(region: &Region) -> u64 {
    let created_ns = region.shared().created_ns.load(Ordering::Relaxed);
    clock::boot_ns().saturating_sub(created_ns) / 1_000_000
}

fn version(folder: &Path) -> Option<Version> {
    let file = std::fs::metadata(folder.join(NAME)).ok()?;
    Some(Version { modified: file.modified().ok()?, inode: file.ino() })
}
