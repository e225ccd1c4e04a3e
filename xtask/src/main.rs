//! Everything a developer runs. One file or folder per task; `cargo xtask --help` lists them.

#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a task talks to the person who runs it"
)]

mod cache;
mod debian;
mod packages;
mod progress;
mod shell;

mod stage;

mod bench;
mod bpf;
mod check_driver;
mod check_kernel;
mod ci;
mod metrics;
mod test;
mod tidy;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Everything a developer runs")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Start everything on this machine and show idle capacity as it happens.
    Up {
        /// Start what was built before, and build nothing.
        #[arg(long)]
        no_build: bool,
    },
    /// Run every test; as root it first installs what they need.
    Test {
        /// Only tests whose name contains one of these.
        filters: Vec<String>,
    },
    /// Everything that a change must pass: format, lints, tidy, the eBPF object, every test.
    Ci {
        /// The tests ran already, with `cargo xtask test`.
        #[arg(long)]
        skip_tests: bool,
    },
    /// Check what no compiler checks: layout, module direction, dependencies, documentation.
    Tidy,
    /// Write the tables of docs/metrics.md from what the code declares; a test fails where they differ.
    Metrics,
    /// Measure one thing, against its target where it has one.
    Bench {
        name: bench::Bench,
        /// One JSON object instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Check that the agent can trace a driver library: decode, attach, call, compare.
    CheckDriver(check_driver::Arguments),
    /// Check that the agent traces exactly on other kernels, in an emulated machine.
    CheckKernel(check_kernel::Arguments),
    /// Build the eBPF object that the agent embeds; finds or installs the compiler for it.
    Bpf,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().task {
        Task::Up { no_build } => up::run(!no_build),
        Task::Test { filters } => test::run(&filters),
        Task::Ci { skip_tests } => ci::run(!skip_tests),
        Task::Tidy => tidy::run(),
        Task::Metrics => metrics::run(),
        Task::Bench { name, json } => bench::run(name, json),
        Task::CheckDriver(arguments) => check_driver::run(arguments),
        Task::CheckKernel(arguments) => check_kernel::run(&arguments),
        Task::Bpf => bpf::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
