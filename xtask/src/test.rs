//! `cargo xtask test`: sets up what is missing, builds what tests look up, runs every test.

use crate::{bpf, packages, progress, shell};

pub(crate) fn run(filters: &[String]) -> anyhow::Result<()> {
    warn_without_root();
    packages::provide()?;
    bpf::run()?;
    // With the tests themselves: built apart, what both need would be built twice.
    let everything = shell::cargo(["build", "--workspace", "--all-targets", "--locked"]);
    progress::build("the tests, and the programs and libraries that they start", everything)?;
    if packages::is_installed("cargo-nextest") {
        with_nextest(filters)
    } else {
        with_cargo(filters)
    }
}

/// The tests say the same one by one, each with what it needs; this says it before the wait.
fn warn_without_root() {
    if nix::unistd::geteuid().is_root() {
        return;
    }
    eprintln!(
        "not root: the kernel tests need CAP_BPF and CAP_PERFMON, and the \
         end-to-end tests make cgroups. They will fail; run `sudo -E cargo xtask test` for them."
    );
}

/// `.config/nextest.toml` keeps apart the tests that share the machine.
fn with_nextest(filters: &[String]) -> anyhow::Result<()> {
    let mut tests = shell::cargo(["nextest", "run", "--workspace", "--locked"]);
    tests.args(filters);
    shell::run(tests)?;
    if filters.is_empty() {
        shell::run(shell::cargo(["test", "--workspace", "--doc", "--locked", "--quiet"]))?;
    }
    Ok(())
}

fn with_cargo(filters: &[String]) -> anyhow::Result<()> {
    let mut apart = shell::cargo(["test", "--workspace", "--exclude", "tests", "--locked"]);
    apart.args(["--no-fail-fast", "--"]).args(filters);
    let mut sharing = shell::cargo(["test", "--package", "tests", "--locked", "--no-fail-fast"]);
    sharing.args(["--", "--test-threads=1"]).args(filters);
    let apart = shell::run(apart);
    shell::run(sharing).and(apart)
}
