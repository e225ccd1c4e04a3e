//! A small collector on loopback: keeps what it commits when it is killed, and misbehaves on request.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::{Stream, stream};
use proto::telemetry::v1::{
    Ack, Batch, DeliverRequest, DeliverResponse, Hello, Limits, LiveSummary, LiveUpdate, Reject,
    Resume, Welcome,
    deliver_request::Message as Request,
    deliver_response::Message as Response,
    reject::Code,
    telemetry_server::{Telemetry, TelemetryServer},
};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Status, Streaming};

use crate::model::usage::Record;
use crate::record;

/// How one session goes. The sessions after those that were asked for are honest.
#[derive(Clone, Debug)]
pub(super) enum Session {
    /// Says this instead of a Welcome.
    Greet(DeliverResponse),
    NoWelcome,
    /// Answers the first batch with this and does not apply it, then goes on honestly.
    Answer(Response),
    /// Ends the stream at the first batch, without or after applying it.
    EndBefore,
    EndAfter,
    /// Applies the first batch and hangs.
    Hang,
    Honest,
}

/// What outlives the process.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) id: Vec<u8>,
    pub(super) epoch: u64,
    /// Last committed number by spool.
    pub(super) cursors: HashMap<Vec<u8>, u64>,
    /// Hash of every record that ever came, by spool and sequence number: a repetition is the same.
    pub(super) seen: HashMap<(Vec<u8>, u64), Vec<u8>>,
    /// Numbers of the committed tiles, in the order in which they were committed.
    pub(super) tiles: Vec<u64>,
    pub(super) limits: Option<Limits>,
    /// Of the sessions to come.
    pub(super) script: VecDeque<Session>,
    pub(super) hellos: Vec<Hello>,
    /// Batches that came, applied or not.
    pub(super) batches: u64,
    /// Live updates that were read, and streams that the agent closed in order.
    pub(super) live: Vec<LiveUpdate>,
    pub(super) live_closed: u64,
}

pub(super) struct Collector {
    pub(super) address: SocketAddr,
    pub(super) ledger: Arc<Mutex<Ledger>>,
    /// While false, live streams are accepted and not read.
    pub(super) reads_live: watch::Sender<bool>,
    runtime: Option<Runtime>,
}

#[derive(Clone)]
struct Service {
    ledger: Arc<Mutex<Ledger>>,
    reads_live: watch::Receiver<bool>,
}

/// One Deliver stream.
struct Delivery {
    service: Service,
    requests: Streaming<DeliverRequest>,
    session: Session,
    spool: Vec<u8>,
    epoch: u64,
}

pub(super) fn response(message: Response) -> DeliverResponse {
    DeliverResponse { message: Some(message) }
}

pub(super) fn reject(code: Code) -> Response {
    Response::Reject(Reject {
        code: code.into(),
        reason: "because".to_owned(),
        what_to_do: "wait".to_owned(),
        retry_after_ms: 1,
    })
}

// === impl Collector ===

impl Collector {
    pub(super) fn start(script: impl IntoIterator<Item = Session>) -> Self {
        let ledger =
            Ledger { id: vec![1; 16], script: script.into_iter().collect(), ..Ledger::default() };
        let mut collector = Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            ledger: Arc::new(Mutex::new(ledger)),
            reads_live: watch::channel(true).0,
            runtime: None,
        };
        collector.restart();
        collector
    }

    /// All at once, as a signal would: nothing is said on any connection.
    pub(super) fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Not here: dropping a runtime waits for its threads, which a task must not do.
            std::thread::spawn(move || drop(runtime)).join().unwrap();
        }
    }

    /// With the same ledger, on the same port.
    pub(super) fn restart(&mut self) {
        self.kill();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = std::net::TcpListener::bind(self.address).unwrap();
        listener.set_nonblocking(true).unwrap();
        self.address = listener.local_addr().unwrap();
        let service =
            Service { ledger: Arc::clone(&self.ledger), reads_live: self.reads_live.subscribe() };
        runtime.spawn(async move {
            let incoming = TcpListenerStream::new(TcpListener::from_std(listener).unwrap());
            let server = tonic::transport::Server::builder()
                .add_service(TelemetryServer::new(service))
                .serve_with_incoming(incoming);
            server.await.expect("it serves until it is killed");
        });
        self.runtime = Some(runtime);
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.kill();
    }
}

// === impl Service ===

#[tonic::async_trait]
impl Telemetry for Service {
    type DeliverStream = Pin<Box<dyn Stream<Item = Result<DeliverResponse, Status>> + Send>>;

