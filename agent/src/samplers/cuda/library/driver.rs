//! Opens library files. What their bytes mean is in `../probe`.
//!
//! A path out of another process leads wherever its owner wants. So nothing is opened before it is
//! known to be a regular file, and nothing is used that is not the very file that the kernel says is
//! mapped.

#![expect(unsafe_code, reason = "a file is mapped to learn how the kernel names it")]

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::{File, Metadata};
use std::io;
use std::num::NonZero;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::mman::{MapFlags, ProtFlags};
use nix::sys::statfs::{FUSE_SUPER_MAGIC, fstatfs};
use object::{ReadCache, ReadRef};

use crate::config::HookChoice;
use crate::samplers::cuda::governor::driver::Target;
use crate::samplers::cuda::governor::gates::Gates;
use crate::samplers::cuda::hooks::Group;
use crate::samplers::cuda::probe::{self, Plan, ProbeError};
use crate::samplers::process::decode::{self, FileId};
use crate::samplers::process::driver::Proc;

/// Larger than any CUDA driver library by far; protects against a file that claims to be huge.
const MOST_BYTES: u64 = 512 * 1024 * 1024;

/// Of a file, read into memory: the tables of the largest driver library take a tenth of it.
const MOST_READ: u64 = 16 * 1024 * 1024;

/// Why a file cannot be hooked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LibraryError {
    #[error("cannot open it: {0}")]
    Open(#[source] io::Error),
    #[error(
        "cannot open it without CAP_CHECKPOINT_RESTORE (or CAP_SYS_ADMIN), which shows the files that \
         other processes map, or CAP_SYS_PTRACE, which shows their paths"
    )]
    Denied,
    #[error(
        "has no path any more; opening it needs CAP_CHECKPOINT_RESTORE (or CAP_SYS_ADMIN), which \
         shows the files that other processes map"
    )]
    Nameless,
    #[error("its path leads to another file than the one that is mapped")]
    Another,
    #[error("is not a regular file of at most {MOST_BYTES} bytes")]
    Shape,
    #[error("is on a file system in user space, whose owner could halt whoever reads it")]
    UserSpace,
    #[error("cannot map it: {0}")]
    Map(#[source] nix::Error),
    #[error("cannot find it among the mappings of this process: {0}")]
    Identity(#[source] io::Error),
    #[error("{0}")]
    Probe(#[from] ProbeError),
}

impl LibraryError {
    /// Whether a privilege of this agent is missing, rather than something of the file.
    pub(crate) fn is_privilege(&self) -> bool {
        match self {
            Self::Denied | Self::Nameless => true,
            Self::Open(error) => error.kind() == io::ErrorKind::PermissionDenied,
            _ => false,
        }
    }
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

/// A file as a process maps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MappedFile {
    pub(crate) tgid: u32,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) id: FileId,
    /// As the kernel writes it.
    pub(crate) path: String,
}

/// An open library, and where to hook it.
#[derive(Clone, Debug)]
pub(crate) struct LibraryFile {
    file: Arc<File>,
    choice: HookChoice,
    version: Version,
    pub(crate) id: FileId,
    pub(crate) plan: Arc<Plan>,
    /// Given to it when it is hooked.
    pub(crate) gates: Gates,
}

impl LibraryFile {
    /// A file of this host.
    pub(crate) fn open(path: &Path, choice: HookChoice) -> Result<Self, LibraryError> {
        let found = File::options().read(true).custom_flags(libc::O_PATH).open(path);
        Self::read(reopen(found.map_err(LibraryError::Open)?.into())?, choice)
    }

    /// A file that a process maps, and no other.
    pub(crate) fn open_mapped(
        proc: &Proc,
        mapped: &MappedFile,
        choice: HookChoice,
    ) -> Result<Self, LibraryError> {
        let library = Self::read(reopen(find_mapped(proc, mapped)?)?, choice)?;
        if library.id == mapped.id { Ok(library) } else { Err(LibraryError::Another) }
    }

    fn read(file: File, choice: HookChoice) -> Result<Self, LibraryError> {
        let metadata = file.metadata().map_err(LibraryError::Open)?;
        let id = id(&file)?;
        // Read, not mapped: a mapped file that is cut short under us would kill the agent.
        let bytes = Bounded { cache: ReadCache::new(&file), left: Cell::new(MOST_READ) };
        let plan = Arc::new(probe::plan(&bytes, choice)?);
        let version = Version::of(&metadata);
        Ok(Self { file: Arc::new(file), choice, version, id, plan, gates: Gates::default() })
    }

    /// Whether this is the same file with the same contents.
    pub(crate) fn is_as(&self, other: &Self) -> bool {
        self.id == other.id && self.version == other.version
    }

    /// The same file with what it holds now, if that has changed.
    pub(crate) fn rewritten(&self) -> Option<Result<Self, LibraryError>> {
        let changed = self.file.metadata().map(|it| Version::of(&it) != self.version);
        if !changed.unwrap_or(false) {
            return None;
        }
        let again = self.file.try_clone().map_err(LibraryError::Open);
        Some(again.and_then(|it| Self::read(it, self.choice)))
    }

    /// What puts groups of hooks on and off again without this value.
    pub(crate) fn target(&self, groups: &BTreeSet<Group>) -> io::Result<Target> {
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

/// A descriptor that only names the file. The kernel's own link to it is followed where it may be;
/// else its path, within the root of the process.
fn find_mapped(proc: &Proc, mapped: &MappedFile) -> Result<OwnedFd, LibraryError> {
    let folder = proc.folder(mapped.tgid);
    let link = folder.join("map_files").join(format!("{:x}-{:x}", mapped.start, mapped.end));
    let named = |path: &Path| File::options().read(true).custom_flags(libc::O_PATH).open(path);
    match named(&link) {
        Ok(found) => return Ok(found.into()),
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => {
            return Err(LibraryError::Open(error));
        }
        Err(_) => {}
    }
    let root = named(&folder.join("root")).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => LibraryError::Denied,
        _ => LibraryError::Open(error),
    })?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    match openat2(&root, decode::path_of(&mapped.path).as_str(), how) {
        Ok(found) => Ok(found),
        Err(Errno::ENOENT) if mapped.path.ends_with(decode::DELETED) => Err(LibraryError::Nameless),
        Err(error) => Err(LibraryError::Open(error.into())),
    }
}

/// Opens what a descriptor names, once it is known that this neither waits nor does anything: a
/// device may act when it is opened.
fn reopen(named: OwnedFd) -> Result<File, LibraryError> {
    let named = File::from(named);
    let metadata = named.metadata().map_err(LibraryError::Open)?;
    if !metadata.is_file() || metadata.len() > MOST_BYTES {
        return Err(LibraryError::Shape);
    }
    let system = fstatfs(named.as_fd()).map_err(|it| LibraryError::Open(it.into()))?;
    if system.filesystem_type() == FUSE_SUPER_MAGIC {
        return Err(LibraryError::UserSpace);
    }
    File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(format!("/proc/self/fd/{}", named.as_raw_fd()))
        .map_err(LibraryError::Open)
}

/// Reads a file up to a bound, so that one that claims to have huge tables takes no memory.
#[derive(Debug)]
struct Bounded<'a> {
    cache: ReadCache<&'a File>,
    left: Cell<u64>,
}

