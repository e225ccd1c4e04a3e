//! Puts the collector together and takes it apart: what starts in which order, and what stops first.
//!
//! Ports are bound before anything is written, so a collector that cannot serve leaves nothing behind.
//! On the way out the streams end first, then the servers, then the ledger, each within a deadline.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};
use tonic::transport::Server;
use tonic::transport::server::Router;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::capacity::board::Board;
use crate::capacity::stream;
use crate::clock;
use crate::config::Config;
use crate::ingest::{self, listener};
use crate::ledger::schema::OpenError;
use crate::ledger::writer::WriteError;
use crate::ledger::{self, Condition, LedgerHandle, WriterThread};
use crate::metrics::Metrics;
use crate::outputs::{self, Sources, usage};
use crate::state::fleet::Limits;
use crate::state::{self, Event, StateHandle};

/// How long open requests may take to end.
const DRAIN: Duration = Duration::from_secs(5);
/// How long the ledger may take to finish its last transaction.
const LAST_COMMIT: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_secs(1);
/// Notices peers that are gone without a word.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_WITHIN: Duration = Duration::from_secs(10);
/// Streams of one connection: an agent has two, a client a few.
const STREAMS_PER_CONNECTION: u32 = 128;
/// Streams that a peer may reset before it has read their answers.
const PENDING_RESETS: usize = 20;
const HEADER_BYTES: u32 = 16 * 1024;

/// Why the collector did not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(
        "cannot listen on {address} ({key}): {source}{}; nothing was started and nothing was written. Stop what uses the port (`ss -ltnp` shows it), or set {key} to another",
        .hint
    )]
    Listen { key: &'static str, address: SocketAddr, source: io::Error, hint: &'static str },
    #[error(transparent)]
    Ledger(#[from] OpenError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("{part} ended unexpectedly{}; everything acknowledged is kept", .text)]
    Ended { part: &'static str, text: String },
}

/// A collector that has its ports and its ledger, and does not serve yet.
#[derive(Debug)]
pub struct Collector {
    config: Config,
    ports: Ports,
    metrics: Metrics,
    ledger: LedgerHandle,
    writer: WriterThread,
}

/// Where it really listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    pub http: SocketAddr,
    pub grpc: SocketAddr,
}

#[derive(Debug)]
struct Ports {
    http: TcpListener,
    grpc: TcpListener,
    addresses: Addresses,
}

/// What runs, by the order in which it must stop.
struct Running {
    /// Streams of agents, ticks, the fleet's owner: stopped by being dropped.
    background: JoinSet<&'static str>,
    /// End by themselves when told to.
    servers: JoinSet<Result<(), RunError>>,
    board: Board,
    /// True = stop.
    stop: watch::Sender<bool>,
}

// === impl Collector ===

impl Collector {
    /// Binds the ports, then opens the ledger.
    pub async fn start(config: Config) -> Result<Self, RunError> {
        let ports = Ports::bind(&config).await?;
        let metrics = Metrics::default();
        let (ledger, writer) = ledger::start(&config.ledger, metrics.ledger.clone())?;
        Ok(Self { config, ports, metrics, ledger, writer })
    }

    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.ports.addresses
    }

    /// Serves until `stop` resolves, then drains; or until something fails that cannot be left out.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), RunError> {
        let ledger = self.ledger.clone();
        let mut writer = pin!(self.writer.ended());
        let mut running = Running::start(&self.config, self.ports, &self.metrics, &self.ledger);
        let end = tokio::select! {
            () = stop => Ok(()),
            end = &mut writer => {
                running.stop().await;
                return end.map_err(RunError::from).and(Err(ended("the ledger's writer")));
            }
            error = running.failed() => Err(error),
        };
        running.stop().await;
        ledger.stop().await;
        match timeout(LAST_COMMIT, writer).await {
            Ok(written) => end.and(written.map_err(RunError::from)),
            Err(_late) => end.and(Err(ended("the ledger's last commit"))),
        }
    }
}

// === impl Ports ===

impl Ports {
    async fn bind(config: &Config) -> Result<Self, RunError> {
        let (grpc, grpc_address) = listen("grpc.listen", config.grpc_listen).await?;
        let (http, http_address) = listen("http.listen", config.http_listen).await?;
        let addresses = Addresses { http: http_address, grpc: grpc_address };
        Ok(Self { http, grpc, addresses })
    }
}

