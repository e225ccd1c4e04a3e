//! The durable lane: carries out what `session.rs` decides, over one stream after the other.
//!
//! Holds no record for longer than it takes to hand it to the connection: what has no
//! acknowledgement is asked of the spool again.

use std::error::Error as _;
use std::time::Duration;

use futures_util::future;
use proto::telemetry::v1::{
    ClockReading, DeliverRequest, DeliverResponse, Hello, LiveUpdate, NodeIdentity, Welcome,
    deliver_request, deliver_response, reject::Code,
};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tracing::debug;

use super::backoff::Backoff;
use super::link::{Kept, Link};
use super::session::{Answer, BATCH_BYTES, End, Session, Standing, Want, Welcomed};
use super::{FINISH_WITHIN, Lane, stopped};
use crate::clock;
use crate::spool::{self, OpenSpool, SpoolError, SpoolHandle, SpoolStatus};

/// How long to wait for a spool that could not be read; it says itself what is wrong.
const SPOOL_RETRY: Duration = Duration::from_secs(1);

/// Delivers the spool, session after session.
#[derive(Debug)]
pub(super) struct Deliverer {
    lane: Lane,
    identity: NodeIdentity,
    spool: SpoolHandle,
    link: Link,
    backoff: Backoff,
    /// Of a batch; less after a collector found one too large.
    most_bytes: u32,
}

/// An open stream and what was agreed on it.
#[derive(Debug)]
struct Stream {
    session: Session,
    requests: mpsc::Sender<DeliverRequest>,
    responses: Streaming<DeliverResponse>,
    spooled: watch::Receiver<SpoolStatus>,
}

/// What happened on a stream.
#[derive(Debug)]
enum Event {
    Answer(Result<Option<DeliverResponse>, Status>),
    /// Records for the next batch; the connection has room for it.
    Picked(spool::Batch),
    /// A batch has been without an answer for too long.
    Silence,
}

// === impl Deliverer ===

impl Deliverer {
    pub(super) fn new(lane: Lane, identity: NodeIdentity, spool: SpoolHandle, link: Link) -> Self {
        let backoff = Backoff::new(lane.pace.retry, fastrand::Rng::new());
        let most_bytes = *BATCH_BYTES.end();
        Self { lane, identity, spool, link, backoff, most_bytes }
    }

    pub(super) async fn run(mut self) {
        let mut shutdown = self.lane.shutdown.clone();
        loop {
            let opened = tokio::select! {
                () = stopped(&mut shutdown) => return,
                opened = self.open() => opened,
            };
            let end = match opened {
                Ok(stream) => self.converse(stream).await,
                Err(end) => end,
            };
            self.link.ended(&end, &Kept::of(&self.spool.status().borrow()));
            let Some(least) = self.settle(end).await else { return };
            tokio::select! {
                () = stopped(&mut shutdown) => return,
                () = tokio::time::sleep(least.max(self.backoff.next())) => {}
            }
        }
    }

    /// From Hello to Welcome.
    async fn open(&mut self) -> Result<Stream, End> {
        let (hello, spooled) = self.hello().await;
        let (requests, outgoing) = mpsc::channel(1);
        requests
            .try_send(request(deliver_request::Message::Hello(hello)))
            .expect("the channel is new: it has room and its receiver");
        let greeting = async {
            let stream = self.lane.client.deliver(ReceiverStream::new(outgoing)).await;
            let mut responses = stream.map_err(|it| lost(&it))?.into_inner();
            let first = responses.message().await.map_err(|it| lost(&it))?;
            Ok((first, responses))
        };
        let within = self.lane.pace.welcome_within;
        let (first, responses) = timeout(within, greeting)
            .await
            .unwrap_or_else(|_| Err(End::Lost(format!("no Welcome within {within:?}"))))?;
        let session = self.enter(&spooled, self.welcome(first)?).await?;
        Ok(Stream { session, requests, responses, spooled: self.spool.status() })
    }

    /// Waits for a spool and for the first readings: a Hello without devices would release every card
    /// of the node.
    async fn hello(&mut self) -> (Hello, OpenSpool) {
        let read = self.lane.live.wait_for(Option::is_some).await;
        let Ok(device_uuids) = read.map(|it| it.as_ref().map(devices).unwrap_or_default()) else {
            // Whoever reads the devices is gone: the agent is about to stop.
            return future::pending().await;
        };
        let spooled = opened(&mut self.spool.status()).await;
        let hello = Hello {
            node: Some(self.identity.clone()),
            spool_id: spooled.spool_id.0.to_vec(),
            sealed_through: spooled.sealed_through,
            acked_through: spooled.acked_through,
            ledger_id_seen: spooled.ledger_id.clone(),
            clock: Some(ClockReading { boot_ns: clock::boot().0, real_ns: clock::real_ns() }),
            device_uuids,
        };
        (hello, spooled)
    }

