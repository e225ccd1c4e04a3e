//! The way to the collector: two lanes, two RPCs, on one connection that comes back by itself.
//!
//! `durable.rs` delivers the spool, driven by the state machine in `session.rs`; `live.rs` sends
//! the newest readings. Neither waits for the other, so that a backlog never delays a class change.
//! `encode.rs` makes the live message. Nothing here is kept: what is not acknowledged stays in the
//! spool, and a live value that could not be sent is replaced by the next.

pub mod backoff;
pub mod encode;
pub mod link;

mod durable;
mod figures;
mod live;
mod session;

use std::time::Duration;

use proto::telemetry::v1::{LiveUpdate, NodeIdentity, telemetry_client::TelemetryClient};
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};

use crate::spool::SpoolHandle;
use backoff::Bounds;
use durable::Deliverer;
use link::{Link, LinkState};

const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// A collector whose host vanished is noticed after the interval and the timeout.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_WITHIN: Duration = Duration::from_secs(10);
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);
/// What travels back is a few numbers and two sentences.
const ANSWER_BYTES: usize = 64 * 1024;
/// An agent that stops spends this long on delivering what is spooled and closing the streams.
const FINISH_WITHIN: Duration = Duration::from_secs(1);

/// Where to deliver, as whom, and how patiently.
#[derive(Clone, Debug)]
pub struct UplinkConfig {
    address: String,
    endpoint: Endpoint,
    identity: NodeIdentity,
    pub pace: Pace,
}

/// How long the uplink waits for what.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between attempts.
    pub retry: Bounds,
    /// For the Welcome, from the beginning of the attempt.
    pub welcome_within: Duration,
    /// For any answer while a batch has none.
    pub answer_within: Duration,
    /// After another agent of this node connected later: at least this long, so that two agents
    /// that fence each other off do so rarely.
    pub fenced: Duration,
    /// A session that stood for this long worked, even if nothing had to be sent.
    pub proven: Duration,
}

/// Why there is no uplink. Nothing was sent; usage is kept in the spool.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    #[error("collector.address is {address}, expected http://HOST:PORT ({source})")]
    Address { address: String, source: tonic::transport::Error },
}

/// What both lanes need.
#[derive(Clone, Debug)]
struct Lane {
    client: TelemetryClient<Channel>,
    live: watch::Receiver<Option<LiveUpdate>>,
    shutdown: watch::Receiver<bool>,
    pace: Pace,
}

/// Delivers until `shutdown` turns true; then what is spooled and what is open is finished for at
/// most a second. A collector that is away, full or wrong is a state in `link`, never an end.
pub async fn run(
    config: UplinkConfig,
    spool: SpoolHandle,
    live: watch::Receiver<Option<LiveUpdate>>,
    link: watch::Sender<LinkState>,
    shutdown: watch::Receiver<bool>,
) {
    let client = TelemetryClient::new(config.endpoint.connect_lazy())
        .max_decoding_message_size(ANSWER_BYTES);
    let lane = Lane { client, live, shutdown, pace: config.pace };
    let welcomes = link.subscribe();
    let link = Link::new(config.address, link);
    let deliverer = Deliverer::new(lane.clone(), config.identity, spool, link);
    tokio::join!(deliverer.run(), live::run(lane, welcomes));
}

// === impl UplinkConfig ===

impl UplinkConfig {
    pub fn new(address: &str, identity: NodeIdentity) -> Result<Self, UplinkError> {
        let endpoint = Endpoint::from_shared(address.to_owned())
            .map_err(|source| UplinkError::Address { address: address.to_owned(), source })?
            .connect_timeout(CONNECT_WITHIN)
            .tcp_keepalive(Some(TCP_KEEPALIVE))
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_WITHIN)
            .keep_alive_while_idle(true);
        Ok(Self { address: address.to_owned(), endpoint, identity, pace: Pace::default() })
    }
}

// === impl Pace ===

impl Default for Pace {
    fn default() -> Self {
        const RETRY: Bounds = match Bounds::new(Duration::from_millis(200), Duration::from_secs(30))
        {
            Some(it) => it,
            None => panic!("the first wait is not zero and not above the last"),
        };
        Self {
            retry: RETRY,
            welcome_within: Duration::from_secs(10),
            answer_within: Duration::from_secs(60),
            fenced: Duration::from_secs(30),
            proven: Duration::from_secs(10),
        }
    }
}

/// Resolves when the agent stops, also when whoever would say so is gone.
async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a stop as well.
    drop(shutdown.wait_for(|it| *it).await);
}

#[cfg(test)]
mod tests;