async fn listen(
    key: &'static str,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), RunError> {
    let failed = |source: io::Error| {
        let hint = match source.kind() {
            io::ErrorKind::AddrInUse => " (perhaps another collector)",
            _ => "",
        };
        RunError::Listen { key, address, source, hint }
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

// === impl Running ===

impl Running {
    fn start(config: &Config, ports: Ports, metrics: &Metrics, ledger: &LedgerHandle) -> Self {
        let limits =
            Limits { nodes: config.limits.max_nodes, stale_after: config.idle.stale_after };
        let (state, owner) = state::start(limits);
        let board = Board::new(&config.idle);
        let (stop, stopping) = watch::channel(false);
        let mut background = JoinSet::new();
        let mut servers = JoinSet::new();

        let changed = board.clone();
        background.spawn(async move {
            owner.run(|changes, ticked_ns| changed.apply(changes, ticked_ns)).await;
            "the fleet's owner"
        });
        background.spawn(tick(state.clone()));
        background.spawn(keep_house(ledger.clone()));
        let (telemetry, streams) = ingest::service(
            config.cluster.clone(),
            config.limits.max_message_bytes,
            (ledger.clone(), state.clone()),
            metrics.ingest.clone(),
        );
        background.spawn(async move {
            streams.run().await;
            "the streams of agents"
        });
        let (reporter, health) = tonic_health::server::health_reporter();
        background.spawn(report_health(reporter, ledger.condition()));

        let router = server()
            .add_service(telemetry)
            .add_service(stream::service(state.clone(), board.clone(), config.idle))
            .add_service(usage::service(ledger.clone()))
            .add_service(health)
            .add_service(described().build_v1().expect(DESCRIBED))
            .add_service(described().build_v1alpha().expect(DESCRIBED));
        let incoming =
            listener::incoming(ports.grpc, config.limits.max_connections, metrics.ingest.clone());
        servers.spawn(serve_grpc(router, incoming, stopping.clone()));
        let sources = Sources {
            state,
            board: board.clone(),
            totals: ledger.totals(),
            metrics: metrics.clone(),
            grpc_port: ports.addresses.grpc.port(),
        };
        servers.spawn(serve_http(sources, ports.http, stopping));
        Self { background, servers, board, stop }
    }

    /// Resolves when a part has ended that should run for as long as the collector.
    async fn failed(&mut self) -> RunError {
        tokio::select! {
            Some(part) = self.background.join_next() => match part {
                Ok(part) => ended(part),
                Err(error) => RunError::Ended { part: "a task", text: format!(": {error}") },
            },
            Some(server) = self.servers.join_next() => match server {
                Ok(Err(error)) => error,
                Ok(Ok(())) => ended("a server"),
                Err(error) => RunError::Ended { part: "a server", text: format!(": {error}") },
            },
        }
    }

    /// Ends the streams, then the servers. What has not ended by the deadline is dropped.
    async fn stop(&mut self) {
        self.board.close();
        self.background.shutdown().await;
        self.stop.send_replace(true);
        let drained = timeout(DRAIN, async { while self.servers.join_next().await.is_some() {} });
        if drained.await.is_err() {
            tracing::warn!("open requests were cut off after {} s", DRAIN.as_secs());
            self.servers.shutdown().await;
        }
    }
}

fn ended(part: &'static str) -> RunError {
    RunError::Ended { part, text: String::new() }
}

// === parts ===

fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_WITHIN))
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS))
        .http2_max_header_list_size(HEADER_BYTES)
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
}

const DESCRIBED: &str = "the descriptors were encoded when the project was built";

/// For reflection, in both of its versions: older clients know only the earlier one.
fn described() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

async fn serve_grpc(
    router: Router,
    incoming: impl futures_util::Stream<Item = io::Result<listener::Connection>>,
    stopping: watch::Receiver<bool>,
) -> Result<(), RunError> {
    router
        .serve_with_incoming_shutdown(incoming, stopped(stopping))
        .await
        .map_err(|error| RunError::Ended { part: "the gRPC server", text: format!(": {error}") })
}

async fn serve_http(
    sources: Sources,
    listener: TcpListener,
    stopping: watch::Receiver<bool>,
) -> Result<(), RunError> {
    axum::serve(listener, outputs::router(sources))
        .with_graceful_shutdown(stopped(stopping))
        .await
        .map_err(|error| RunError::Ended { part: "the HTTP server", text: format!(": {error}") })
}

async fn stopped(mut stopping: watch::Receiver<bool>) {
    if stopping.wait_for(|it| *it).await.is_err() {
        tracing::debug!("whoever stops the servers has gone");
    }
}

/// Once per second silence is noticed. Apart from the ledger, which may wait for its disk: a silent
/// node has no idle capacity, whatever the disk does.
async fn tick(state: StateHandle) -> &'static str {
    let mut ticks = ticks();
    loop {
        ticks.tick().await;
        state.send(Event::Tick { now_ns: clock::boot_ns() }).await;
    }
}

/// Once per second the ledger looks at its space and its retention.
async fn keep_house(ledger: LedgerHandle) -> &'static str {
    let mut ticks = ticks();
    loop {
        ticks.tick().await;
        ledger.tick().await;
    }
}

fn ticks() -> Interval {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Serving while the ledger takes records: an agent's balancer may look elsewhere when it does not.
async fn report_health(
    reporter: HealthReporter,
    mut condition: watch::Receiver<Condition>,
) -> &'static str {
    // What only reads goes on without room on the disk.
    for service in ["gleaner.capacity.v1.Capacity", "gleaner.usage.v1.Usage"] {
        reporter.set_service_status(service, ServingStatus::Serving).await;
    }
    loop {
        let status = match *condition.borrow_and_update() {
            Condition::Writable => ServingStatus::Serving,
            Condition::Full(_) => ServingStatus::NotServing,
        };
        for service in ["", "gleaner.telemetry.v1.Telemetry"] {
            reporter.set_service_status(service, status).await;
        }
        if condition.changed().await.is_err() {
            // The writer has ended, which `run` sees for itself.
            std::future::pending::<()>().await;
        }
    }
}
