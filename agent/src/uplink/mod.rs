//! Brings records and the newest readings to the collector, for as long as it takes.
//!
//! Two RPCs share one connection: `deliver.rs` sends what the spool holds and waits until it is
//! committed there; `live` sends the newest readings and nothing else. What is lost with a connection
//! is the connection: records stay in the spool. Says when the connection comes and goes, not at every
//! attempt. Decides nothing about what is measured.

pub mod backoff;
mod deliver;
pub mod encode;
mod window;

#[cfg(test)]
mod tests;

use std::error::Error;
use std::time::Duration;

use futures_util::StreamExt;
use proto::telemetry::v1::{LiveUpdate, NodeIdentity, Reject, telemetry_client::TelemetryClient};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::transport::{Channel, Endpoint};
use tracing::{info, warn};

use crate::clock;
use crate::model::units::BootNs;
use crate::spool::SpoolHandle;
use crate::uplink::backoff::Backoff;
use crate::uplink::deliver::Deliver;

/// A collector that does not accept a connection within this is not there.
const CONNECT: Duration = Duration::from_secs(5);
/// Pings notice a peer that is gone without a word.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_ANSWER: Duration = Duration::from_secs(10);
/// A connection that lasted this long was of use, whatever it carried.
const USEFUL_NS: u64 = 30_000_000_000;
/// The longest wait that a collector may ask for.
const LONGEST_ASKED: Duration = Duration::from_secs(300);
/// Answers are small; a larger one is not from a collector.
const ANSWER_BYTES: usize = 64 * 1024;
/// Of texts that come from outside: enough to read, too little to flood a log.
const TEXT_CHARS: usize = 400;

#[derive(Clone, Debug)]
pub struct UplinkConfig {
    /// `http://host:port`.
    pub address: String,
    pub identity: NodeIdentity,
}

/// How the connection is, for `/status` and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkState {
    pub phase: Phase,
    /// Since when the phase has held.
    pub since: BootNs,
    /// Why there is no connection; empty while there is one.
    pub reason: String,
    pub counts: LinkCounts,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// No collector has answered yet.
    #[default]
    Connecting,
    Connected,
    Lost,
}

/// Since the agent started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounts {
    /// Welcomes of a collector.
    pub connections: u64,
    pub batches_sent: u64,
    pub records_acked: u64,
    /// The collector asked for earlier records.
    pub resumes: u64,
    pub rejects: u64,
}

/// Why a connection ended.
#[derive(Debug)]
enum Ended {
    Lost(String),
    Rejected(Reject),
    /// The records have a new sequence: connect again at once.
    Renumbered,
    Stopped,
}

#[derive(Debug)]
struct Uplink {
    config: UplinkConfig,
    spool: SpoolHandle,
    live: watch::Receiver<Option<LiveUpdate>>,
    link: watch::Sender<LinkState>,
    stop: watch::Receiver<bool>,
    /// Largest batch; halved when a collector says that one was too large.
    batch_bytes: u64,
}

/// Runs until `stop` holds true. Then it sends what is in the spool, for at most a second, and ends
/// the streams.
pub async fn run(
    config: UplinkConfig,
    spool: SpoolHandle,
    live: watch::Receiver<Option<LiveUpdate>>,
    link: watch::Sender<LinkState>,
    stop: watch::Receiver<bool>,
) {
    let batch_bytes = deliver::MOST_BATCH_BYTES;
    let mut uplink = Uplink { config, spool, live, link, stop, batch_bytes };
    let mut backoff = Backoff::default();
    loop {
        let start = clock::boot();
        let acked = uplink.link.borrow().counts.records_acked;
        let ended = uplink.connection().await;
        let useful = clock::boot().since(start) > USEFUL_NS
            || uplink.link.borrow().counts.records_acked > acked;
        if useful {
            backoff.reset();
        }
        let Some(wait) = uplink.after(ended, &mut backoff) else { return };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stopped(&mut uplink.stop) => return,
        }
    }
}

/// Resolves when the agent stops, also where the sender is gone.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    drop(stop.wait_for(|it| *it).await);
}

// === impl Uplink ===

