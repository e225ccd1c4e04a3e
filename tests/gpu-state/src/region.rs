//! The mapped file and the locks on it.
//!
//! Record locks, because they are what a driver's open file is: the kernel drops them when the
//! process exits, however it exits, a fork does not inherit them, and asking for one names the
//! holder in the asker's own PID namespace. They also go when the process closes *any* descriptor
//! of the file, so a process that has a slot opens it once and never closes it.
#![expect(unsafe_code, reason = "maps a file that other processes write")]

use std::fs::{File, OpenOptions, Permissions};
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::clock;
use crate::slots::{DEVICES, SLOTS, Shared};

/// File name in the node's folder.
const NAME: &str = "gpu-state";

/// Says "gleaner simulated node", and which layout.
const TAG: u64 = 0x676c_6561_6e67_0002;

/// Lock offsets: one byte per slot, and one for whoever changes owners.
const ADMIN_BYTE: i64 = SLOTS as i64;

const LENGTH: usize = size_of::<Shared>();

#[derive(Debug)]
pub(crate) struct Region {
    file: File,
    shared: NonNull<Shared>,
    /// Record locks do not exclude threads of one process.
    threads: Mutex<()>,
}

// SAFETY: the mapping is shared between processes already; every field of `Shared` is atomic.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Opens the file, and creates it when it is not there.
    pub(crate) fn open(folder: &Path) -> std::io::Result<Self> {
        let path = folder.join(NAME);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o666)
            .open(path)?;
        lock(&file, libc::F_SETLKW, libc::F_WRLCK, ADMIN_BYTE)?;
        if file.metadata()?.len() < LENGTH as u64 {
            // The umask must not lock out a workload of another user.
            file.set_permissions(Permissions::from_mode(0o666))?;
            file.set_len(LENGTH as u64)?;
        }
        let region = Self { shared: map(&file)?, file, threads: Mutex::new(()) };
        region.prepare()?;
        lock(&region.file, libc::F_SETLK, libc::F_UNLCK, ADMIN_BYTE)?;
        Ok(region)
    }

    pub(crate) fn shared(&self) -> &Shared {
        // SAFETY: mapped for as long as `self` lives, aligned to a page, and valid in every state.
        unsafe { self.shared.as_ref() }
    }

    /// Takes the first slot that `usable` allows and makes this process its owner.
    pub(crate) fn claim(&self, usable: impl Fn(usize) -> bool) -> std::io::Result<Option<usize>> {
        let _threads = self.threads.lock().expect("nothing panics while it is held");
        lock(&self.file, libc::F_SETLKW, libc::F_WRLCK, ADMIN_BYTE)?;
        // A slot can look free for a moment that is not; its lock decides.
        let take = |slot| lock(&self.file, libc::F_SETLK, libc::F_WRLCK, byte(slot)).is_ok();
        let found = (0..SLOTS).find(|slot| usable(*slot) && take(*slot));
        if let Some(slot) = found {
            self.shared().reset(slot);
            self.shared().slots[slot].pid.store(std::process::id(), Ordering::Release);
        }
        lock(&self.file, libc::F_SETLK, libc::F_UNLCK, ADMIN_BYTE)?;
        Ok(found)
    }

    /// Who owns the slot: its PID in the caller's PID namespace, 0 where it is not visible there;
    /// `None` when nobody does. The caller's own slot looks like nobody's.
    pub(crate) fn owner(&self, slot: usize) -> Option<u32> {
        let mut wanted = record(libc::F_WRLCK, byte(slot));
        fcntl(&self.file, FcntlArg::F_GETLK(&mut wanted)).ok()?;
        let held = i32::from(wanted.l_type) != libc::F_UNLCK;
        held.then(|| u32::try_from(wanted.l_pid).unwrap_or(0))
    }

    /// Under the admin lock, so that one process alone sees the empty file.
    fn prepare(&self) -> std::io::Result<()> {
        let shared = self.shared();
        match shared.tag.load(Ordering::Acquire) {
            TAG => Ok(()),
            0 => {
                let now = clock::boot_ns();
                shared.created_ns.store(now, Ordering::Relaxed);
                let offset = clock::real_ns().saturating_sub(now);
                shared.epoch_offset_ns.store(offset, Ordering::Relaxed);
                shared.tag.store(TAG, Ordering::Release);
                Ok(())
            }
            other => Err(std::io::Error::other(format!(
                "{NAME} has layout {other:#x}, expected {TAG:#x}; remove it"
            ))),
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: mapped in `open` with this length, and no reference outlives `self`.
        unsafe { munmap(self.shared.cast(), LENGTH) }.expect("the range was mapped as a whole");
    }
}

fn map(file: &File) -> std::io::Result<NonNull<Shared>> {
    let length = NonZeroUsize::new(LENGTH).expect("the layout is not empty");
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping of a file that is at least this long; nobody ever shortens it.
    let start = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, file.as_fd(), 0) }?;
    Ok(start.cast())
}

fn byte(slot: usize) -> i64 {
    i64::try_from(slot).expect("there are few slots")
}

fn record(kind: i32, start: i64) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).expect("lock types are 0, 1, 2"),
        l_whence: 0, // SEEK_SET
        l_start: start,
        l_len: 1,
        l_pid: 0,
    }
}

fn lock(file: &File, command: i32, kind: i32, start: i64) -> std::io::Result<()> {
    let wanted = record(kind, start);
    let argument = if command == libc::F_SETLKW {
        FcntlArg::F_SETLKW(&wanted)
    } else {
        FcntlArg::F_SETLK(&wanted)
    };
    fcntl(file, argument)?;
    Ok(())
}

const _: () = assert!(DEVICES <= 64 && align_of::<Shared>() <= 4096);
