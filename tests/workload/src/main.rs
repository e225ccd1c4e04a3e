//! A tenant's program without the computing: makes a known number of known CUDA driver calls and
//! prints the truth about them.
//!
//! Standard output has one JSON object per line: `ready` when the context is open and the memory is
//! held, `truth` at each SIGUSR1 and at the end (SIGTERM and SIGINT end it). A call is counted after it
//! returned, and the truth is taken between calls, so it is exact whenever it is printed.

mod calls;
mod cuda;
mod options;
mod phases;
mod process;
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
