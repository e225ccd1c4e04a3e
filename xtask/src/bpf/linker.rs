//! The linker for eBPF: taken from the search path, or built once and kept in the user's cache.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::{clean, toolchain};
use crate::{cache, progress, shell};

const NAME: &str = "bpf-linker";
const VERSION: &str = "0.13.0";

/// What building the linker against this LLVM takes on Debian.
pub(super) fn packages(llvm: u32) -> [String; 4] {
    let own = |it: &str| it.to_owned();
    [
        format!("llvm-{llvm}-dev"),
        format!("libpolly-{llvm}-dev"),
        own("libzstd-dev"),
        own("zlib1g-dev"),
    ]
}

/// One that the developer installed.
pub(super) fn on_path() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|it| it.join(NAME)).find(|it| it.is_file())
}

/// The cached linker for this LLVM; built when it is not there, in about a minute.
pub(super) fn find_or_build(llvm: u32) -> anyhow::Result<PathBuf> {
    let folder = cache::folder()?.join(format!("{NAME}-{VERSION}-llvm-{llvm}"));
    let linker = folder.join("bin").join(NAME);
    if !linker.is_file() {
        build(llvm, &folder)?;
    }
    Ok(linker)
}

/// `cargo install` writes the program when it is complete, so an interrupted build leaves none.
fn build(llvm: u32, folder: &Path) -> anyhow::Result<()> {
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
    if !prefix.join("include/llvm-c").is_dir() {
        let packages = packages(llvm);
        toolchain::install_packages(&packages.each_ref().map(String::as_str))?;
    }
    let mut command = clean(env!("CARGO"));
    command
        .args(["install", NAME, "--version", VERSION, "--locked", "--quiet"])
        .args(["--no-default-features", "--features", &format!("llvm-{llvm}"), "--root"])
        .arg(folder)
        .current_dir(shell::root())
        .env("LLVM_PREFIX", &prefix);
    let what = format!(
        "{NAME} {VERSION} for LLVM {llvm}, once (about a minute), into {}",
        folder.display()
    );
    progress::build(&what, command).with_context(toolchain::advice)
}
