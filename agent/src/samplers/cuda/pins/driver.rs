//! The pins themselves: files of a bpf file system, in a folder that one agent at a time owns.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use agent_ebpf::{ABI, Ownership};
use aya::maps::{Array, Map, MapData, MapError, MapInfo};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statfs::{FsType, statfs};

use super::{LeftMaps, LinkName, MapSize, Removed, is_version_folder, version_folder};
use crate::clock;
use crate::model::units::BootNs;
use crate::samplers::cuda::bpf::driver as bpf;

/// `BPF_FS_MAGIC` of `linux/magic.h`.
const BPF_FS: FsType = FsType(0xcafe_4a11);
/// A folder that was locked may have been removed meanwhile by whoever owned it before.
const TRIES: usize = 3;

/// Why nothing can be pinned, or unpinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error("{0} is not in a bpf file system: mount -t bpf bpf /sys/fs/bpf")]
    NoFileSystem(PathBuf),
    #[error(
        "{0} belongs to another user or may be written by others: what is pinned there is not trusted. \
         Remove it, or set cuda.pin_root to a folder of this agent's own"
    )]
    Foreign(PathBuf),
    #[error("a running agent owns what is pinned in {0}; nothing was removed. Stop it first")]
    Owned(PathBuf),
    #[error("cannot use {path}: {source}")]
    Folder { path: PathBuf, source: io::Error },
}

impl PinError {
    /// Whether this user may not.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Folder { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }

    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Folder { path: path.to_owned(), source }
    }
}

/// The pins of this agent. Dropping it removes them all, unless they are kept.
#[derive(Debug)]
pub(crate) struct Pins {
    root: PathBuf,
    folder: PathBuf,
    keep: Arc<AtomicBool>,
    /// Names of links that this agent knows of.
    known: BTreeSet<String>,
    /// Of the root: who holds it owns what is below, of every ABI.
    _lock: Flock<File>,
}

/// A link, and where it is pinned. Dropping it detaches, unless the pins are kept.
#[derive(Debug)]
pub(crate) struct Link {
    /// Before the descriptor: closing the last reference waits for the detaching, removing the pin
    /// does not.
    _pin: Option<Pin>,
    _descriptor: OwnedFd,
    pub(crate) adopted: bool,
    /// It hooks all that is called later.
    pub(crate) since: BootNs,
}

#[derive(Debug)]
struct Pin {
    path: PathBuf,
    keep: Arc<AtomicBool>,
}

impl Drop for Pin {
    fn drop(&mut self) {
        if !self.keep.load(Ordering::Relaxed) {
            unpin(&self.path);
        }
    }
}

impl Link {
    pub(crate) fn unpinned(descriptor: OwnedFd) -> Self {
        Self { _pin: None, _descriptor: descriptor, adopted: false, since: clock::boot() }
    }
}

impl Pins {
    /// Takes possession of the folder. What agents of another ABI left there is removed: their
    /// counts mean something else.
    pub(crate) fn open(root: &Path) -> Result<Self, PinError> {
        let lock = own(root)?;
        check_owner(root, &lock)?;
        let folder = root.join(version_folder(ABI));
        for other in versions(root)?.into_iter().filter(|it| *it != folder) {
            let removed = remove_version(&other)?;
            let (links, folder) = (removed.links, other.display());
            tracing::info!(links, "removed the hooks of an agent of another version: {folder}");
        }
        let pins = Self {
            root: root.to_owned(),
            folder,
            keep: Arc::default(),
            known: BTreeSet::new(),
            _lock: lock,
        };
        pins.make_folders()?;
        Ok(pins)
    }

    pub(crate) fn map_path(&self, name: &str) -> PathBuf {
        self.folder.join("maps").join(name)
    }

    /// What a predecessor left; `None` = nothing, or what cannot be asked.
    pub(crate) fn maps(&self) -> Option<LeftMaps> {
        let names = entries(&self.folder.join("maps")).ok()?;
        let size = |name: String| {
            let info = MapInfo::from_pin(self.map_path(&name)).ok()?;
            let (key, value, entries) = (info.key_size(), info.value_size(), info.max_entries());
            Some((name, MapSize { key, value, entries }))
        };
        let sizes: BTreeMap<_, _> = names.into_iter().map(size).collect::<Option<_>>()?;
        let layout = layout(&self.map_path("OWNER")).ok();
        (!sizes.is_empty()).then_some(LeftMaps { sizes, layout })
    }

