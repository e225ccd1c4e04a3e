//! The gRPC service: offers as a stream, and the whole fleet on request.
//!
//! A subscriber is a revision, not a queue: each message is taken from the table when the transport asks
//! for it, so a slow subscriber costs nothing and never gets an age that was true a while ago.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{FutureExt, Stream, stream};
use proto::capacity::v1 as pb;
use proto::capacity::v1::snapshot_begin::Reason;
use proto::capacity::v1::watch_response::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Duration, Interval, MissedTickBehavior, interval, sleep};
use tonic::{Request, Response, Status};

use super::board::{Board, Sign};
use super::offers::{Filter, News, Step};
use super::wire;
use crate::clock;
use crate::config::Idle;
use crate::state::StateHandle;

/// Streams at a time. Past it, a new one is refused with RESOURCE_EXHAUSTED.
pub const SUBSCRIBERS: usize = 1000;

/// Between two looks while the fleet's owner is late.
const LATE: Duration = Duration::from_millis(200);

/// `capacity.v1.Capacity`.
#[derive(Debug)]
pub struct Service {
    state: StateHandle,
    board: Board,
    idle: Idle,
    places: Arc<Semaphore>,
}

/// The server to add to the collector's.
#[must_use]
pub fn service(
    state: StateHandle,
    board: Board,
    idle: Idle,
) -> pb::capacity_server::CapacityServer<Service> {
    pb::capacity_server::CapacityServer::new(Service::new(state, board, idle))
}

/// One subscriber: where it is, and what it waits for.
#[derive(Debug)]
pub(super) struct Subscriber {
    board: Board,
    sign: watch::Receiver<Sign>,
    beat: Interval,
    beat_due: bool,
    valid_for: Duration,
    filter: Filter,
    phase: Phase,
    /// Everything up to here has been sent.
    revision: u64,
    /// The table's revision when the newest snapshot began; 0 = none did.
    from: u64,
    /// Held for as long as the stream lives.
    _place: OwnedSemaphorePermit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Begin(Reason),
    Snapshot { sent: u32 },
    Following,
    Ended,
}

/// What a look at the table leads to.
#[derive(Debug)]
enum Look {
    Send(Box<Message>),
    Again,
    Wait,
}

impl Look {
    fn send(message: Message) -> Self {
        Self::Send(Box::new(message))
    }
}

// === impl Service ===

impl Service {
    pub(super) fn new(state: StateHandle, board: Board, idle: Idle) -> Self {
        Self { state, board, idle, places: Arc::new(Semaphore::new(SUBSCRIBERS)) }
    }

    /// `None` when every place is taken.
    pub(super) fn subscribe(&self, request: &pb::WatchRequest) -> Option<Subscriber> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        Some(Subscriber::new(self, request, place))
    }
}

#[tonic::async_trait]
impl pb::capacity_server::Capacity for Service {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<pb::WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<pb::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let subscriber = self.subscribe(request.get_ref()).ok_or_else(|| {
            Status::resource_exhausted(format!(
                "all {SUBSCRIBERS} places for subscribers are taken; those that have one are not \
                 affected. Close a stream that is not needed, and try again"
            ))
        })?;
        let messages = stream::unfold(subscriber, |mut it| async move {
            let message = it.next().await?;
            Some((message, it))
        });
        Ok(Response::new(Box::pin(messages)))
    }

    async fn get_fleet(
        &self,
        _request: Request<pb::GetFleetRequest>,
    ) -> Result<Response<pb::Fleet>, Status> {
        let fleet =
            self.state.fleet().await.map_err(|stopped| Status::unavailable(stopped.to_string()))?;
        let (policy, revision) = {
            let offers = self.board.read();
            (offers.policy(), offers.revision())
        };
        let position = pb::Position { generation: self.board.generation().to_owned(), revision };
        Ok(Response::new(wire::fleet(&fleet, policy, position, clock::boot_ns())))
    }
}

// === impl Subscriber ===

