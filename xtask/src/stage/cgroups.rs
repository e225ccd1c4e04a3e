//! A cgroup per tenant, named as systemd names a unit's, so that the agent attributes by cgroup.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

/// Where a cgroup v2 hierarchy may be mounted: alone, or beside v1 controllers.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

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
        let slice = mount.join(format!("gleaner-{}.slice", std::process::id()));
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
        let mut placed = Command::new("/bin/sh");
        placed
            .args(["-c", "echo $$ > \"$0\"/cgroup.procs && exec \"$@\""])
            .arg(&group)
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => placed.env(name, value),
                None => placed.env_remove(name),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            placed.current_dir(folder);
        }
        Ok(placed)
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
