//! What wakes the demo: somebody wants it to end, or one of its processes has ended.
//!
//! Handlers and not a blocked mask: a mask would be inherited by every process that is started.

use std::time::Duration;

use anyhow::Context;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator;

/// From here on the signals no longer end this process.
#[derive(Debug)]
pub(super) struct Signals(iterator::Signals);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wake {
    Stop,
    /// At least one process has ended; several may share one of these.
    Ended,
}

impl Signals {
    pub(super) fn catch() -> anyhow::Result<Self> {
        let signals = iterator::Signals::new([SIGINT, SIGTERM, SIGHUP, SIGCHLD]);
        signals.map(Self).context("cannot handle signals")
    }

    /// Waits for a signal.
    pub(super) fn wait(&mut self) -> Option<Wake> {
        wake(self.0.wait())
    }

    /// Rests, then says what came meanwhile or before.
    pub(super) fn rest(&mut self, length: Duration) -> Option<Wake> {
        std::thread::sleep(length);
        wake(self.0.pending())
    }
}

fn wake(signals: impl Iterator<Item = i32>) -> Option<Wake> {
    signals.fold(None, |woken, signal| match (woken, signal) {
        (Some(Wake::Stop), _) => woken,
        (_, SIGCHLD) => Some(Wake::Ended),
        _ => Some(Wake::Stop),
    })
}

#[cfg(test)]
mod tests {
    use super::{SIGCHLD, SIGINT, Wake, wake};

    #[test]
    fn the_wish_to_stop_comes_first() {
        assert_eq!(wake([].into_iter()), None);
        assert_eq!(wake([SIGCHLD].into_iter()), Some(Wake::Ended));
        assert_eq!(wake([SIGCHLD, SIGINT].into_iter()), Some(Wake::Stop));
        assert_eq!(wake([SIGINT, SIGCHLD].into_iter()), Some(Wake::Stop));
    }
}