    /// Removes everything that a predecessor left.
    pub(crate) fn clear(&self) -> Result<(), PinError> {
        remove_version(&self.folder)?;
        self.make_folders()
    }

    /// Whether a predecessor hooked these places, by programs of whatever build.
    pub(crate) fn has_link(&self, link: &LinkName) -> bool {
        self.links().iter().any(|it| link.is_there(it))
    }

    /// The link of this name, if a predecessor left it and `is_right`.
    pub(crate) fn adopt(
        &mut self,
        link: &LinkName,
        is_right: impl FnOnce(BorrowedFd<'_>) -> bool,
    ) -> Option<Link> {
        let (name, since) =
            self.links().into_iter().find_map(|it| link.parse(&it).map(|since| (it, since)))?;
        let path = self.link_path(&name);
        let descriptor = bpf::pinned(&path).ok()?;
        if !is_right(descriptor.as_fd()) {
            unpin(&path);
            return None;
        }
        self.known.insert(name);
        let pin = Pin { path, keep: Arc::clone(&self.keep) };
        Some(Link { _pin: Some(pin), _descriptor: descriptor, adopted: true, since })
    }

    /// Pins a new link. Where that fails it lives with this agent.
    pub(crate) fn pin(&mut self, link: &LinkName, descriptor: OwnedFd) -> Link {
        let since = clock::boot();
        let name = link.since(since);
        let path = self.link_path(&name);
        if let Err(error) = bpf::pin(descriptor.as_fd(), &path) {
            tracing::warn!(
                "cannot pin a hook, it ends with this agent: {}: {error}",
                path.display()
            );
            return Link::unpinned(descriptor);
        }
        self.known.insert(name);
        let pin = Pin { path, keep: Arc::clone(&self.keep) };
        Link { _pin: Some(pin), _descriptor: descriptor, adopted: false, since }
    }

    /// Detaches what a predecessor hooked elsewhere in the same file, or by programs of another
    /// build. Returns how many links.
    pub(crate) fn remove_stale(&self, link: &LinkName) -> usize {
        let is_stale = |it: &&String| {
            link.is_like(it) && link.parse(it).is_none() && !self.known.contains(*it)
        };
        let names = self.links();
        names.iter().filter(is_stale).filter(|it| unpin(&self.link_path(it))).count()
    }

    /// Detaches what a predecessor hooked and nobody has asked for since. Returns how many links.
    pub(crate) fn remove_unknown(&self) -> usize {
        let names = self.links();
        let unknown: Vec<_> = names.difference(&self.known).collect();
        for name in &unknown {
            unpin(&self.link_path(name));
        }
        unknown.len()
    }

    /// Pins stay when links and this are dropped: a successor goes on with them.
    pub(crate) fn keep(&self) {
        self.keep.store(true, Ordering::Relaxed);
    }

    fn links(&self) -> BTreeSet<String> {
        entries(&self.folder.join("links")).unwrap_or_default()
    }

    fn link_path(&self, name: &str) -> PathBuf {
        self.folder.join("links").join(name)
    }

    fn make_folders(&self) -> Result<(), PinError> {
        for folder in ["maps", "links"].map(|it| self.folder.join(it)) {
            private_folders().create(&folder).map_err(PinError::at(&folder))?;
        }
        Ok(())
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        if self.keep.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = remove_version(&self.folder) {
            tracing::warn!("{error}: `gleaner-agent detach` removes what is left");
        }
        // Whoever waits for the lock sees that it is gone. In use by somebody else: then it stays.
        drop(std::fs::remove_dir(&self.root));
    }
}

/// Removes every pin of every ABI. Nobody owns them while this runs.
pub fn remove_all(root: &Path) -> Result<Removed, PinError> {
    if !root.exists() {
        return Ok(Removed::default());
    }
    let _lock = own(root)?;
    let mut removed = Removed::default();
    for folder in versions(root)? {
        let part = remove_version(&folder)?;
        removed.links += part.links;
        removed.maps += part.maps;
    }
    drop(std::fs::remove_dir(root));
    Ok(removed)
}

fn own(root: &Path) -> Result<Flock<File>, PinError> {
    check_file_system(root)?;
    for _ in 0..TRIES {
        private_folders().create(root).map_err(PinError::at(root))?;
        let folder = File::open(root).map_err(PinError::at(root))?;
        let lock =
            Flock::lock(folder, FlockArg::LockExclusiveNonblock).map_err(
                |(_, errno)| match errno {
                    Errno::EWOULDBLOCK => PinError::Owned(root.to_owned()),
                    other => PinError::Folder { path: root.to_owned(), source: other.into() },
                },
            )?;
        let is_there = |it: &std::fs::Metadata| {
            std::fs::metadata(root).is_ok_and(|now| now.ino() == it.ino() && now.dev() == it.dev())
        };
        if lock.metadata().is_ok_and(|it| is_there(&it)) {
            return Ok(lock);
        }
    }
    Err(PinError::Owned(root.to_owned()))
}

/// Whoever may write there could have pinned maps and links of their own.
fn check_owner(root: &Path, folder: &File) -> Result<(), PinError> {
    let found = folder.metadata().map_err(PinError::at(root))?;
    let is_ours = found.uid() == nix::unistd::geteuid().as_raw() && found.mode() & 0o022 == 0;
    if is_ours { Ok(()) } else { Err(PinError::Foreign(root.to_owned())) }
}

pub(crate) fn check_file_system(root: &Path) -> Result<(), PinError> {
    let there = root.ancestors().find(|it| it.exists()).unwrap_or(root);
    match statfs(there) {
        Ok(it) if it.filesystem_type() == BPF_FS => Ok(()),
        Ok(_) => Err(PinError::NoFileSystem(root.to_owned())),
        Err(errno) => Err(PinError::Folder { path: there.to_owned(), source: errno.into() }),
    }
}

/// Nobody else may lock, read or remove what is in them.
fn private_folders() -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder
}

