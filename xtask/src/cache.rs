//! The user's cache folder for this project: what takes long to get, and can be got again.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

pub(crate) fn folder() -> anyhow::Result<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|it| it.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    let Some(base) = base else {
        bail!("neither XDG_CACHE_HOME nor HOME names a folder to keep files in; set one of them")
    };
    Ok(base.join("gleaner"))
}

/// Puts a copy of a file there. It is whole when it is there.
pub(crate) fn keep(file: &Path, kept: &Path) -> anyhow::Result<()> {
    let context = || format!("cannot write {}", kept.display());
    let folder = kept.parent().with_context(context)?;
    std::fs::create_dir_all(folder).with_context(context)?;
    let part = kept.with_extension("part");
    std::fs::copy(file, &part).with_context(context)?;
    std::fs::rename(&part, kept).with_context(context)
}
