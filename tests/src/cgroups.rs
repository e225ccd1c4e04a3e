//! Cgroups for tenants, named as a service manager names them, so that the agent attributes by cgroup.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::daemon::wrapped;

/// Where cgroup v2 may be mounted: alone, or beside v1 controllers.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];

/// Begins the names of all slices that tests make.
const PREFIX: &str = "gleaner-test-";

/// One slice; removed when dropped, after the groups in it.
#[derive(Debug)]
pub struct Slice(PathBuf);

/// One group in a slice; removed when dropped, after the processes in it.
#[derive(Debug)]
pub struct Group(PathBuf);

impl Slice {
    /// A slice of its own, after removing those whose test is dead.
    #[expect(clippy::new_without_default, reason = "it makes something outside of this process")]
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mount = MOUNTS
            .iter()
            .map(Path::new)
            .find(|it| it.join("cgroup.procs").exists() && it.join("cgroup.controllers").exists());
        let mount =
            mount.expect("tests need cgroup v2 at /sys/fs/cgroup or /sys/fs/cgroup/unified");
        remove_left_over(mount);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let slice = mount.join(format!("{PREFIX}{}-{number}.slice", std::process::id()));
        std::fs::create_dir(&slice).unwrap_or_else(|error| {
            panic!("cannot make {} ({error}): run as root", slice.display())
        });
        Self(slice)
    }

    /// The group `NAME.service`.
    pub fn group(&self, name: &str) -> Group {
        let group = self.0.join(format!("{name}.service"));
        std::fs::create_dir(&group)
            .unwrap_or_else(|error| panic!("cannot make {}: {error}", group.display()));
        Group(group)
    }
}

impl Group {
    /// The same command as a process of this group from its first instruction on.
    pub fn place(&self, command: &Command) -> Command {
        let script = "echo $$ > \"$0\"/cgroup.procs && exec \"$@\"";
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", script]).arg(&self.0);
        wrapped(shell, &[], command)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// A group is busy for a moment after its last process was waited for.
#[expect(clippy::print_stderr, reason = "a test that leaves something behind says so")]
fn remove(group: &Path) {
    for _ in 0..100 {
        match std::fs::remove_dir(group) {
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            Ok(()) => return,
            Err(error) => return eprintln!("cannot remove {}: {error}", group.display()),
        }
    }
    eprintln!("cannot remove {}: a process stays in it", group.display());
}

fn remove_left_over(mount: &Path) {
    let entries = std::fs::read_dir(mount).expect("the hierarchy is readable");
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|it| it.strip_prefix(PREFIX))
            .and_then(|it| it.split('-').next());
        if owner.is_some_and(|it| !Path::new("/proc").join(it).exists()) {
            for group in std::fs::read_dir(entry.path()).into_iter().flatten().flatten() {
                if group.path().is_dir() {
                    remove(&group.path());
                }
            }
            remove(&entry.path());
        }
    }
}