    fn welcome(&self, first: Option<DeliverResponse>) -> Result<Welcome, End> {
        match first.map(|it| it.message) {
            Some(Some(deliver_response::Message::Welcome(it))) => Ok(it),
            Some(Some(deliver_response::Message::Reject(it))) => {
                self.link.count(|it| it.rejects += 1);
                Err(End::refused(it))
            }
            Some(_) => Err(End::Violation("its first message is no Welcome".to_owned())),
            None => Err(End::Lost("it closed the stream before its Welcome".to_owned())),
        }
    }

    /// Brings the spool to where the ledger stands, and has it note which ledger that is.
    async fn enter(&mut self, spooled: &OpenSpool, welcome: Welcome) -> Result<Session, End> {
        let Welcomed { session, standing } = Session::open(spooled, welcome, self.most_bytes)?;
        let waiting = Kept::of(&self.spool.status().borrow()).records;
        self.link.connected(session.ledger_id(), standing, waiting);
        let known = session.acked_through();
        let is_new = matches!(standing, Standing::New { .. });
        if let Standing::Ahead { .. } = standing {
            let why = "the ledger has records of the old one that are not here".to_owned();
            return Err(session.renumber(why));
        }
        if known < spooled.acked_through {
            self.go_back(&session).await?;
        } else if known > spooled.acked_through || is_new {
            self.acked(&session, known).await;
        }
        Ok(session)
    }

    /// What the ledger lost counts as unsent again. Where the spool no longer has all of it, the
    /// numbers cannot go on: the ledger would wait for the first that is missing.
    async fn go_back(&self, session: &Session) -> Result<(), End> {
        let cursor = session.acked_through();
        let gone =
            self.spool.went_back(session.spool_id(), cursor, session.ledger_id().to_vec()).await;
        match gone.map_err(|it| End::Spool(it.to_string()))? {
            0 => Ok(()),
            gone => Err(session.renumber(format!(
                "the ledger lost {gone} records that are no longer here and will show their time \
                 as missing"
            ))),
        }
    }

    async fn converse(&mut self, mut stream: Stream) -> End {
        let begun = clock::boot();
        let end = loop {
            let event = tokio::select! {
                biased;
                () = stopped(&mut self.lane.shutdown) => return self.finish(stream).await,
                event = stream.next(&self.spool, self.lane.pace.answer_within) => event,
            };
            if let Err(end) = self.handle(&mut stream, event).await {
                break end;
            }
        };
        if u128::from(clock::boot().since(begun)) >= self.lane.pace.proven.as_nanos() {
            self.backoff.reset();
        }
        end
    }

    async fn handle(&mut self, stream: &mut Stream, event: Event) -> Result<(), End> {
        match event {
            Event::Picked(batch) => self.send(stream, batch).await,
            Event::Answer(Ok(Some(answer))) => self.receive(&mut stream.session, answer).await,
            Event::Answer(Ok(None)) => Err(End::Lost("it closed the stream".to_owned())),
            Event::Answer(Err(status)) => Err(lost(&status)),
            Event::Silence => {
                let within = self.lane.pace.answer_within;
                Err(End::Lost(format!("no answer to a batch within {within:?}")))
            }
        }
    }

    async fn send(&self, stream: &mut Stream, batch: spool::Batch) -> Result<(), End> {
        let batch = request(deliver_request::Message::Batch(stream.session.batch(batch)?));
        // A stream that takes no more requests says why on the way back.
        if stream.requests.send(batch).await.is_ok() {
            self.link.count(|it| it.batches += 1);
        }
        Ok(())
    }

    async fn receive(&mut self, session: &mut Session, answer: DeliverResponse) -> Result<(), End> {
        if let Some(deliver_response::Message::Reject(_)) = &answer.message {
            self.link.count(|it| it.rejects += 1);
        }
        match session.receive(answer.message)? {
            Answer::Acked { through, records } => {
                self.backoff.reset();
                self.link.acked(records);
                self.acked(session, through).await;
            }
            Answer::Rewound { next } => {
                debug!("the collector wants record {next}; sending again from there");
                self.link.count(|it| it.resumes += 1);
            }
            Answer::Known => {}
        }
        Ok(())
    }

    /// Where the spool cannot note it now, the next acknowledgement or Welcome says it again.
    async fn acked(&self, session: &Session, through: u64) {
        let ledger_id = session.ledger_id().to_vec();
        if let Err(error) = self.spool.acked(session.spool_id(), through, ledger_id).await {
            debug!("the acknowledgement of {through} is not noted: {error}");
        }
    }