impl Bounded<'_> {
    fn take(&self, bytes: u64) -> Result<(), ()> {
        self.left.set(self.left.get().checked_sub(bytes).ok_or(())?);
        Ok(())
    }
}

impl<'a> ReadRef<'a> for &'a Bounded<'_> {
    fn len(self) -> Result<u64, ()> {
        (&self.cache).len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'a [u8], ()> {
        self.take(size)?;
        (&self.cache).read_bytes_at(offset, size)
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'a [u8], ()> {
        let text = (&self.cache).read_bytes_at_until(range, delimiter)?;
        self.take(text.len() as u64)?;
        Ok(text)
    }
}

/// Lets the kernel give processes the file's pages back when the last hook on them goes: it does not
/// while a new page waits in a list of the processor that made it. Moving no pages empties these lists
/// on all of them. Where that is refused, the pages stay the processes' own for longer.
pub(crate) fn settle_pages() {
    let (mut nodes, mut results) = ([0_i32], [0_i32]);
    let (own, none, flags) = (0, 0_usize, 0);
    // SAFETY: no page is named, so that nothing is read or written through the pointers.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            own,
            none,
            std::ptr::null::<libc::c_void>(),
            nodes.as_mut_ptr(),
            results.as_mut_ptr(),
            flags,
        )
    };
    if answer != 0 {
        tracing::debug!("pages settle later: {}", io::Error::last_os_error());
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
        .ok_or_else(|| LibraryError::Identity(io::ErrorKind::NotFound.into()))
}
