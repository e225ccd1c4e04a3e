//! A temporary folder that goes away with its value.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::left_over;

#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// A new folder `gleaner-PURPOSE-PID` of this user alone. Those of processes that were killed
    /// are removed.
    pub(crate) fn make(purpose: &str) -> anyhow::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let (place, prefix) = (std::env::temp_dir(), format!("gleaner-{purpose}-"));
        for left in left_over(&place, &prefix, "") {
            drop(Self(left));
        }
        let path = place.join(format!("{prefix}{}", std::process::id()));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file below it, with the folders on the way.
    pub(crate) fn write(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.0.join(name);
        let context = || format!("cannot write {}", path.display());
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(context)?;
        }
        std::fs::write(&path, text).with_context(context)?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Folder;

    #[test]
    fn nothing_stays() {
        let folder = Folder::make("folder-test").unwrap();
        let file = folder.write("a/b.toml", "x").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "x");
        let path = folder.path().to_owned();
        drop(folder);
        assert!(!path.exists());
    }
}
