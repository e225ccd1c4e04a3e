//! A folder with a scenario, opened by a library: what is in the scenario now, and who is alive.

use std::ffi::c_void;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::SystemTime;

use crate::clock;
use crate::place;
use crate::region::Region;
use crate::scenario::{NAME, Scenario, ScenarioError};
use crate::slots::{SLOTS, Shared};

/// The simulated node as one library in one process has it open.
#[derive(Debug)]
pub struct Node {
    folder: PathBuf,
    region: Region,
    scenario: RwLock<Loaded>,
    /// When `recent_scenario` last looked at the file.
    checked_ns: AtomicU64,
}

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
    /// `None` when the file as it is now cannot be used.
    scenario: Option<Arc<Scenario>>,
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

    pub fn open(folder: &Path) -> Result<Self, OpenError> {
        let scenario = Some(Arc::new(Scenario::read(folder)?));
        let version = version(folder);
        let region = Region::open(folder).map_err(OpenError::State)?;
        Ok(Self {
            folder: folder.to_owned(),
            region,
            scenario: RwLock::new(Loaded { version, scenario }),
            checked_ns: AtomicU64::new(clock::boot_ns()),
        })
    }

    /// The scenario as it is in the file now; `None` when that is not a scenario.
    pub fn scenario(&self) -> Option<Arc<Scenario>> {
        let version = version(&self.folder);
        {
            let loaded = self.scenario.read().expect("nothing panics while it is held");
            if loaded.version == version {
                return loaded.scenario.clone();
            }
        }
        let scenario = Scenario::read(&self.folder).ok().map(Arc::new);
        let mut loaded = self.scenario.write().expect("nothing panics while it is held");
        *loaded = Loaded { version, scenario: scenario.clone() };
        scenario
    }

    /// The scenario as it was at most 100 ms ago: for calls that must not cost a system call.
    pub fn recent_scenario(&self) -> Option<Arc<Scenario>> {
        let now = clock::boot_ns();
        if now.saturating_sub(self.checked_ns.load(Ordering::Relaxed)) > RECENT_NS {
            self.checked_ns.store(now, Ordering::Relaxed);
            return self.scenario();
        }
        self.scenario.read().expect("nothing panics while it is held").scenario.clone()
    }

    pub(crate) fn region(&self) -> &Region {
        &self.region
    }

    pub(crate) fn shared(&self) -> &Shared {
        self.region.shared()
    }

    /// Every slot that was ever used, with the life of its process.
    pub(crate) fn slots(&self) -> impl Iterator<Item = (usize, Life)> {
        (0..SLOTS).map(|it| (it, self.life(it))).filter(|(_, life)| *life != Life::Unused)
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

fn version(folder: &Path) -> Option<Version> {
    let file = std::fs::metadata(folder.join(NAME)).ok()?;
    Some(Version { modified: file.modified().ok()?, inode: file.ino() })
}
