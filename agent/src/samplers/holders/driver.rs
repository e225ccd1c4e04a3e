//! Reads `/proc/PID/{stat,cgroup,status}` and the user database; nothing else of a process is read.
//!
//! What the texts mean is in `decode.rs`. A process can end between two reads, and its PID can be
//! given to another: `read` compares the start time before and after.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User};

use crate::model::ids::ProcessId;
use crate::samplers::holders::decode;

/// More than the kernel writes into any of these files, short of thousands of nested cgroups.
const MAX_BYTES: u64 = 64 * 1024;

/// What was read of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) cgroup: String,
    /// Real user, as the namespace of this agent numbers it.
    pub(crate) uid: Option<u32>,
}

#[derive(Clone, Debug)]
pub(crate) struct Proc {
    root: PathBuf,
}

// === impl Proc ===

impl Proc {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// `None` when there is no such process.
    pub(crate) fn start_ticks(&self, tgid: u32) -> Option<u64> {
        decode::start_ticks(&self.file(tgid, "stat")?)
    }

    /// `None` when the process has ended, or its PID has another life now.
    pub(crate) fn read(&self, process: ProcessId) -> Option<Facts> {
        let lives = || self.start_ticks(process.tgid) == Some(process.start_ticks);
        if !lives() {
            return None;
        }
        let cgroup = self.file(process.tgid, "cgroup")?;
        let uid = self.file(process.tgid, "status").and_then(|it| decode::real_uid(&it));
        lives().then(|| Facts { cgroup: String::from_utf8_lossy(&cgroup).into_owned(), uid })
    }

    fn file(&self, tgid: u32, name: &str) -> Option<Vec<u8>> {
        let file = File::open(self.root.join(tgid.to_string()).join(name)).ok()?;
        let mut text = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut text).ok()?;
        Some(text)
    }
}

/// As the host's user database names it; `None` where it has no such user or cannot say.
pub(crate) fn user_name(uid: u32) -> Option<String> {
    User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|it| it.name)
}
