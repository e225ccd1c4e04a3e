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
        self.short = is_short(free, self.min_free, self.short);
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

fn is_short(free: u64, min_free: u64, was_short: bool) -> bool {
    free < if was_short { resume_at(min_free) } else { min_free }
}

/// A tenth above the stop line, and at least a mebibyte, so that it does not stop at once again.
fn resume_at(min_free: u64) -> u64 {
    min_free.saturating_add((min_free / 10).max(1024 * 1024))
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes / (1024 * 1024))
}

#[cfg(test)]
mod tests {
    use super::{Space, is_short};
    use tempfile::tempdir;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn it_stops_at_the_line_and_resumes_above_it() {
        let check = |free, was_short, expected| {
            assert_eq!(is_short(free * MIB, 100 * MIB, was_short), expected);
        };
        check(99, false, true);
        check(100, false, false);
        check(109, true, true);
        check(110, true, false);
        assert!(is_short(0, 0, true) && !is_short(MIB, 0, true) && !is_short(0, 0, false));
    }

    #[test]
    fn it_says_how_much_is_free_and_what_to_do() {
        let folder = tempdir().unwrap();
        let mut space = Space::new(folder.path().to_owned(), u64::MAX / 2);
        let text = space.shortage().expect("no volume is that large");
        assert!(text.contains(" MiB free, less than its stop line of 8796093022207 MiB"), "{text}");
        assert!(space.what_to_do().contains("goes on by itself at 9675702324428 MiB"));
        let mut space = Space::new(folder.path().to_owned(), 0);
        assert_eq!(space.shortage(), None);
        space.ran_out();
        assert_eq!(space.shortage(), None, "the volume of the tests has a mebibyte");
    }
}
