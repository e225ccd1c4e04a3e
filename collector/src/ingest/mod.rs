//! What arrives from agents: the Telemetry service.
//!
//! `decode` and `session` are pure: what a message says, and what follows from it. `listener` keeps the
//! port, `lanes` knows each node's newest streams. The durable lane ends in the ledger, the live lane in
//! `state`; nothing is kept here.

pub mod decode;
pub mod listener;
pub mod session;

#[cfg(test)]
mod decode_tests;
mod durable;
mod lanes;
mod limiter;
mod live;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use proto::telemetry::v1::telemetry_server::{Telemetry, TelemetryServer};
use proto::telemetry::v1::{DeliverRequest, DeliverResponse, LiveSummary, LiveUpdate};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::ingest::durable::Delivery;
use crate::ingest::lanes::Lanes;
use crate::ingest::limiter::Limiter;
use crate::ledger::LedgerHandle;
use crate::metrics;
use crate::model::ids::NodeKey;
use crate::state::StateHandle;

/// A stream that has not said who it is by then ends.
const FIRST_MESSAGE_WITHIN: Duration = Duration::from_secs(10);
/// Answers that wait for a slow agent; then its stream waits.
const ANSWERS: usize = 8;
/// Streams that wait to be started.
const STARTING: usize = 64;

/// A stream at work. It must see its own end, which a handler that the transport drops would not.
type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Where streams end up.
#[derive(Debug)]
struct Shared {
    /// The cluster of agents that name none.
    cluster: String,
    ledger: LedgerHandle,
    state: StateHandle,
    lanes: Lanes,
    live_streams: AtomicU64,
    metrics: metrics::Ingest,
    heard: Limiter<NodeKey>,
}

/// `telemetry.v1.Telemetry`.
#[derive(Debug)]
pub struct Service {
    shared: Arc<Shared>,
    tasks: mpsc::Sender<Task>,
}

/// Runs the streams; to be owned by `run`.
#[derive(Debug)]
pub struct Streams(mpsc::Receiver<Task>);

/// The service for the server, and the streams that it starts.
#[must_use]
pub fn service(
    cluster: String,
    max_message_bytes: usize,
    (ledger, state): (LedgerHandle, StateHandle),
    metrics: metrics::Ingest,
) -> (TelemetryServer<Service>, Streams) {
    let (tasks, receiver) = mpsc::channel(STARTING);
    let shared = Arc::new(Shared {
        cluster,
        ledger,
        state,
        lanes: Lanes::default(),
        live_streams: AtomicU64::new(0),
        metrics,
        heard: Limiter::default(),
    });
    let server = TelemetryServer::new(Service { shared, tasks })
        .max_decoding_message_size(max_message_bytes)
        .max_encoding_message_size(max_message_bytes);
    (server, Streams(receiver))
}

// === impl Streams ===

impl Streams {
    /// Until the service is gone. Dropped, it ends every stream at once; what was not answered is not
    /// acknowledged.
    pub async fn run(mut self) {
        let mut streams = JoinSet::new();
        loop {
            tokio::select! {
                task = self.0.recv() => match task {
                    Some(task) => drop(streams.spawn(task)),
                    None => return,
                },
                Some(ended) = streams.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!("a stream of an agent ended badly: {error}");
                    }
                }
            }
        }
    }
}

// === impl Service ===

impl Service {
    async fn start(&self, task: Task) -> Result<(), Status> {
        self.tasks
            .send(task)
            .await
            .map_err(|_closed| Status::unavailable("the collector is stopping"))
    }
}

#[tonic::async_trait]
impl Telemetry for Service {
    type DeliverStream = ReceiverStream<Result<DeliverResponse, Status>>;

    async fn deliver(
        &self,
        request: Request<Streaming<DeliverRequest>>,
    ) -> Result<Response<Self::DeliverStream>, Status> {
        let (answers, stream) = mpsc::channel(ANSWERS);
        let delivery = Delivery::new(Arc::clone(&self.shared), request.into_inner(), answers);
        self.start(Box::pin(delivery.run())).await?;
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn live(
        &self,
        request: Request<Streaming<LiveUpdate>>,
    ) -> Result<Response<LiveSummary>, Status> {
        let (done, summary) = oneshot::channel();
        let shared = Arc::clone(&self.shared);
        let updates = request.into_inner();
        let task = async move {
            if done.send(live::run(&shared, updates).await).is_err() {
                tracing::debug!("a live stream was left before its summary");
            }
        };
        self.start(Box::pin(task)).await?;
        summary
            .await
            .map_err(|_aborted| Status::unavailable("the collector is stopping"))?
            .map(Response::new)
    }
}
