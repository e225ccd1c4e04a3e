//! `cargo xtask check-kernel [KERNEL…]`: whether the agent traces exactly on other kernels than this
//! machine's.
//!
//! Boots kernels of Debian in an emulated machine, which needs no virtualisation and no disk: all that
//! runs there is in its first file system (`image.rs`). The checking program is
//! `tests/src/bin/check_kernel`; what it says is shown and judged here.

mod image;
mod kernels;
mod machine;

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::stage::folder::Folder;
use crate::{bpf, packages, progress, shell};
use image::Image;
use kernels::Kernel;

const EMULATOR: &str = "qemu-system-x86_64";
const EMULATOR_PACKAGE: &str = "qemu-system-x86";

/// What is asked for.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Versions (6.1) or kernel files (vmlinuz-…); without one, every version that is known.
    kernels: Vec<String>,
    /// One JSON array instead of text.
    #[arg(long)]
    json: bool,
}

/// What one kernel said.
#[derive(Debug, Serialize)]
struct Report {
    kernel: String,
    checks: Vec<Check>,
    /// Why it did not say everything.
    error: Option<String>,
}

/// One line of what the checking program prints.
#[derive(Debug, Serialize, Deserialize)]
struct Check {
    name: String,
    ok: bool,
    found: String,
}

impl Report {
    fn is_good(&self) -> bool {
        self.error.is_none() && self.checks.len() > 1 && self.checks.iter().all(|it| it.ok)
    }
}

/// Fails when something is wrong on a kernel, after the report.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let kernels = kernels::chosen(&arguments.kernels)?;
    install_emulator()?;
    let folder = Folder::make("check-kernel")?;
    build()?;
    let image = Image::make(&folder, &programs()?)?;
    let mut reports = Vec::new();
    for kernel in &kernels {
        let file = kernel.file(&folder)?;
        reports.push(check(kernel, &file, &image, !arguments.json)?);
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&reports)?);
    }
    let bad: Vec<&str> =
        reports.iter().filter(|it| !it.is_good()).map(|it| it.kernel.as_str()).collect();
    ensure!(bad.is_empty(), "not as it should be on {}; see above", bad.join(", "));
    Ok(())
}

fn check(kernel: &Kernel, file: &Path, image: &Image, show: bool) -> anyhow::Result<Report> {
    eprintln!("booting {kernel}");
    let mut report = Report { kernel: kernel.to_string(), checks: Vec::new(), error: None };
    let ended = machine::run(file, image, |line| {
        let check: Check = serde_json::from_str(line)
            .with_context(|| format!("cannot read what the machine said: {line}"))?;
        if show {
            println!(
                "{:<6} {}: {}",
                if check.ok { "ok" } else { "WRONG" },
                check.name,
                check.found
            );
        }
        report.checks.push(check);
        Ok(())
    })?;
    if let Some(why) = ended {
        eprintln!("{why}");
        report.error = Some(why);
    }
    Ok(report)
}

fn install_emulator() -> anyhow::Result<()> {
    if packages::is_installed(EMULATOR) {
        return Ok(());
    }
    ensure!(
        nix::unistd::geteuid().is_root() && packages::is_installed("apt-get"),
        "{EMULATOR} is missing: install the package {EMULATOR_PACKAGE}"
    );
    eprintln!("installing {EMULATOR_PACKAGE}");
    packages::install(&[EMULATOR_PACKAGE])
}

/// As `cargo xtask test` does: what the kernel is given is the same in every profile.
fn build() -> anyhow::Result<()> {
    bpf::run()?;
    let mut cargo = shell::cargo(["build", "--locked"]);
    for it in [
        "agent",
        "tests",
        "workload",
        "nvml-stub",
        "cuda-stub-cmp",
        "cuda-stub-push",
        "cuda-stub-endbr64",
    ] {
        cargo.args(["--package", it]);
    }
    progress::build("the agent, what checks it, and the stand-ins", cargo)
}

/// What the machine gets, and where the checking program looks for it.
fn programs() -> anyhow::Result<Vec<(PathBuf, &'static str)>> {
    let debug = shell::root().join("target/debug");
    let mut programs =
        vec![(debug.join("check_kernel"), "deps/check_kernel"), (kernel_tests()?, "deps/kernel")];
    for it in [
        "gleaner-agent",
        "workload",
        "libnvml_stub.so",
        "libcuda_stub_cmp.so",
        "libcuda_stub_push.so",
        "libcuda_stub_endbr64.so",
    ] {
        programs.push((debug.join(it), it));
    }
    Ok(programs)
}

/// Cargo names the program of a test after its contents.
fn kernel_tests() -> anyhow::Result<PathBuf> {
    #[derive(Deserialize)]
    struct Artifact {
        executable: Option<PathBuf>,
    }
    eprintln!("building the kernel tests");
    let mut cargo = shell::cargo(["test", "--no-run", "--locked", "--quiet"]);
    cargo.args(["--package", "tests", "--test", "kernel", "--message-format", "json"]);
    let said = shell::output(cargo)?;
    let artifacts = said.lines().filter_map(|it| serde_json::from_str::<Artifact>(it).ok());
    let programs = artifacts.filter_map(|it| it.executable);
    let is_tests = |it: &PathBuf| {
        let name = it.file_name().and_then(|it| it.to_str()).unwrap_or_default();
        name.starts_with("kernel-")
    };
    programs.into_iter().find(is_tests).context("cargo names no program of the kernel tests")
}
