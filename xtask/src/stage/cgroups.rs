//! A cgroup per tenant, named as systemd names a unit's, so that the agent attributes by cgroup.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::left_over;
use crate::shell;

/// Where a cgroup v2 hierarchy may be mounted: alone, or beside v1 controllers.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

const PREFIX: &str = "gleaner-";
const SUFFIX: &str = ".slice";

/// The groups of one stage; removed when dropped, after their processes have ended.
#[derive(Debug)]
pub(crate) struct Cgroups {
    slice: PathBuf,
    groups: Vec<PathBuf>,
}

impl Cgroups {
    /// Makes a slice of its own; the error says why there can be none here.
    pub(crate) fn make() -> anyhow::Result<Self> {
        let mount = MOUNTS
            .iter()
            .map(Path::new)
            .find(|it| it.join("cgroup.procs").exists() && it.join("cgroup.controllers").exists())
            .context("no cgroup v2 hierarchy is mounted")?;
        remove_left_over(mount);
        let slice = mount.join(format!("{PREFIX}{}{SUFFIX}", std::process::id()));
        std::fs::create_dir(&slice).with_context(|| format!("cannot make {}", slice.display()))?;
        Ok(Self { slice, groups: Vec::new() })
    }

    /// `command`, moved into the group `NAME.service` before it runs.
    pub(crate) fn place(&mut self, name: &str, command: &Command) -> anyhow::Result<Command> {
        let group = self.slice.join(format!("{name}.service"));
        if !self.groups.contains(&group) {
            std::fs::create_dir(&group)
                .with_context(|| format!("cannot make {}", group.display()))?;
            self.groups.push(group.clone());
        }
        let mut mover = Command::new("/bin/sh");
        mover.args(["-c", "echo $$ > \"$0\"/cgroup.procs && exec \"$@\""]).arg(&group);
        Ok(shell::behind(mover, command))
    }
}

/// Those of stages that were killed. One that still has processes stays.
fn remove_left_over(mount: &Path) {
    let left = left_over(mount, PREFIX, SUFFIX);
    for slice in left {
        let groups = std::fs::read_dir(&slice).into_iter().flatten().flatten();
        for group in groups.map(|it| it.path()).filter(|it| it.is_dir()).chain([slice]) {
            if let Err(error) = std::fs::remove_dir(&group) {
                eprintln!("cannot remove the cgroup {}: {error}", group.display());
            }
        }
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for group in self.groups.iter().chain([&self.slice]) {
            if let Err(error) = std::fs::remove_dir(group) {
                eprintln!("cannot remove the cgroup {}: {error}", group.display());
            }
        }
    }
}
