//! The kernels that are checked: where each comes from, and its file.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::cache;
use crate::debian::{self, Apt, sources};
use crate::stage::folder::Folder;

/// A kernel line of Debian: a package without contents that depends on its newest kernel.
#[derive(Debug)]
pub(super) struct Line {
    version: &'static str,
    release: &'static str,
    package: &'static str,
}

/// The last one without attach cookies, without links to many places, and two with them.
const LINES: [Line; 3] = [
    Line { version: "5.10", release: "bullseye", package: "linux-image-cloud-amd64" },
    Line { version: "6.1", release: "bookworm", package: "linux-image-cloud-amd64" },
    Line { version: "6.12", release: "trixie", package: "linux-image-cloud-amd64" },
];

/// One that is to be checked.
#[derive(Debug)]
pub(super) enum Kernel {
    Debian(&'static Line),
    File(PathBuf),
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Debian(line) => write!(f, "Linux {} of Debian {}", line.version, line.release),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// By version or file; all that are known where nobody chooses.
pub(super) fn chosen(names: &[String]) -> anyhow::Result<Vec<Kernel>> {
    if names.is_empty() {
        return Ok(LINES.iter().map(Kernel::Debian).collect());
    }
    let choose = |name: &String| {
        if let Some(line) = LINES.iter().find(|it| it.version == name) {
            return Ok(Kernel::Debian(line));
        }
        let path = Path::new(name);
        if !path.is_file() {
            let known: Vec<&str> = LINES.iter().map(|it| it.version).collect();
            bail!("{name} is neither a kernel file nor one of {}", known.join(", "));
        }
        Ok(Kernel::File(path.to_owned()))
    };
    names.iter().map(choose).collect()
}

impl Kernel {
    /// What the emulator boots.
    pub(super) fn file(&self, folder: &Folder) -> anyhow::Result<PathBuf> {
        match self {
            Self::Debian(line) => line.fetch(folder).with_context(|| format!("cannot get {self}")),
            Self::File(path) => Ok(path.clone()),
        }
    }
}

impl Line {
    /// The newest kernel of the line; from the user's cache where it was fetched before.
    fn fetch(&self, folder: &Folder) -> anyhow::Result<PathBuf> {
        let own = sources::with_release(&debian::installed_sources()?, self.release);
        let apt = Apt::with(folder, self.release, &own)?;
        let package = apt.behind(self.package)?;
        let kept = cache::folder()?.join("kernels").join(&package);
        if kept.is_file() {
            return Ok(kept);
        }
        let unpacked = apt.unpack(&package)?;
        let kernel = debian::find(&unpacked, |it| it.starts_with("vmlinuz-"))?
            .with_context(|| format!("{package} has no kernel"))?;
        cache::keep(&kernel, &kept)?;
        Ok(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::{LINES, chosen};

    #[test]
    fn kernels_are_chosen_by_version_and_by_file() {
        let own = std::env::current_exe().unwrap().display().to_string();
        let kernels = chosen(&["6.1".to_owned(), own.clone()]).unwrap();
        let names: Vec<String> = kernels.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["Linux 6.1 of Debian bookworm".to_owned(), own]);
        assert_eq!(chosen(&[]).unwrap().len(), LINES.len());
        assert!(chosen(&["2.6".to_owned()]).unwrap_err().to_string().contains("one of 5.10, 6.1"));
    }
}
