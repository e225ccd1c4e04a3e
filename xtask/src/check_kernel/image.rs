//! The first and only file system of the emulated machine: the programs under check with the libraries
//! that they need, a shell, and what prepares the machine for them.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use crate::debian::{self, Apt, sources};
use crate::stage::folder::Folder;
use crate::{packages, shell};

/// Where the programs under check are.
const PLACE: &str = "gleaner";
/// This machine's own, because those of the shell without libraries do less; and a shell that runs them.
const TOOLS: [(&str, &str); 5] = [
    ("sh", "bin/sh"),
    ("setpriv", "usr/bin/setpriv"),
    ("unshare", "usr/bin/unshare"),
    ("mount", "usr/bin/mount"),
    ("umount", "usr/bin/umount"),
];

/// Run by the kernel as its first process. What is there already is not installed. The second serial line takes what the check says; the first
/// one has what the kernel and everybody else say.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /usr/bin
/bin/busybox --install -s /bin 2>/dev/null
export PATH=/usr/bin:/bin HOME=/tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mkdir -p /dev/shm
mount -t tmpfs shm /dev/shm
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs trace /sys/kernel/tracing
ip link set lo up
/gleaner/deps/check_kernel >/dev/ttyS1
sync
poweroff -f
";

/// What the emulator is given beside a kernel.
pub(super) struct Image(PathBuf);

impl Image {
    /// `programs`: each with its path below the place of the check.
    pub(super) fn make(folder: &Folder, programs: &[(PathBuf, &str)]) -> anyhow::Result<Self> {
        let (busybox, cpio) = helpers(folder)?;
        let root = folder.path().join("root");
        put(&busybox, &root.join("bin/busybox"))?;
        let mut needed = BTreeSet::new();
        for (tool, place) in TOOLS {
            let path =
                packages::path_of(tool).with_context(|| format!("{tool} is not installed"))?;
            needed.extend(libraries(&path)?);
            put(&path, &root.join(place))?;
        }
        for (program, name) in programs {
            needed.extend(libraries(program)?);
            put(program, &root.join(PLACE).join(name))?;
        }
        for library in needed {
            put(&library, &root.join(library.strip_prefix("/")?))?;
        }
        let init = folder.write("root/init", INIT)?;
        std::fs::set_permissions(&init, std::fs::Permissions::from_mode(0o755))?;
        let image = folder.path().join("image.cpio");
        pack(&cpio, &root, &image)?;
        std::fs::remove_dir_all(&root)?;
        Ok(Self(image))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

/// A shell that needs no libraries, and the packer, of this machine's own release.
fn helpers(folder: &Folder) -> anyhow::Result<(PathBuf, PathBuf)> {
    let own = sources::with_component(&debian::installed_sources()?, "main");
    let apt = Apt::with(folder, "tools", &own)?;
    let find = |package: &str, name: &str| {
        let unpacked = apt.unpack(package)?;
        let places = ["bin", "usr/bin"].map(|it| unpacked.join(it).join(name));
        let found = places.into_iter().find(|it| it.is_file());
        found.with_context(|| format!("{package} has no {name}"))
    };
    Ok((find("busybox-static", "busybox")?, find("cpio", "cpio")?))
}

/// The libraries that the dynamic linker would load, and itself.
fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut ldd = Command::new("ldd");
    ldd.arg(program);
    Ok(paths(&shell::output(ldd)?))
}

/// Of `name => path (address)` and `path (address)`.
fn paths(said: &str) -> Vec<PathBuf> {
    let words = said.lines().filter_map(|it| it.split_whitespace().find(|it| it.starts_with('/')));
    words.map(PathBuf::from).collect()
}

fn put(file: &Path, to: &Path) -> anyhow::Result<()> {
    let context = || format!("cannot copy {} to {}", file.display(), to.display());
    std::fs::create_dir_all(to.parent().with_context(context)?).with_context(context)?;
    std::fs::copy(file, to).map(drop).with_context(context)
}

/// In the format that kernels unpack into their memory.
fn pack(cpio: &Path, root: &Path, image: &Path) -> anyhow::Result<()> {
    let mut names =
        Command::new("find").arg(".").current_dir(root).stdout(Stdio::piped()).spawn()?;
    let list = names.stdout.take().context("its output is piped")?;
    let mut packer = Command::new(cpio);
    packer.args(["--create", "--format=newc", "--owner=0:0", "--quiet"]).current_dir(root);
    let packed = packer.stdin(list).stdout(File::create(image)?).status();
    ensure!(names.wait()?.success() && packed?.success(), "cannot pack {}", root.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::paths;

    #[test]
    fn libraries_are_found_in_what_the_linker_lists() {
        let said = "\tlinux-vdso.so.1 (0x00007ffe)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\tlibgone.so => not found\n";
        let expected = ["/lib/x/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(paths(said), expected.map(std::path::PathBuf::from));
        assert!(paths("\tstatically linked\n").is_empty());
    }
}