impl Subscriber {
    fn new(service: &Service, request: &pb::WatchRequest, place: OwnedSemaphorePermit) -> Self {
        let board = service.board.clone();
        let (phase, revision) = match &request.resume {
            Some(it) if it.generation == board.generation() => (Phase::Following, it.revision),
            Some(_) => (Phase::Begin(Reason::Resync), 0),
            None => (Phase::Begin(Reason::Requested), 0),
        };
        let mut beat = interval(service.idle.heartbeat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        beat.reset();
        Self {
            sign: board.watch(),
            beat,
            // At once, so that a subscriber knows when it has caught up.
            beat_due: true,
            valid_for: service.idle.valid_for,
            filter: Filter::of(request.classes()),
            phase,
            revision,
            from: 0,
            board,
            _place: place,
        }
    }

    /// The next message, as soon as there is one; `None` after the end.
    pub(super) async fn next(&mut self) -> Option<Result<pb::WatchResponse, Status>> {
        loop {
            if self.phase == Phase::Ended {
                return None;
            }
            if self.sign.borrow_and_update().closed {
                self.phase = Phase::Ended;
                return Some(Err(Status::unavailable(
                    "the collector is stopping and its offers no longer hold; connect again, and resume",
                )));
            }
            if !self.board.is_current(clock::boot_ns()) {
                sleep(LATE).await;
                continue;
            }
            match self.look() {
                Look::Send(message) => return Some(Ok(self.at_position(*message))),
                Look::Again => {}
                Look::Wait => self.wait().await,
            }
        }
    }

    fn look(&mut self) -> Look {
        if let Phase::Begin(reason) = self.phase {
            self.from = self.board.read().revision();
            self.revision = 0;
            self.phase = Phase::Snapshot { sent: 0 };
            return Look::send(Message::SnapshotBegin(pb::SnapshotBegin { reason: reason.into() }));
        }
        let step = self.board.read().after(self.revision, self.from, self.filter);
        if let Phase::Snapshot { sent } = self.phase
            && self.completes_snapshot(&step)
        {
            self.revision = self.from;
            self.phase = Phase::Following;
            return Look::send(Message::SnapshotEnd(pb::SnapshotEnd { offers: sent }));
        }
        self.take(step)
    }

    fn completes_snapshot(&self, step: &Step) -> bool {
        match step {
            Step::News { revision, .. } | Step::Passed { revision } => *revision > self.from,
            Step::UpToDate { .. } => true,
            Step::Forgotten => false,
        }
    }

    fn take(&mut self, step: Step) -> Look {
        match step {
            Step::News { revision, news } => {
                self.revision = revision;
                if let Phase::Snapshot { sent } = &mut self.phase {
                    *sent += 1;
                }
                Look::send(self.message(news))
            }
            Step::Passed { revision } => {
                self.revision = revision;
                Look::Again
            }
            Step::UpToDate { revision, open } => {
                self.revision = revision;
                self.heartbeat(open)
            }
            Step::Forgotten => {
                self.phase = Phase::Begin(Reason::Resync);
                Look::Again
            }
        }
    }

    fn message(&self, news: News) -> Message {
        match news {
            News::Offer(offer) => {
                Message::Offer(wire::offer(&offer, self.valid_for, clock::boot_ns()))
            }
            News::Withdrawn { id, reason } => Message::Withdrawn(pb::Withdrawn {
                id: id.as_ref().to_owned(),
                reason: reason.into(),
            }),
        }
    }

    /// Only when nothing is left to send: it vouches for everything that the subscriber holds.
    fn heartbeat(&mut self, offers: u32) -> Look {
        let due = std::mem::take(&mut self.beat_due) || self.beat.tick().now_or_never().is_some();
        if due { Look::send(Message::Heartbeat(pb::Heartbeat { offers })) } else { Look::Wait }
    }

    async fn wait(&mut self) {
        tokio::select! {
            // The sender lives as long as `board`, so this ends with news only.
            _ = self.sign.changed() => {}
            _ = self.beat.tick() => self.beat_due = true,
        }
    }

    fn at_position(&self, message: Message) -> pb::WatchResponse {
        let generation = self.board.generation().to_owned();
        let position = pb::Position { generation, revision: self.revision };
        pb::WatchResponse { position: Some(position), message: Some(message) }
    }
}