fn versions(root: &Path) -> Result<Vec<PathBuf>, PinError> {
    let names = entries(root).map_err(PinError::at(root))?;
    Ok(names.iter().filter(|it| is_version_folder(it)).map(|it| root.join(it)).collect())
}

/// Links first: nothing counts into a map that is gone.
fn remove_version(folder: &Path) -> Result<Removed, PinError> {
    let mut removed = Removed::default();
    for (name, count) in [("links", &mut removed.links), ("maps", &mut removed.maps)] {
        let part = folder.join(name);
        for entry in entries(&part).unwrap_or_default() {
            *count += usize::from(unpin(&part.join(entry)));
        }
        remove_folder(&part)?;
    }
    remove_folder(folder)?;
    Ok(removed)
}

fn remove_folder(folder: &Path) -> Result<(), PinError> {
    match std::fs::remove_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(PinError::at(folder)(error)),
        _ => Ok(()),
    }
}

/// Which layout the agent that made the maps had.
fn layout(owner: &Path) -> Result<u64, MapError> {
    let owner = Map::Array(MapData::from_pin(owner)?);
    Array::<_, u64>::try_from(owner)?.get(&(Ownership::Layout as u32), 0)
}

fn entries(folder: &Path) -> io::Result<BTreeSet<String>> {
    let names = std::fs::read_dir(folder)?.filter_map(Result::ok);
    Ok(names.filter_map(|it| it.file_name().into_string().ok()).collect())
}

/// Waits until a link is detached: closing its last descriptor does, removing its last name does not.
/// Returns whether there was one.
fn unpin(path: &Path) -> bool {
    let descriptor = bpf::pinned(path);
    match std::fs::remove_file(path) {
        Ok(()) => {
            drop(descriptor);
            true
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => {
            tracing::warn!("cannot remove {}: {error}", path.display());
            false
        }
    }
}
