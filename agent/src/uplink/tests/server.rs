//! A collector in the test's process, which does what the test tells it to.
//!
//! Keeps a ledger of payloads by spool and number, so that a record that is counted twice or never
//! shows. Not the collector's own logic: that has its tests where it is.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use proto::telemetry::v1::{
    Ack, Batch, DeliverRequest, DeliverResponse, Hello, Limits, LiveSummary, LiveUpdate, Reject,
    Resume, Welcome,
    deliver_request::Message as Request,
    deliver_response::Message as Response,
    telemetry_server::{Telemetry, TelemetryServer},
};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Status, Streaming};

/// What to do with the next batches, in this order; after the last one they are acknowledged.
#[derive(Clone, Debug)]
pub(super) enum Act {
    Ack,
    /// Commits and breaks the stream before it says so.
    CommitAndBreak,
    /// Breaks the stream and commits nothing.
    Break,
    /// Asks for this record instead.
    Resume(u64),
    Reject(Reject),
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) script: Vec<Act>,
    pub(super) hellos: Vec<Hello>,
    pub(super) updates: Vec<LiveUpdate>,
    /// Streams of readings that the agent ended itself.
    pub(super) live_ended: u64,
    /// Streams of records that the agent ended itself.
    pub(super) deliver_ended: u64,
    pub(super) ledger_id: Vec<u8>,
    pub(super) limits: Limits,
    /// Payloads by spool, in the order of their numbers.
    pub(super) ledger: BTreeMap<Vec<u8>, Vec<Vec<u8>>>,
    pub(super) batches: Vec<(u64, usize)>,
    pub(super) epoch: u64,
}

pub(super) type Shared = Arc<Mutex<State>>;

/// Has a thread and a runtime of its own, so that its end breaks every connection at once.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) state: Shared,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Collector {
    state: Shared,
}

impl Server {
    pub(super) fn start(state: Shared) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), state)
    }

    pub(super) fn start_at(address: SocketAddr, state: Shared) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (told, bound) = std::sync::mpsc::channel();
        let service = TelemetryServer::new(Collector { state: Arc::clone(&state) });
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let listener = TcpListener::bind(address).await.unwrap();
                told.send(listener.local_addr().unwrap()).unwrap();
                let serving = tonic::transport::Server::builder()
                    .add_service(service)
                    .serve_with_incoming(TcpListenerStream::new(listener));
                tokio::select! {
                    served = serving => served.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        let address = bound.recv().unwrap();
        Self { address, state, stop: Some(stop), thread: Some(thread) }
    }

    /// Ends every connection without a word, and frees the port.
    pub(super) fn kill(mut self) -> (SocketAddr, Shared) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
        (self.address, Arc::clone(&self.state))
    }
}

type Answers = mpsc::Sender<Result<DeliverResponse, Status>>;

#[tonic::async_trait]
impl Telemetry for Collector {
    type DeliverStream = ReceiverStream<Result<DeliverResponse, Status>>;

    async fn deliver(
        &self,
        request: tonic::Request<Streaming<DeliverRequest>>,
    ) -> Result<tonic::Response<Self::DeliverStream>, Status> {
        let (answers, queue) = mpsc::channel(64);
        let state = Arc::clone(&self.state);
        let requests = request.into_inner();
        #[expect(clippy::disallowed_methods, reason = "the server owns the task of its stream")]
        tokio::spawn(serve(state, requests, answers));
        Ok(tonic::Response::new(ReceiverStream::new(queue)))
    }

    async fn live(
        &self,
        request: tonic::Request<Streaming<LiveUpdate>>,
    ) -> Result<tonic::Response<LiveSummary>, Status> {
        let mut stream = request.into_inner();
        let mut updates = 0;
        while let Some(update) = stream.message().await? {
            updates += 1;
            self.state.lock().unwrap().updates.push(update);
        }
        self.state.lock().unwrap().live_ended += 1;
        Ok(tonic::Response::new(LiveSummary { updates }))
    }
}

async fn serve(state: Shared, mut requests: Streaming<DeliverRequest>, answers: Answers) {
    let mut spool = Vec::new();
    loop {
        let message = match requests.message().await {
            Ok(Some(message)) => message.message,
            Ok(None) => {
                state.lock().unwrap().deliver_ended += 1;
                return;
            }
            Err(_broken) => return,
        };
        let answer = match message.unwrap() {
            Request::Hello(hello) => {
                spool.clone_from(&hello.spool_id);
                Some(state.lock().unwrap().welcome(hello))
            }
            Request::Batch(batch) => state.lock().unwrap().batch(&spool, batch),
        };
        let Some(answer) = answer else {
            drop(answers.send(Err(Status::unavailable("the test breaks the stream"))).await);
            return;
        };
        let last = matches!(answer, Response::Reject(_));
        let answer = DeliverResponse { message: Some(answer) };
        if answers.send(Ok(answer)).await.is_err() || last {
            return;
        }
    }
}

impl State {
    fn welcome(&mut self, hello: Hello) -> Response {
        let cursor = self.ledger.get(&hello.spool_id).map_or(0, |it| it.len() as u64);
        self.hellos.push(hello);
        self.epoch += 1;
        Response::Welcome(Welcome {
            ledger_id: self.ledger_id.clone(),
            epoch: self.epoch,
            cursor,
            limits: Some(self.limits),
        })
    }

    /// `None` = break the stream.
    fn batch(&mut self, spool: &[u8], batch: Batch) -> Option<Response> {
        assert_eq!(batch.epoch, self.epoch, "a batch carries the epoch of its Welcome");
        self.batches.push((batch.first_seq, batch.records.len()));
        let act = if self.script.is_empty() { Act::Ack } else { self.script.remove(0) };
        match act {
            Act::Ack => Some(self.commit(spool, batch)),
            Act::CommitAndBreak => {
                self.commit(spool, batch);
                None
            }
            Act::Break => None,
            Act::Resume(next) => Some(Response::Resume(Resume { next })),
            Act::Reject(reject) => Some(Response::Reject(reject)),
        }
    }

    fn commit(&mut self, spool: &[u8], batch: Batch) -> Response {
        let known = self.ledger.entry(spool.to_vec()).or_default();
        let cursor = known.len() as u64;
        if batch.first_seq > cursor + 1 {
            return Response::Resume(Resume { next: cursor + 1 });
        }
        for (seq, record) in (batch.first_seq..).zip(batch.records) {
            assert_eq!(blake3::hash(&record.payload).as_bytes()[..], record.hash[..]);
            match known.get(usize::try_from(seq - 1).unwrap()) {
                Some(first) => assert_eq!(*first, record.payload, "a retry is the same"),
                None => known.push(record.payload),
            }
        }
        Response::Ack(Ack { through: known.len() as u64 })
    }
}
