//! Debian's non-free libcuda1, downloaded and unpacked into a folder.

use std::path::PathBuf;

use anyhow::Context;

use crate::debian::{self, Apt, sources};
use crate::stage::folder::Folder;

const PACKAGE: &str = "libcuda1";
const LIBRARY: &str = "libcuda.so.1";
const COMPONENT: &str = "non-free";
const MISSING: &str = "Debian's non-free libcuda1 cannot be had here; name a library instead: \
                       cargo xtask check-driver /path/to/libcuda.so.1";

/// The path of the library below `folder`.
pub(super) fn libcuda(folder: &Folder) -> anyhow::Result<PathBuf> {
    let own = sources::with_component(&debian::installed_sources()?, COMPONENT);
    let apt = Apt::with(folder, COMPONENT, &own).context(MISSING)?;
    let unpacked = apt.unpack(PACKAGE).context(MISSING)?;
    debian::find(&unpacked, |it| it == LIBRARY)?.context("the package has no libcuda.so.1")
}
