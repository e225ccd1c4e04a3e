//! Debian's non-free libcuda1, downloaded and unpacked into a folder. Nothing is installed, and the
//! machine's own package lists stay as they are.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::sources;
use crate::stage::folder::Folder;
use crate::{packages, shell};

const PACKAGE: &str = "libcuda1";
const LIBRARY: &str = "libcuda.so.1";
const MISSING: &str = "Debian's non-free libcuda1 cannot be had here; name a library instead: \
                       cargo xtask check-driver /path/to/libcuda.so.1";

/// The path of the library below `folder`.
pub(super) fn libcuda(folder: &Folder) -> anyhow::Result<PathBuf> {
    if !packages::is_installed("apt-get") || !packages::is_installed("dpkg") {
        bail!("this is no Debian: {MISSING}");
    }
    let own = sources::with_non_free(&installed_sources()?);
    if own.is_empty() {
        bail!("no package source of Debian is configured: {MISSING}");
    }
    let apt = Apt { sources: folder.write("own.list", &own)?, folder: folder.path().to_owned() };
    eprintln!("downloading {PACKAGE}");
    apt.run(&["update", "--quiet"]).context(MISSING)?;
    apt.run(&["download", "--quiet", PACKAGE]).context(MISSING)?;
    let package = find(folder.path(), |it| it.starts_with(PACKAGE) && it.ends_with(".deb"))?;
    let unpacked = folder.path().join("unpacked");
    let mut dpkg = Command::new("dpkg");
    dpkg.arg("--extract").arg(package.context(MISSING)?).arg(&unpacked);
    shell::output(dpkg)?;
    find(&unpacked, |it| it == LIBRARY)?.context("the package has no libcuda.so.1")
}

/// All package sources of this machine, file by file.
fn installed_sources() -> anyhow::Result<Vec<(PathBuf, String)>> {
    let mut paths = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = std::fs::read_dir("/etc/apt/sources.list.d") {
        paths.extend(entries.flatten().map(|it| it.path()));
    }
    let existing = paths.into_iter().filter(|it| it.is_file());
    existing
        .map(|path| {
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            Ok((path, text))
        })
        .collect()
}

/// apt-get with sources, lists and cache of its own.
struct Apt {
    sources: PathBuf,
    folder: PathBuf,
}

impl Apt {
    fn run(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let mut command = Command::new("apt-get");
        command.current_dir(&self.folder).env("DEBIAN_FRONTEND", "noninteractive");
        for (name, value) in [
            ("Dir::Etc::sourcelist", self.sources.clone()),
            ("Dir::Etc::sourceparts", "-".into()),
            ("Dir::State::Lists", self.folder.join("lists")),
            ("Dir::Cache", self.folder.join("cache")),
            // The folder is for this user alone.
            ("APT::Sandbox::User", "root".into()),
        ] {
            command.arg("-o").arg(format!("{name}={}", value.display()));
        }
        for folder in ["lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(self.folder.join(folder))?;
        }
        command.args(arguments);
        shell::output(command).map(drop)
    }
}

/// The first file below a folder whose name is wanted.
fn find(folder: &Path, wanted: impl Fn(&str) -> bool + Copy) -> anyhow::Result<Option<PathBuf>> {
    let context = || format!("cannot read {}", folder.display());
    for entry in std::fs::read_dir(folder).with_context(context)? {
        let path = entry.with_context(context)?.path();
        let name = path.file_name().and_then(|it| it.to_str()).unwrap_or_default();
        if wanted(name) {
            return Ok(Some(path));
        }
        if path.is_dir()
            && !path.is_symlink()
            && let Some(found) = find(&path, wanted)?
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}
