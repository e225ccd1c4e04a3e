//! What the program prints: one JSON object per line.

use std::io::Write;

use anyhow::Context;
use nix::fcntl::{FcntlArg, fcntl};
use serde::Serialize;

use crate::cuda::Truth;

#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Line {
    Ready {
        pid: u32,
    },
    Truth {
        pid: u32,
        #[serde(flatten)]
        truth: Truth,
    },
    /// What came of an allocation and its release after entries were patched.
    Checked {
        pid: u32,
        works: bool,
        results: [i32; 2],
        /// Calls that went through a patch.
        intercepted: u64,
    },
    /// About a tenth of a second of `--flat-out`, up to this CLOCK_BOOTTIME.
    Slice {
        boot_ns: u64,
        nanoseconds: u64,
        /// CPU time of the process in it.
        cpu_ns: u64,
        launches: u64,
        per_second: u64,
        /// What its milliseconds took, and what they would have taken had each been as quick as the
        /// middle one; absent where the thread has made no call.
        #[serde(skip_serializing_if = "Option::is_none")]
        took: Option<Took>,
    },
}

/// Sums over pieces of about a millisecond, by the clock and in CPU time of the thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Took {
    pub(crate) wall_ns: u64,
    pub(crate) wall_at_middle_ns: u64,
    pub(crate) cpu_ns: u64,
    pub(crate) cpu_at_middle_ns: u64,
}

/// One line as a whole: a parent and its child print into the same pipe, which keeps no more than
/// 4 KiB together.
pub(crate) fn print(line: &Line) -> anyhow::Result<()> {
    let mut text = serde_json::to_vec(line).context("cannot print")?;
    text.push(b'\n');
    let mut out = std::io::stdout().lock();
    let mut lock = libc::flock {
        l_type: i16::try_from(libc::F_WRLCK)?,
        l_whence: 0, // SEEK_SET
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // Where the output cannot be locked, nobody shares it in a way that matters.
    let locked = fcntl(&out, FcntlArg::F_SETLKW(&lock)).is_ok();
    out.write_all(&text).context("cannot print")?;
    out.flush().context("cannot print")?;
    if locked {
        lock.l_type = i16::try_from(libc::F_UNLCK)?;
        fcntl(&out, FcntlArg::F_SETLK(&lock)).context("cannot unlock the output")?;
    }
    Ok(())
}