    async fn deliver(
        &self,
        request: tonic::Request<Streaming<DeliverRequest>>,
    ) -> Result<tonic::Response<Self::DeliverStream>, Status> {
        let session = self.ledger.lock().unwrap().script.pop_front().unwrap_or(Session::Honest);
        let delivery = Delivery {
            service: self.clone(),
            requests: request.into_inner(),
            session,
            spool: Vec::new(),
            epoch: 0,
        };
        let responses = stream::unfold(delivery, |mut it| async move {
            let response = it.next().await?;
            Some((response, it))
        });
        Ok(tonic::Response::new(Box::pin(responses)))
    }

    async fn live(
        &self,
        request: tonic::Request<Streaming<LiveUpdate>>,
    ) -> Result<tonic::Response<LiveSummary>, Status> {
        let mut updates = request.into_inner();
        let mut reads = self.reads_live.clone();
        loop {
            reads.wait_for(|it| *it).await.expect("the test holds the other end");
            match updates.message().await? {
                Some(update) => self.ledger.lock().unwrap().live.push(update),
                None => break,
            }
        }
        self.ledger.lock().unwrap().live_closed += 1;
        Ok(tonic::Response::new(LiveSummary::default()))
    }
}

// === impl Delivery ===

impl Delivery {
    async fn next(&mut self) -> Option<Result<DeliverResponse, Status>> {
        loop {
            let answer = match self.requests.message().await.ok()??.message? {
                Request::Hello(hello) => self.greet(hello),
                Request::Batch(batch) => match self.take(&batch) {
                    Some(answer) => answer,
                    None => return None,
                },
            };
            match answer {
                Some(it) => return Some(Ok(it)),
                None => std::future::pending().await,
            }
        }
    }

    /// `None` = never.
    fn greet(&mut self, hello: Hello) -> Option<DeliverResponse> {
        let mut ledger = self.service.ledger.lock().unwrap();
        ledger.epoch += 1;
        self.epoch = ledger.epoch;
        self.spool.clone_from(&hello.spool_id);
        ledger.hellos.push(hello);
        match std::mem::replace(&mut self.session, Session::Honest) {
            Session::Greet(it) => return Some(it),
            Session::NoWelcome => return None,
            session => self.session = session,
        }
        Some(response(Response::Welcome(Welcome {
            ledger_id: ledger.id.clone(),
            epoch: ledger.epoch,
            cursor: ledger.cursors.get(&self.spool).copied().unwrap_or(0),
            limits: ledger.limits,
        })))
    }

    /// `None` = the stream ends; `Some(None)` = it stays without an answer.
    fn take(&mut self, batch: &Batch) -> Option<Option<DeliverResponse>> {
        self.service.ledger.lock().unwrap().batches += 1;
        match std::mem::replace(&mut self.session, Session::Honest) {
            Session::Answer(it) => Some(Some(response(it))),
            Session::EndBefore => None,
            Session::EndAfter => {
                self.apply(batch);
                None
            }
            Session::Hang => {
                self.apply(batch);
                Some(None)
            }
            Session::Greet(_) | Session::NoWelcome | Session::Honest => {
                Some(Some(response(self.apply(batch))))
            }
        }
    }

    fn apply(&self, batch: &Batch) -> Response {
        let mut ledger = self.service.ledger.lock().unwrap();
        if batch.epoch != ledger.epoch || batch.epoch != self.epoch {
            return reject(Code::StaleEpoch);
        }
        let cursor = ledger.cursors.get(&self.spool).copied().unwrap_or(0);
        if batch.first_seq > cursor + 1 {
            return Response::Resume(Resume { next: cursor + 1 });
        }
        let mut through = cursor;
        for (seq, record) in (batch.first_seq..).zip(&batch.records) {
            assert_eq!(blake3::hash(&record.payload).as_bytes()[..], record.hash[..]);
            let seen = ledger.seen.entry((self.spool.clone(), seq)).or_insert(record.hash.clone());
            assert_eq!(*seen, record.hash, "a repetition is the same");
            if seq > cursor {
                let (record, _) = record::decode(&record.payload).unwrap();
                let Record::Tile(tile) = record else { panic!("only tiles were appended") };
                ledger.tiles.push(tile.start.0 / 2);
                through = seq;
            }
        }
        ledger.cursors.insert(self.spool.clone(), through);
        Response::Ack(Ack { through })
    }
}
