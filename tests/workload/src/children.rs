//! Work that is done by many short-lived children.
#![expect(unsafe_code, reason = "forks")]

use std::process::exit;

use anyhow::{Context, bail};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{ForkResult, Pid, fork};

/// The child's PID in the parent, `None` in the child. For a process with one thread.
pub(crate) fn fork_once() -> anyhow::Result<Option<Pid>> {
    // SAFETY: this process has one thread yet.
    match unsafe { fork() }.context("cannot fork")? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}

/// Lets so many children do the work, so many at a time, and waits for all of them.
pub(crate) fn churn(
    count: u64,
    at_a_time: u64,
    work: impl Fn() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (mut begun, mut running) = (0, 0);
    while begun < count || running > 0 {
        if begun < count && running < at_a_time.max(1) {
            if fork_once()?.is_none() {
                become_child(work());
            }
            begun += 1;
            running += 1;
        } else {
            match wait().context("cannot wait for a child")? {
                WaitStatus::Exited(_, 0) => running -= 1,
                ended => bail!("a child has not done its work: {ended:?}"),
            }
        }
    }
    Ok(())
}

#[expect(clippy::exit, clippy::print_stderr, reason = "a child ends where its parent would go on")]
fn become_child(done: anyhow::Result<()>) -> ! {
    match done {
        Ok(()) => exit(0),
        Err(error) => {
            eprintln!("workload: child: {error:#}");
            exit(1)
        }
    }
}
