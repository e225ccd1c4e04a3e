//! `gleaner-agent record`: a file of what NVML answers on this node over time, for a bug report.
//!
//! It asks as the agent does, through the same sampler, beside an agent that runs or without one, and
//! changes nothing on the node. `hear.rs` and `capture.rs` turn answers into steps, `names.rs` has
//! stand-ins for what would tell whose node it is, `text.rs` writes. Nothing here is sent anywhere.

mod capture;
mod hear;
mod names;
mod text;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use recording::About;
use tokio::signal::unix::{SignalKind, signal};

use crate::clock;
use crate::config::Config;
use crate::model::readings::{NvmlReadings, NvmlState};
use crate::samplers::nvml::Sampler;

use capture::Capture;
use text::Driver;

/// A recording that has become so large ends.
const MOST_BYTES: u64 = 64 << 20;

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Order {
    pub file: PathBuf,
    pub length: Duration,
    /// Keep UUIDs, places on the bus and PIDs.
    pub with_identities: bool,
}

/// What there is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    pub devices: usize,
    pub ticks: u64,
    pub bytes: u64,
    pub ended: Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    InTime,
    /// By SIGINT or SIGTERM.
    Early,
    /// The file is as large as it may be.
    Full,
}

/// Why there is no recording.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("{0} is there already, and is left as it is; nothing was recorded, name another file")]
    Exists(PathBuf),
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: std::io::Error },
    /// As the sampler says it.
    #[error("nothing was recorded: {0}")]
    NoDriver(String),
    #[error("cannot wait for signals: {0}; nothing was recorded")]
    Signal(std::io::Error),
}

/// The file, and how much is in it.
struct Book {
    path: PathBuf,
    file: File,
    bytes: u64,
}

/// Records until the time is over, SIGINT or SIGTERM, or the bound on the file: what was recorded
/// up to then is in it.
pub async fn record(config: &Config, order: &Order) -> Result<Written, RecordError> {
    if order.file.exists() {
        return Err(RecordError::Exists(order.file.clone()));
    }
    let mut stop = Box::pin(told_to_stop()?);
    let mut sampler = Sampler::start_recording(&config.nvml);
    let (began, began_us) = (clock::boot(), now_us());
    let mut readings = sampler.read(began).await;
    if readings.state != NvmlState::Ok {
        return Err(RecordError::NoDriver(readings.state.text().to_owned()));
    }
    let mut book = Book::open(&order.file)?;
    let about = About {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        tick_ms: u64::try_from(config.tick.as_millis()).unwrap_or(u64::MAX),
        with_identities: order.with_identities,
        sees_processes: readings.sees_processes,
    };
    book.write(&text::head(&about, &driver(&readings)))?;
    let mut capture = Capture::new(order.with_identities, began_us);
    let (mut at, mut ticks) = (began, 0);
    let ended = loop {
        let at_ms = at.since(began) / 1_000_000;
        let page = capture.tick(at_ms, &readings, &sampler.take_heard());
        book.write(&text::page(&page))?;
        ticks += 1;
        let next = at + nanoseconds(config.tick);
        if next.since(began) >= nanoseconds(order.length) {
            break Ended::InTime;
        }
        if book.bytes >= MOST_BYTES {
            break Ended::Full;
        }
        let pause = Duration::from_nanos(next.since(clock::boot()));
        let read = async {
            tokio::time::sleep(pause).await;
            at = clock::boot();
            sampler.read(at).await
        };
        readings = tokio::select! {
            readings = read => readings,
            () = &mut stop => break Ended::Early,
        };
    };
    Ok(Written { devices: readings.devices.len(), ticks, bytes: book.bytes, ended })
}

/// Ends with the first of the two signals.
fn told_to_stop() -> Result<impl Future<Output = ()>, RecordError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RecordError::Signal)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(RecordError::Signal)?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

fn driver(readings: &NvmlReadings) -> Driver {
    let mut identities = readings.devices.values().map(|it| &it.identity);
    let Some(known) = identities.find(|it| it.driver_version.is_some()) else {
        return Driver::default();
    };
    let text = |it: &Option<Arc<str>>| it.as_deref().unwrap_or_default().to_owned();
    Driver { version: text(&known.driver_version), cuda: text(&known.cuda_version) }
}

fn now_us() -> u64 {
    u64::try_from(clock::real_ns() / 1_000).unwrap_or(0)
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

// === impl Book ===

impl Book {
    fn open(path: &Path) -> Result<Self, RecordError> {
        let file = File::create_new(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::AlreadyExists => RecordError::Exists(path.to_owned()),
            _ => RecordError::Write { path: path.to_owned(), source },
        })?;
        Ok(Self { path: path.to_owned(), file, bytes: 0 })
    }

    fn write(&mut self, text: &str) -> Result<(), RecordError> {
        let failed = |source| RecordError::Write { path: self.path.clone(), source };
        self.file.write_all(text.as_bytes()).map_err(failed)?;
        self.bytes += u64::try_from(text.len()).unwrap_or(u64::MAX);
        Ok(())
    }
}
