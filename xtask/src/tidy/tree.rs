//! The files that git tracks or would track, with their text.

use std::path::Path;
use std::process::Command;

use anyhow::Context;

use crate::shell;

/// Every tracked or untracked, not ignored file of the repository; paths are relative to its root.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) files: Vec<File>,
}

#[derive(Debug)]
pub(super) struct File {
    pub(super) path: String,
    /// Empty where the file is not text.
    pub(super) text: String,
}

impl Tree {
    pub(super) fn read(root: &Path) -> anyhow::Result<Self> {
        let mut git = Command::new("git");
        git.current_dir(root).args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
            "--deduplicate",
        ]);
        let listed = shell::output(git)?;
        let mut files = Vec::new();
        for path in listed.split('\0').filter(|it| !it.is_empty()) {
            let full = root.join(path);
            if !full.exists() {
                continue; // deleted and not yet committed
            }
            let bytes = std::fs::read(&full).with_context(|| format!("cannot read {path}"))?;
            let text = String::from_utf8(bytes).unwrap_or_default();
            files.push(File { path: path.to_owned(), text });
        }
        Ok(Self { files })
    }

    /// Hand-written Rust.
    pub(super) fn rust(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter(|it| it.path.ends_with(".rs") && !it.path.contains("/generated/"))
    }

    #[cfg(test)]
    pub(super) fn of(files: &[(&str, &str)]) -> Self {
        let files = files
            .iter()
            .map(|(path, text)| File { path: (*path).to_owned(), text: (*text).to_owned() })
            .collect();
        Self { files }
    }
}