impl Uplink {
    /// One connection, from its first byte to its last.
    async fn connection(&mut self) -> Ended {
        let mut stop = self.stop.clone();
        let channel = tokio::select! {
            connected = connect(&self.config.address) => match connected {
                Ok(channel) => channel,
                Err(text) => return Ended::Lost(text),
            },
            () = stopped(&mut stop) => return Ended::Stopped,
        };
        let client = TelemetryClient::new(channel).max_decoding_message_size(ANSWER_BYTES);
        let live = live_lane(client.clone(), self.live.clone(), self.stop.clone());
        let deliver = Deliver::new(self, client).run();
        tokio::select! {
            ended = deliver => ended,
            ended = live => ended,
        }
    }

    /// How long to wait before the next connection; `None` = there is none, the agent stops.
    fn after(&mut self, ended: Ended, backoff: &mut Backoff) -> Option<Duration> {
        let wait = backoff.next(fastrand::f64());
        let (reason, wait) = match ended {
            Ended::Stopped => return None,
            Ended::Renumbered => return Some(wait),
            Ended::Lost(reason) => (reason, wait),
            Ended::Rejected(reject) => {
                let asked = Duration::from_millis(u64::from(reject.retry_after_ms));
                (self.rejected(&reject), wait.max(asked.min(LONGEST_ASKED)))
            }
        };
        self.lost(reason);
        Some(wait)
    }

    fn rejected(&mut self, reject: &Reject) -> String {
        use proto::telemetry::v1::reject::Code;
        self.link.send_modify(|it| it.counts.rejects += 1);
        if reject.code() == Code::TooLarge {
            self.batch_bytes = (self.batch_bytes / 2).max(deliver::LEAST_BATCH_BYTES);
        }
        let what_to_do = printable(&reject.what_to_do);
        format!(
            "refused with {}: {}. {what_to_do}",
            reject.code().as_str_name(),
            printable(&reject.reason)
        )
    }

    /// Says it once: when a connection ends, when the first attempt fails, and when the collector
    /// refuses for another reason than before.
    fn lost(&mut self, reason: String) {
        let known = self.link.borrow().clone();
        let first = known.phase == Phase::Connected || known.reason.is_empty();
        let refused = reason.starts_with("refused with") && known.reason != reason;
        if first || refused {
            let status = self.spool.status().borrow().clone();
            let waiting = status.open.map_or(0, |it| it.unsent_records) + status.held_records;
            warn!(
                "no connection to the collector at {address}: {reason}. Metering goes on; {waiting} \
                 records wait in the spool and nothing of them is lost. The agent goes on trying",
                address = self.config.address,
            );
        }
        self.link.send_modify(|it| {
            if it.phase == Phase::Connected {
                it.phase = Phase::Lost;
                it.since = clock::boot();
            }
            it.reason = reason;
        });
    }

    fn connected(&self, waiting: u64) {
        info!("connected to the collector at {}; {waiting} records wait", self.config.address);
        self.link.send_modify(|it| {
            it.phase = Phase::Connected;
            it.since = clock::boot();
            it.reason.clear();
            it.counts.connections += 1;
        });
    }
}

async fn connect(address: &str) -> Result<Channel, String> {
    let endpoint = Endpoint::from_shared(address.to_owned())
        .map_err(|error| describe(&error))?
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_ANSWER)
        .keep_alive_while_idle(true);
    endpoint.connect().await.map_err(|error| describe(&error))
}

/// The newest readings, as they change, until the agent stops.
async fn live_lane(
    mut client: TelemetryClient<Channel>,
    live: watch::Receiver<Option<LiveUpdate>>,
    stop: watch::Receiver<bool>,
) -> Ended {
    let mut stopping = stop.clone();
    let ends = async move { stopped(&mut stopping).await };
    let updates = WatchStream::new(live).filter_map(std::future::ready).take_until(Box::pin(ends));
    let answer = client.live(updates).await;
    if *stop.borrow() {
        // The durable lane has its own last words.
        return std::future::pending().await;
    }
    Ended::Lost(match answer {
        Ok(_) => "it ended the stream of readings".to_owned(),
        Err(status) => describe_status(&status),
    })
}

fn describe_status(status: &tonic::Status) -> String {
    let cause = status.source().map(|it| format!(" ({})", describe(it))).unwrap_or_default();
    printable(&format!("{:?}: {}{cause}", status.code(), status.message()))
}

/// An error with its causes: a transport says only `transport error` by itself.
fn describe(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    printable(&text)
}

/// A text from outside as one line of a log.
fn printable(text: &str) -> String {
    let visible = |it: char| if it.is_control() { ' ' } else { it };
    text.chars().take(TEXT_CHARS).map(visible).collect()
}