    /// Delivers what is spooled and closes the stream in order, as far as there is time for it.
    async fn finish(&mut self, mut stream: Stream) -> End {
        let finished = timeout(FINISH_WITHIN, async {
            self.flush(&mut stream).await?;
            drop(stream.requests);
            while stream.responses.message().await.map_err(|it| lost(&it))?.is_some() {}
            Ok::<_, End>(())
        });
        match finished.await {
            Ok(Ok(())) => debug!("everything that is spooled was delivered"),
            Ok(Err(end)) => debug!("the stream ended while the agent was stopping: {end:?}"),
            Err(_) => debug!("no time to deliver everything: the rest is in the spool"),
        }
        End::Finished
    }

    async fn flush(&mut self, stream: &mut Stream) -> Result<(), End> {
        loop {
            let batch = match stream.session.want() {
                Some(want) => fetch(&self.spool, want).await.unwrap_or(None),
                None => None,
            };
            let event = match batch {
                Some(batch) => Event::Picked(batch),
                None if stream.session.is_waiting() => {
                    Event::Answer(stream.responses.message().await)
                }
                None => return Ok(()),
            };
            self.handle(stream, event).await?;
        }
    }

    /// Does what an end asks for before the next attempt, and gives the least time until it; `None`
    /// when there shall be none.
    async fn settle(&mut self, end: End) -> Option<Duration> {
        match end {
            End::Finished => None,
            End::Lost(_) | End::Violation(_) | End::Spool(_) => Some(Duration::ZERO),
            End::Rejected(it) => {
                let least = match it.code {
                    Code::StaleEpoch => self.lane.pace.fenced,
                    _ => Duration::ZERO,
                };
                if it.code == Code::TooLarge {
                    self.most_bytes = (self.most_bytes / 2).max(*BATCH_BYTES.start());
                }
                Some(it.retry_after.max(least))
            }
            End::Renumber { spool_id, after, .. } => {
                // The next session comes to the same end and asks again.
                if let Err(error) = self.spool.renumber(spool_id, after).await {
                    debug!("the spool cannot begin a new sequence now: {error}");
                }
                Some(Duration::ZERO)
            }
        }
    }
}

// === impl Stream ===

impl Stream {
    /// May be dropped at any time: a batch that was picked and not sent is picked again.
    async fn next(&mut self, spool: &SpoolHandle, answer_within: Duration) -> Event {
        let want = self.session.want();
        tokio::select! {
            biased;
            answer = self.responses.message() => Event::Answer(answer),
            batch = pick(spool, &mut self.spooled, &self.requests, want) => Event::Picked(batch),
            () = tokio::time::sleep(answer_within), if self.session.is_waiting() => Event::Silence,
        }
    }
}

/// Waits until the session wants records, the connection has room for them and the spool has some.
/// Only then are they picked: until a record is, the spool may still merge it with the next.
async fn pick(
    spool: &SpoolHandle,
    spooled: &mut watch::Receiver<SpoolStatus>,
    requests: &mpsc::Sender<DeliverRequest>,
    want: Option<Want>,
) -> spool::Batch {
    // Where the stream or the spool is gone, its end is seen elsewhere.
    let (Some(want), Ok(_)) = (want, requests.reserve().await) else {
        return future::pending().await;
    };
    loop {
        spooled.mark_unchanged();
        match fetch(spool, want).await {
            Ok(Some(batch)) => return batch,
            Ok(None) => changed(spooled).await,
            Err(_) => tokio::time::sleep(SPOOL_RETRY).await,
        }
    }
}

async fn fetch(spool: &SpoolHandle, want: Want) -> Result<Option<spool::Batch>, SpoolError> {
    spool.next_batch(want.from, want.limits).await
}

/// Never, once the spool is closed.
async fn changed(spooled: &mut watch::Receiver<SpoolStatus>) {
    if spooled.changed().await.is_err() {
        future::pending().await
    }
}

/// The spool, once its database is open.
async fn opened(spooled: &mut watch::Receiver<SpoolStatus>) -> OpenSpool {
    loop {
        if let Some(open) = &spooled.borrow_and_update().open {
            return open.clone();
        }
        changed(spooled).await;
    }
}

fn request(message: deliver_request::Message) -> DeliverRequest {
    DeliverRequest { message: Some(message) }
}

fn devices(update: &LiveUpdate) -> Vec<String> {
    update.devices.iter().map(|it| it.gpu_uuid.clone()).collect()
}

/// With the causes that the transport gives, outermost first; it repeats itself.
fn lost(status: &Status) -> End {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut cause = status.source();
    while let Some(it) = cause {
        let said = it.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = it.source();
    }
    End::Lost(text)
}
