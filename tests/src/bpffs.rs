//! A bpf file system of the test's own: its pins are nobody else's, and end with the test.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

/// Seen by the thread that mounted it and by what that thread starts; unmounted with the last of
/// them, also when the test is killed.
#[derive(Debug)]
pub struct BpfFs {
    folder: TempDir,
}

impl BpfFs {
    #[expect(clippy::new_without_default, reason = "it makes something outside of this process")]
    pub fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNS).expect("tests that pin need CAP_SYS_ADMIN");
        run(Command::new("mount").args(["--make-rprivate", "/"]));
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        run(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(folder.path()));
        Self { folder }
    }

    /// For `cuda.pin_root`; nobody has made it yet.
    pub fn pin_root(&self) -> PathBuf {
        self.folder.path().join("gleaner")
    }

    /// Every pin by its path below the root, and its inode: a pin that was made anew has another one.
    pub fn pins(&self) -> BTreeMap<String, u64> {
        let mut found = BTreeMap::new();
        if self.pin_root().exists() {
            collect(&self.pin_root(), &mut found);
        }
        found
    }

    /// Those of links to libraries.
    pub fn library_links(&self) -> BTreeMap<String, u64> {
        self.pins().into_iter().filter(|(path, _)| path.contains("/links/file-")).collect()
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        run(Command::new("umount").arg("--lazy").arg(self.folder.path()));
    }
}

fn collect(folder: &Path, found: &mut BTreeMap<String, u64>) {
    for entry in std::fs::read_dir(folder).expect("root may look").filter_map(Result::ok) {
        let metadata = entry.metadata().expect("nobody else removes it");
        if metadata.is_dir() {
            collect(&entry.path(), found);
        } else {
            found.insert(entry.path().display().to_string(), metadata.ino());
        }
    }
}

fn run(command: &mut Command) {
    let status = command.status().expect("util-linux is installed");
    assert!(status.success(), "{command:?}: {status}");
}
