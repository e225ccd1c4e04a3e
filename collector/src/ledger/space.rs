//! Whether the ledger's volume has room: the stop line, and the way back.

use std::path::PathBuf;

use nix::sys::statvfs::statvfs;

/// Watches the free space of a folder's volume.
#[derive(Debug)]
pub(super) struct Space {
    folder: PathBuf,
    min_free: u64,
    short: bool,
}

impl Space {
    pub(super) fn new(folder: PathBuf, min_free: u64) -> Self {
        Self { folder, min_free, short: false }
    }

    /// The database said that there is no room: stop until more is free than now.
    pub(super) fn ran_out(&mut self) {
        self.short = true;
    }

    /// Why nothing can be written now; `None` = there is room. A volume that does not answer is left to
    /// the database, whose errors say more.
    pub(super) fn shortage(&mut self) -> Option<String> {
        let free = statvfs(&self.folder).ok()?;
        let free = free.blocks_available().saturating_mul(free.fragment_size());
        let needed = if self.short { resume_at(self.min_free) } else { self.min_free };
        self.short = free < needed;
        self.short.then(|| self.text(free))
    }

    fn text(&self, free: u64) -> String {
        format!(
            "the collector's volume {} has {} free, less than its stop line of {}. Nothing was recorded and nothing is lost: agents keep what is not acknowledged",
            self.folder.display(),
            mebibytes(free),
            mebibytes(self.min_free),
        )
    }

    /// What an operator can do about it.
    pub(super) fn what_to_do(&self) -> String {
        format!(
            "free space or grow the volume; the ledger goes on by itself at {} free (ledger.min_free_bytes is {})",
            mebibytes(resume_at(self.min_free)),
            self.min_free,
        )
    }
}

/// A tenth above the stop line, and at least a mebibyte, so that it does not stop at once again.
fn resume_at(min_free: u64) -> u64 {
    min_free.saturating_add((min_free / 10).max(1024 * 1024))
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes / (1024 * 1024))
}
