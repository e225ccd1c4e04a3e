//! Packages of Debian that are downloaded and unpacked, and never installed. The machine's own package
//! lists stay as they are: apt-get works with sources, lists and cache in a folder of the task.

pub(crate) mod sources;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::stage::folder::Folder;
use crate::{packages, shell};

/// apt-get on sources of its own.
pub(crate) struct Apt {
    sources: PathBuf,
    folder: PathBuf,
}

impl Apt {
    /// Reads the lists of these sources, in the one-line style. Everything is kept below `folder`, in
    /// a folder of this name.
    pub(crate) fn with(folder: &Folder, name: &str, sources: &str) -> anyhow::Result<Self> {
        ensure!(
            packages::is_installed("apt-get") && packages::is_installed("dpkg"),
            "this is no Debian"
        );
        ensure!(!sources.is_empty(), "no package source of Debian is configured");
        let sources = folder.write(&format!("{name}/own.list"), sources)?;
        let apt = Self { sources, folder: folder.path().join(name) };
        for folder in ["lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(apt.folder.join(folder))?;
        }
        shell::output(apt.command("apt-get", &["update", "--quiet"]))?;
        Ok(apt)
    }

    /// What a package without contents depends on: the newest of a line of packages.
    pub(crate) fn behind(&self, package: &str) -> anyhow::Result<String> {
        let said = shell::output(self.command("apt-cache", &["depends", "--important", package]))?;
        let dependency = |it: &str| it.trim().strip_prefix("Depends: ").map(str::to_owned);
        said.lines().find_map(dependency).with_context(|| format!("{package} depends on nothing"))
    }

    /// The folder with the contents of a package.
    pub(crate) fn unpack(&self, package: &str) -> anyhow::Result<PathBuf> {
        eprintln!("downloading {package}");
        shell::output(self.command("apt-get", &["download", "--quiet", package]))?;
        let is_it = |it: &str| it.starts_with(&format!("{package}_")) && it.ends_with(".deb");
        let file = find(&self.folder, is_it)?.with_context(|| format!("no file of {package}"))?;
        let unpacked = self.folder.join("unpacked").join(package);
        let mut dpkg = Command::new("dpkg");
        dpkg.arg("--extract").arg(file).arg(&unpacked);
        std::fs::create_dir_all(&unpacked)?;
        shell::output(dpkg)?;
        Ok(unpacked)
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
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
        command.args(arguments);
        command
    }
}

/// All package sources of this machine, file by file.
pub(crate) fn installed_sources() -> anyhow::Result<Vec<(PathBuf, String)>> {
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

/// The first file below a folder whose name is wanted.
pub(crate) fn find(
    folder: &Path,
    wanted: impl Fn(&str) -> bool + Copy,
) -> anyhow::Result<Option<PathBuf>> {
    let context = || format!("cannot read {}", folder.display());
    for entry in std::fs::read_dir(folder).with_context(context)? {
        let path = entry.with_context(context)?.path();
        let name = path.file_name().and_then(|it| it.to_str()).unwrap_or_default();
        if path.is_file() && wanted(name) {
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
