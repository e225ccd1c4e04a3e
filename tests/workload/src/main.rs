//! A tenant's program without the computing: makes a known number of known CUDA driver calls and
//! prints the truth about them.
//!
//! Standard output has one JSON object per line: `ready` when the context is open and the memory is
//! held, `truth` at each SIGUSR1 and at the end (SIGTERM and SIGINT end it). A call is counted after it
//! returned, and the truth is taken between calls, so it is exact whenever it is printed.
//!
//! `calls` is what can be called; `library`, `cuda` and `caller` call it; `tally` and `ledger` keep the
//! truth; `pieces` is how long it took; `work` is what a thread does and `process` what the process does.

mod caller;
mod calls;
mod children;
mod cuda;
mod ledger;
mod library;
mod lines;
mod options;
mod patch;
mod phases;
mod pieces;
mod process;
mod tally;
mod work;

use std::process::ExitCode;

use clap::Parser;

use crate::options::Options;

fn main() -> ExitCode {
    match process::run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "a program's last words")]
            {
                eprintln!("workload: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}
