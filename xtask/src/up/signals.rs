//! What wakes the demo: somebody wants it to end, or one of its processes has ended.

use std::os::fd::AsFd as _;
use std::time::Duration;

use anyhow::Context;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

const STOPPING: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Holds back the signals from here on; they are read instead. Processes that are started later
/// get an empty mask from the standard library.
#[derive(Debug)]
pub(super) struct Signals(SignalFd);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wake {
    Stop,
    /// At least one process has ended; several may share one of these.
    Ended,
}

impl Signals {
    pub(super) fn hold_back() -> anyhow::Result<Self> {
        let mut set = SigSet::empty();
        for it in STOPPING.into_iter().chain([Signal::SIGCHLD]) {
            set.add(it);
        }
        set.thread_block().context("cannot hold back signals")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        SignalFd::with_flags(&set, flags).map(Self).context("cannot read signals")
    }

    /// Waits; `None` when nothing came within `limit`.
    pub(super) fn wait(&self, limit: Option<Duration>) -> anyhow::Result<Option<Wake>> {
        let mut wanted = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let limit = limit.map_or(Ok(PollTimeout::NONE), PollTimeout::try_from);
        match poll(&mut wanted, limit.context("the limit is too long")?) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot wait for signals"),
        }
        let Some(signal) = self.0.read_signal().context("cannot read signals")? else {
            return Ok(None);
        };
        let stopping = STOPPING.iter().any(|it| u32::try_from(*it as i32) == Ok(signal.ssi_signo));
        Ok(Some(if stopping { Wake::Stop } else { Wake::Ended }))
    }
}
