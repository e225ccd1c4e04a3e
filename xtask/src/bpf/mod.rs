//! `cargo xtask bpf`: builds the eBPF object that the agent embeds, and remembers from which
//! sources. Does nothing when the object is fresh.
//!
//! The object needs another compiler than the rest of the workspace: `toolchain.rs` finds one.

mod linker;
mod toolchain;

#[path = "../../../agent-ebpf/fingerprint.rs"]
mod fingerprint;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::{progress, shell};
use toolchain::Toolchain;

const TARGET: &str = "bpfel-unknown-none";
const OBJECT: &str = "gleaner-ebpf";

/// Builds `target/bpf/gleaner-ebpf` unless it is fresh.
pub(crate) fn run() -> anyhow::Result<()> {
    let root = shell::root();
    let sources = fingerprint::fingerprint(&root.join("agent-ebpf"))
        .context("cannot read the sources of the eBPF object in agent-ebpf")?;
    let folder = root.join("target/bpf");
    let object = folder.join(OBJECT);
    let stamp = folder.join(format!("{OBJECT}.source"));
    if is_fresh(&object, &stamp, &sources) {
        eprintln!("eBPF object is fresh: {}", object.display());
        return Ok(());
    }
    let built = build(&toolchain::find_or_install()?)?;
    install(&built, &object, &stamp, &sources)
        .with_context(|| format!("cannot write {}", object.display()))?;
    eprintln!("eBPF object built: {}", object.display());
    Ok(())
}

fn is_fresh(object: &Path, stamp: &Path, sources: &str) -> bool {
    object.is_file() && std::fs::read_to_string(stamp).is_ok_and(|it| it == sources)
}

/// Builds in a target folder of its own, so that it never waits for the build that called it.
fn build(toolchain: &Toolchain) -> anyhow::Result<PathBuf> {
    let root = shell::root();
    let target_folder = root.join("target/bpf-build");
    let mut command = toolchain.cargo();
    command
        .current_dir(&root)
        .args(["build", "--package", "agent-ebpf", "--bin", OBJECT, "--release", "--locked"])
        .args(["--target", TARGET, "--target-dir"])
        .arg(&target_folder)
        // The linker optimises the whole program; LTO by the compiler would hide it the bitcode.
        .args(["--config", "profile.release.lto=false"])
        .args(["--config", "profile.release.codegen-units=1"])
        .env("RUSTFLAGS", rustflags(toolchain.linker()));
    progress::build(&format!("the eBPF object with {toolchain}"), command)?;
    Ok(target_folder.join(TARGET).join("release").join(OBJECT))
}

/// Debug information becomes BTF, which the verifier's messages and `bpftool` show.
fn rustflags(linker: &Path) -> String {
    format!("-C linker={} -C debuginfo=2 -C link-arg=--btf", linker.display())
}

/// The stamp goes last: an interrupted run leaves an object that counts as stale.
fn install(built: &Path, object: &Path, stamp: &Path, sources: &str) -> std::io::Result<()> {
    if let Some(folder) = object.parent() {
        std::fs::create_dir_all(folder)?;
    }
    if stamp.exists() {
        std::fs::remove_file(stamp)?;
    }
    std::fs::copy(built, object)?;
    std::fs::write(stamp, sources)
}

/// A command that sees nothing of the toolchain that runs this task: cargo and rustup hand theirs
/// down through the environment.
fn clean(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let inherited = [
        "CARGO",
        "CARGO_BUILD_RUSTC",
        "CARGO_BUILD_RUSTC_WRAPPER",
        "CARGO_BUILD_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_BUILD_TARGET_DIR",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_TARGET_DIR",
        "LD_LIBRARY_PATH",
        "RUSTC",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_WRAPPER",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
    ];
    let mut command = Command::new(program);
    for name in inherited {
        command.env_remove(name);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::{fingerprint::fingerprint, install, is_fresh};

    fn check(change: impl Fn(&std::path::Path), expect_fresh: bool) {
        let folder = std::env::temp_dir().join(format!("gleaner-bpf-{}", std::process::id()));
        let sources = folder.join("src");
        std::fs::create_dir_all(&sources).unwrap();
        std::fs::write(folder.join("Cargo.toml"), "a").unwrap();
        std::fs::write(sources.join("main.rs"), "b").unwrap();
        let (object, stamp) = (folder.join("out/object"), folder.join("out/object.source"));
        let before = fingerprint(&folder).unwrap();
        install(&sources.join("main.rs"), &object, &stamp, &before).unwrap();
        change(&folder);
        assert_eq!(is_fresh(&object, &stamp, &fingerprint(&folder).unwrap()), expect_fresh);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn an_object_is_fresh_until_its_sources_or_itself_change() {
        check(|_| (), true);
        check(|it| std::fs::write(it.join("src/main.rs"), "c").unwrap(), false);
        check(|it| std::fs::write(it.join("src/maps.rs"), "").unwrap(), false);
        check(|it| std::fs::write(it.join("Cargo.toml"), "ab").unwrap(), false);
        check(|it| std::fs::remove_file(it.join("out/object")).unwrap(), false);
        check(|it| std::fs::remove_file(it.join("out/object.source")).unwrap(), false);
    }
}
