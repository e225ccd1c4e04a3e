//! `cargo xtask up`: collector, agent and a page on this machine, with the real GPUs or with
//! simulated ones. Ctrl-C leaves nothing behind.

mod configuration;
mod demo;
mod gpus;
mod parts;
mod signals;
mod tenants;
mod words;

use std::path::PathBuf;
use std::process::Command;

use crate::{bpf, progress, shell};
use demo::Demo;
use signals::Signals;

/// `build` is false where everything was built before.
pub(crate) fn run(build: bool) -> anyhow::Result<()> {
    if build {
        build_everything()?;
    }
    let mut signals = Signals::catch()?;
    let Some(mut demo) = Demo::start(&mut signals)? else { return Ok(()) };
    let ended = demo.run_until_stopped(&mut signals);
    eprintln!("\nstopping");
    drop(demo);
    eprintln!("stopped: processes, cgroups and files are gone");
    ended
}

/// The stand-ins are built wherever the demo runs: only the built agent knows whether it needs them.
fn build_everything() -> anyhow::Result<()> {
    bpf::run()?;
    let mut cargo = shell::cargo(["build", "--locked"]);
    for it in ["agent", "collector", "nvml-stub", "cuda-stub-cmp", "workload"] {
        cargo.args(["--package", it]);
    }
    progress::build("agent, collector, client and the stand-ins for a GPU", cargo)
}

fn built() -> PathBuf {
    shell::root().join("target/debug")
}

fn program(name: &str) -> Command {
    Command::new(built().join(name))
}
