//! Asks `/proc` for the cgroup and the user of a process, and the user database for names.
//!
//! What the texts mean is in `decode.rs`. A process can end between two reads, and its PID can be
//! given to another: `read` compares the start time before and after.

use nix::unistd::{Uid, User};

use crate::model::ids::ProcessId;
use crate::samplers::process::driver::Proc;

/// What was read of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) cgroup: String,
    /// Real user, as the namespace of this agent numbers it.
    pub(crate) uid: Option<u32>,
}

/// `None` when the process has ended, or its PID has another life now.
pub(crate) fn read(proc: &Proc, process: ProcessId) -> Option<Facts> {
    let lives = || proc.process_id(process.tgid) == Some(process);
    if !lives() {
        return None;
    }
    let cgroup = proc.cgroup(process.tgid).ok()?;
    let uid = proc.uid(process.tgid);
    lives().then_some(Facts { cgroup, uid })
}

/// As the host's user database names it; `None` where it has no such user or cannot say.
pub(crate) fn user_name(uid: u32) -> Option<String> {
    User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|it| it.name)
}
