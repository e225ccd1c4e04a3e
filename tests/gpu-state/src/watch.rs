//! Waiting for the scenario to be written, so that a call that waits in the driver costs its caller
//! nothing meanwhile, as in a driver.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// Knows of everything that was written since it was made or waited last.
#[derive(Debug)]
pub struct Watch(Inotify);

impl Watch {
    pub(crate) fn of(folder: &Path) -> std::io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let written = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CLOSE_WRITE;
        inotify.add_watch(folder, written)?;
        Ok(Self(inotify))
    }

    /// Until the folder is written to, or the time is over.
    pub fn wait(&self, at_most: Duration) -> std::io::Result<()> {
        // Rounded up: who waits for a step must find it past.
        let milliseconds = i32::try_from(at_most.as_millis() + 1).unwrap_or(i32::MAX);
        let timeout = PollTimeout::try_from(milliseconds).map_err(std::io::Error::other)?;
        let mut descriptors = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        match poll(&mut descriptors, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        match self.0.read_events() {
            Ok(_) | Err(Errno::EAGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
