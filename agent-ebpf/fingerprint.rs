//! Which sources an object was built from. Shared by `cargo xtask bpf`, which writes the answer
//! beside the object, and by the agent's build script, which refuses an object that is older than
//! its sources.

use std::io;
use std::path::{Path, PathBuf};

/// Hex BLAKE3 over the names and contents of `agent-ebpf/Cargo.toml` and `agent-ebpf/src/**`.
pub(crate) fn fingerprint(crate_folder: &Path) -> io::Result<String> {
    let mut files = vec![crate_folder.join("Cargo.toml")];
    collect(&crate_folder.join("src"), &mut files)?;
    files.sort();
    let mut hasher = blake3::Hasher::new();
    for file in files {
        let name = file.strip_prefix(crate_folder).unwrap_or(&file);
        let content = std::fs::read(&file)?;
        hasher.update(name.as_os_str().as_encoded_bytes());
        hasher.update(&[0]);
        hasher.update(&content.len().to_le_bytes());
        hasher.update(&content);
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|it| it == "rs") {
            files.push(path);
        }
    }
    Ok(())
}
