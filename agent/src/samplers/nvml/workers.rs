//! The threads that call NVML: one for the library, one for each device.
//!
//! A call into the driver can block for a minute, or for ever in a state in which a thread cannot be
//! killed. So each thread owns its handle, gets one request at a time and answers into one channel;
//! whoever waits, waits there with a deadline, and leaves the thread alone when it passes.

use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use tokio::sync::mpsc::Sender;

use crate::model::ids::DeviceId;
use crate::model::readings::NvmlState;
use crate::model::units::BootNs;
use crate::samplers::nvml::answers::{Listing, Refusal, Report};
use crate::samplers::nvml::driver::{Library, OpenError};
use crate::samplers::nvml::lister::Lister;

/// What the threads send back. Each has at most one of these under way.
#[derive(Debug)]
pub(crate) enum Message {
    Library(Result<(Library, Listing), LibraryError>),
    Device(DeviceId, Box<Report>),
}

/// Why there is no list of devices.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LibraryError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("its devices cannot be listed: {0}")]
    List(Refusal),
}

/// What goes on while there are no GPU readings, and what happens next.
const CONSEQUENCE: &str = "the GPUs of this node are not metered, processes and CUDA calls still \
                           are; it is tried again every 5 s";

/// List the devices; the library is opened first where it is not open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct List;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Visit {
    pub(crate) at: BootNs,
    /// Samples of processes are wanted from here on: Unix time in microseconds.
    pub(crate) last_seen_us: u64,
    /// Ask for its figures too.
    pub(crate) slow: bool,
    /// Look the device up again and find out what it offers.
    pub(crate) probe: bool,
}

/// A thread that is asked. Dropping it lets the thread end after the call that it is in.
#[derive(Debug)]
pub(crate) struct Worker<R> {
    requests: Option<SyncSender<R>>,
    thread: JoinHandle<()>,
}

// === impl Worker ===

impl<R: Send + 'static> Worker<R> {
    fn spawn(name: String, body: impl FnOnce(&Receiver<R>) + Send + 'static) -> io::Result<Self> {
        let (requests, received) = sync_channel(1);
        let thread = std::thread::Builder::new().name(name).spawn(move || body(&received))?;
        Ok(Self { requests: Some(requests), thread })
    }

    /// False when the thread has ended, was told to, or has not taken the last request yet.
    pub(crate) fn ask(&self, request: R) -> bool {
        let Some(requests) = &self.requests else { return false };
        match requests.try_send(request) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }

    /// Lets the thread end after the call that it is in.
    pub(crate) fn close(&mut self) {
        self.requests = None;
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }
}

impl Worker<List> {
    pub(crate) fn library(lister: Lister, messages: Sender<Message>) -> io::Result<Self> {
        Self::spawn("nvml".to_owned(), move |requests| lister.run(requests, &messages))
    }
}

impl Worker<Visit> {
    pub(crate) fn device(
        id: DeviceId,
        library: Library,
        messages: Sender<Message>,
    ) -> io::Result<Self> {
        // The kernel keeps 15 bytes; the end of a UUID tells which device a stuck thread is about.
        let tail = id.0.len().saturating_sub(8);
        let name = format!("nvml-{}", id.0.get(tail..).unwrap_or_default());
        Self::spawn(name, move |requests| {
            let mut held = None;
            for visit in requests {
                let report = library.visit(&id, &mut held, visit);
                let message = Message::Device(id.clone(), Box::new(report));
                if messages.blocking_send(message).is_err() {
                    return;
                }
            }
        })
    }
}

// === impl LibraryError ===

impl LibraryError {
    /// What it means for the node. A library that is not there is no fault of anybody.
    pub(crate) fn state(&self, path: &Path) -> NvmlState {
        let path = path.display();
        match self {
            Self::Open(OpenError::Load(reason)) if is_missing(&path.to_string(), reason) => {
                NvmlState::Absent(format!(
                    "no NVIDIA driver: {reason}; {CONSEQUENCE}. Install the driver, or set \
                     nvml.library where it is"
                ))
            }
            Self::Open(error @ OpenError::NoDriver) => NvmlState::Absent(format!(
                "no NVIDIA driver: {error}; {CONSEQUENCE}. Load it with `modprobe nvidia`"
            )),
            Self::Open(OpenError::VersionMismatch) | Self::List(Refusal::DriverReplaced) => {
                NvmlState::Replaced(format!(
                    "{path} fails: the driver and its library are of different versions; \
                     {CONSEQUENCE}. Finish the upgrade: stop what uses the GPUs and load the new \
                     driver, or reboot"
                ))
            }
            other => NvmlState::Failed(format!("{path} fails: {other}; {CONSEQUENCE}")),
        }
    }
}

/// The dynamic linker names the file that is missing first; another name is a dependency of a
/// library that is there.
fn is_missing(path: &str, reason: &str) -> bool {
    reason.starts_with(path) && reason.ends_with("No such file or directory")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::LibraryError;
    use crate::model::readings::NvmlState;
    use crate::samplers::nvml::answers::Refusal;
    use crate::samplers::nvml::driver::OpenError;

    fn state(error: LibraryError) -> NvmlState {
        error.state(Path::new("libnvidia-ml.so.1"))
    }

    #[test]
    fn only_a_library_or_driver_that_is_not_there_is_absent() {
        let absent = |error| matches!(state(error), NvmlState::Absent(_));
        let load = |text: &str| LibraryError::Open(OpenError::Load(text.to_owned()));
        let missing = ": cannot open shared object file: No such file or directory";
        assert!(absent(load(&format!("libnvidia-ml.so.1{missing}"))));
        assert!(absent(LibraryError::Open(OpenError::NoDriver)));
        // A library that is there and lacks what it needs.
        assert!(!absent(load(&format!("libother.so{missing}"))));
        assert!(!absent(load("libnvidia-ml.so.1: invalid ELF header")));
        assert!(!absent(LibraryError::Open(OpenError::VersionMismatch)));
        assert!(!absent(LibraryError::List(Refusal::DriverGone)));
    }

    #[test]
    fn an_upgrade_that_is_not_finished_is_no_common_failure() {
        for error in [
            LibraryError::Open(OpenError::VersionMismatch),
            LibraryError::List(Refusal::DriverReplaced),
        ] {
            let NvmlState::Replaced(text) = state(error) else { panic!("replaced") };
            assert!(text.contains("different versions") && text.contains("Finish the upgrade"));
        }
    }

    #[test]
    fn a_failure_says_what_goes_on_and_what_comes_next() {
        let NvmlState::Failed(text) = state(LibraryError::List(Refusal::DriverGone)) else {
            panic!("failed");
        };
        assert_eq!(
            text,
            "libnvidia-ml.so.1 fails: its devices cannot be listed: the driver was unloaded; the \
             GPUs of this node are not metered, processes and CUDA calls still are; it is tried \
             again every 5 s"
        );
    }
}
