//! Opens library files. What their bytes mean is in `../probe.rs`.

#![expect(unsafe_code, reason = "a file is mapped to learn how the kernel names it")]

use std::collections::BTreeSet;
use std::fs::{File, Metadata};
use std::num::NonZero;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::mman::{MapFlags, ProtFlags};
use object::ReadCache;

use crate::config::AttachAt;
use crate::samplers::cuda::governor::driver::Target;
use crate::samplers::cuda::governor::gates::Gates;
use crate::samplers::cuda::hooks::Group;
use crate::samplers::cuda::probe::{self, Plan, ProbeError};
use crate::samplers::process::decode::{self, FileId};

/// Larger than any CUDA driver library by far; protects against a file that claims to be huge.
const MOST_BYTES: u64 = 512 * 1024 * 1024;

/// Why a file cannot be hooked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LibraryError {
    #[error("cannot open it: {0}")]
    Open(#[source] std::io::Error),
    #[error("is not a regular file of at most {MOST_BYTES} bytes")]
    Shape,
    #[error("cannot map it: {0}")]
    Map(#[source] nix::Error),
    #[error("cannot find it among the mappings of this process: {0}")]
    Identity(#[source] std::io::Error),
    #[error("{0}")]
    Probe(#[from] ProbeError),
}

/// Which file a path leads to, and in which state; cheap to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

/// `None` when the path leads to nothing.
pub(crate) fn version(path: &Path) -> Option<Version> {
    std::fs::metadata(path).ok().map(|it| Version::of(&it))
}

impl Version {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// An open library, and where to hook it.
#[derive(Debug)]
pub(crate) struct LibraryFile {
    file: File,
    pub(crate) id: FileId,
    pub(crate) plan: Plan,
    /// Given to it when it is hooked.
    pub(crate) gates: Gates,
}

impl LibraryFile {
    pub(crate) fn open(path: &Path, attach_at: AttachAt) -> Result<Self, LibraryError> {
        let file = File::open(path).map_err(LibraryError::Open)?;
        let metadata = file.metadata().map_err(LibraryError::Open)?;
        if !metadata.is_file() || metadata.len() > MOST_BYTES {
            return Err(LibraryError::Shape);
        }
        // Read, not mapped: a mapped file that is cut short under us would kill the agent.
        let plan = probe::plan(&ReadCache::new(&file), attach_at)?;
        let id = id(&file)?;
        Ok(Self { file, id, plan, gates: Gates::default() })
    }

    /// What puts groups of hooks on and off again without this value.
    pub(crate) fn target(&self, groups: &BTreeSet<Group>) -> std::io::Result<Target> {
        let points = self.plan.points.iter().filter(|it| groups.contains(&it.hook.group));
        Ok(Target {
            file: self.file.try_clone()?.into(),
            gates: self.gates,
            points: points.copied().collect(),
        })
    }

    /// For attaching to exactly the file that was decoded, whatever its path leads to by now.
    pub(crate) fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// The names that `/proc/PID/maps` gives the file. They may differ from those of stat(2), on btrfs
/// and on overlays for instance, so that the file is mapped and looked up.
fn id(file: &File) -> Result<FileId, LibraryError> {
    let page = NonZero::<usize>::MIN;
    // SAFETY: a new private mapping at an address of the kernel's choice; nothing reads it.
    let mapped = unsafe {
        nix::sys::mman::mmap(None, page, ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE, file, 0)
    };
    let mapped = mapped.map_err(LibraryError::Map)?;
    let maps = std::fs::read_to_string("/proc/self/maps");
    // SAFETY: the mapping was made above and nothing points into it.
    unsafe { nix::sys::mman::munmap(mapped, page.get()) }.map_err(LibraryError::Map)?;
    let maps = maps.map_err(LibraryError::Identity)?;
    let start = mapped.as_ptr() as u64;
    decode::mappings(&maps)
        .find(|it| it.start == start)
        .map(|it| it.file)
        .ok_or_else(|| LibraryError::Identity(std::io::ErrorKind::NotFound.into()))
}
