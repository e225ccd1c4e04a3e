//! `cargo xtask check-driver [LIBRARY…]`: whether the agent can trace a given driver library.
//!
//! The checking program is `tests/src/bin/check_driver`: it needs the agent's library, which this task
//! does not. With `--fetch` the library is Debian's, unpacked into a temporary folder.

mod fetch;

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use nix::unistd::geteuid;

use crate::stage::folder::Folder;
use crate::{bpf, progress, shell};

/// What is asked for.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// libcuda files; without one, the first of those that the agent looks for.
    libraries: Vec<PathBuf>,
    /// Check Debian's non-free libcuda1, too: it is downloaded, unpacked and removed again.
    #[arg(long)]
    fetch: bool,
    /// One JSON array instead of text.
    #[arg(long)]
    json: bool,
}

/// Fails when something is wrong, after the report.
pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    anyhow::ensure!(
        geteuid().is_root(),
        "attaching probes needs CAP_BPF and CAP_PERFMON; nothing was checked. \
         Run `sudo -E cargo xtask check-driver`"
    );
    let folder = Folder::make("check-driver")?;
    let mut libraries = arguments.libraries;
    if arguments.fetch {
        libraries.push(fetch::libcuda(&folder)?);
    }
    bpf::run()?;
    let mut cargo = shell::cargo(["build", "--locked"]);
    cargo.args(["--package", "tests", "--bin", "check_driver"]);
    progress::build("the checking program", cargo)?;
    let mut program = Command::new(shell::root().join("target/debug/check_driver"));
    program.args(libraries).args(arguments.json.then_some("--json"));
    let line = shell::line(&program);
    let status = program.status().with_context(|| format!("cannot start {line}"))?;
    anyhow::ensure!(status.success(), "a library cannot be traced as it should; see above");
    Ok(())
}
