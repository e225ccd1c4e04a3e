//! Finds a compiler that can build for the kernel, installs one where that is allowed, and
//! otherwise says what to install. Changes nothing about the toolchains that rustup manages.
//!
//! Two are known to work: a nightly with its library sources, and a distribution's `rustc` that
//! ships a library for the target (Debian: `rustc-web` with `libstd-rust-web-dev-bpf`).

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::{TARGET, clean, linker};
use crate::{packages, shell};

const SYSTEM_RUSTC: &str = "/usr/bin/rustc";
const SYSTEM_CARGO: &str = "/usr/bin/cargo";
const COMPILER_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];

/// A compiler for the target, and a linker that understands its output.
pub(super) struct Toolchain {
    kind: Kind,
    linker: PathBuf,
}

enum Kind {
    /// rustup's nightly; builds the core library from source.
    Nightly,
    /// The distribution's compiler with a prebuilt core library. Stable, so that the unstable
    /// features which the kernel side needs have to be unlocked.
    System,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let compiler = match self.kind {
            Kind::Nightly => "rustup's nightly",
            Kind::System => SYSTEM_RUSTC,
        };
        write!(f, "{compiler} and {}", self.linker.display())
    }
}

impl Toolchain {
    pub(super) fn linker(&self) -> &Path {
        &self.linker
    }

    /// The cargo to build with; the caller adds the arguments.
    pub(super) fn cargo(&self) -> Command {
        match self.kind {
            Kind::Nightly => {
                let mut command = clean("rustup");
                command.args(["run", "nightly", "cargo", "-Zbuild-std=core"]);
                command
            }
            Kind::System => {
                let own = Path::new(SYSTEM_CARGO);
                let mut command = clean(if own.exists() { own } else { Path::new(env!("CARGO")) });
                command.env("RUSTC", SYSTEM_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                command
            }
        }
    }
}

/// The first that is complete; else what can be completed here; else what to install.
pub(super) fn find_or_install() -> anyhow::Result<Toolchain> {
    if nightly_has_sources()
        && let Some(linker) = linker::on_path()
    {
        return Ok(Toolchain { kind: Kind::Nightly, linker });
    }
    if !system_has_target() {
        install_packages(&COMPILER_PACKAGES)?;
    }
    if !system_has_target() {
        bail!("{SYSTEM_RUSTC} has no library for {TARGET} although it was installed; {}", advice());
    }
    let llvm = llvm_major(&shell::output(system_rustc(["-vV"]))?)?;
    Ok(Toolchain { kind: Kind::System, linker: linker::find_or_build(llvm)? })
}

fn system_rustc<const N: usize>(arguments: [&str; N]) -> Command {
    let mut command = clean(SYSTEM_RUSTC);
    command.args(arguments);
    command
}

fn nightly_has_sources() -> bool {
    let mut command = clean("rustup");
    command.args(["run", "nightly", "rustc", "--print", "sysroot"]);
    shell::output(command)
        .is_ok_and(|it| Path::new(it.trim()).join("lib/rustlib/src/rust/library/core").is_dir())
}

fn system_has_target() -> bool {
    shell::output(system_rustc(["--print", "sysroot"]))
        .is_ok_and(|it| Path::new(it.trim()).join("lib/rustlib").join(TARGET).join("lib").is_dir())
}

/// From `rustc -vV`: the linker must read what this LLVM writes.
fn llvm_major(version: &str) -> anyhow::Result<u32> {
    version
        .lines()
        .find_map(|it| it.strip_prefix("LLVM version: ")?.split('.').next()?.parse().ok())
        .with_context(|| format!("{SYSTEM_RUSTC} -vV names no LLVM version"))
}

/// Installs with apt where this user may; otherwise the error says what to do by hand.
pub(super) fn install_packages(wanted: &[&str]) -> anyhow::Result<()> {
    if !packages::is_installed("apt-get") || !nix::unistd::geteuid().is_root() {
        bail!("no compiler for eBPF found; {}", advice());
    }
    eprintln!("installing with apt-get: {}", wanted.join(" "));
    packages::install(wanted).with_context(advice)
}

/// What to install by hand, for every kind of machine.
pub(super) fn advice() -> String {
    format!(
        "install one of these and run `cargo xtask bpf` again:\n  \
         with rustup:   rustup toolchain install nightly --component rust-src && \
         cargo binstall bpf-linker\n  \
         on Debian 12:  apt-get install {} {}",
        COMPILER_PACKAGES.join(" "),
        linker::packages(22).join(" "),
    )
}

#[cfg(test)]
mod tests {
    use super::llvm_major;

    #[test]
    fn the_llvm_version_is_read_from_rustc() {
        let version = "rustc 1.96.0\nhost: x86_64-unknown-linux-gnu\nLLVM version: 22.1.8\n";
        assert_eq!(llvm_major(version).unwrap(), 22);
        assert!(llvm_major("rustc 1.96.0\n").is_err());
    }
}
