//! `cargo xtask ci`: everything that a change must pass. The tests contain the check that generated
//! code is fresh; building for clippy contains the check that the eBPF object is.

use crate::{bpf, shell, test, tidy};

/// `with_tests` is false where `cargo xtask test` ran already.
pub(crate) fn run(with_tests: bool) -> anyhow::Result<()> {
    shell::run(shell::cargo(["fmt", "--all", "--check"]))?;
    tidy::run()?;
    bpf::run()?;
    lint(&["--workspace", "--all-targets"])?;
    // Needs a GPU to run, and so is no part of all targets.
    lint(&["--package", "tests", "--test", "gpu"])?;
    if with_tests { test::run(&[]) } else { Ok(()) }
}

fn lint(what: &[&str]) -> anyhow::Result<()> {
    let mut clippy = shell::cargo(["clippy", "--locked"]);
    clippy.args(what).args(["--", "--deny", "warnings"]);
    shell::run(clippy)
}
