//! Carries what the kernel programs have to say into `tracing`.

use log::{Level, Log, Metadata, Record};

/// aya-log hands its messages to a logger of the `log` crate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bridge;

impl Log for Bridge {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let message = record.args();
        match record.level() {
            Level::Error => tracing::error!(source = "kernel", "{message}"),
            Level::Warn => tracing::warn!(source = "kernel", "{message}"),
            Level::Info => tracing::info!(source = "kernel", "{message}"),
            Level::Debug | Level::Trace => tracing::debug!(source = "kernel", "{message}"),
        }
    }

    fn flush(&self) {}
}
