//! The durable lane of one agent: its stream on one side, the ledger on the other.
//!
//! One batch at a time, and the next is read when the one before is committed: what an agent may have
//! in flight waits in the transport, so a stream's memory is bounded by its windows.

use std::sync::Arc;

use proto::telemetry::v1 as pb;
use proto::telemetry::v1::deliver_request::Message as Request;
use proto::telemetry::v1::deliver_response::Message as Response;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

use crate::clock;
use crate::ingest::lanes::{Lane, Place};
use crate::ingest::session::{Now, Session, Step, malformed, too_large};
use crate::ingest::{FIRST_MESSAGE_WITHIN, Shared};

pub(super) struct Delivery {
    shared: Arc<Shared>,
    requests: Streaming<pb::DeliverRequest>,
    answers: mpsc::Sender<Result<pb::DeliverResponse, Status>>,
    session: Session,
    /// From the Welcome on.
    place: Option<Place>,
}

/// What the agent did next.
enum Next {
    Sent(Option<Box<Request>>),
    Ended,
}

impl Delivery {
    pub(super) fn new(
        shared: Arc<Shared>,
        requests: Streaming<pb::DeliverRequest>,
        answers: mpsc::Sender<Result<pb::DeliverResponse, Status>>,
    ) -> Self {
        let session = Session::new(shared.cluster.clone());
        Self { shared, requests, answers, session, place: None }
    }

    pub(super) async fn run(mut self) {
        let open = self.shared.metrics.streams.with_label_values(&["durable"]);
        open.inc();
        if let Err(reject) = self.talk().await {
            self.reject(reject).await;
        }
        self.leave().await;
        open.dec();
    }

    /// Until the agent ends the stream, or there is a reason to.
    async fn talk(&mut self) -> Result<(), pb::Reject> {
        while let Next::Sent(message) = self.next().await? {
            let step = self.session.receive(message.map(|it| *it), now())?;
            let answer = self.perform(step).await?;
            if self.answer(answer).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<Next, pb::Reject> {
        let Some(place) = &mut self.place else {
            let first = timeout(FIRST_MESSAGE_WITHIN, self.requests.message()).await;
            return first
                .map_or_else(|_late| Err(malformed("there was no Hello within 10 s")), next);
        };
        tokio::select! {
            biased;
            () = place.superseded() => Err(self.session.superseded()),
            message = self.requests.message() => next(message),
        }
    }

    async fn perform(&mut self, step: Step) -> Result<Response, pb::Reject> {
        match step {
            Step::Hello(hello) => {
                let node = hello.node.clone();
                let answer = self.shared.ledger.hello(hello).await;
                let answer = self.session.welcomed(answer)?;
                if let Some((_, welcome)) = self.session.welcome() {
                    let place = self.shared.lanes.enter(node, Lane::Durable, welcome.epoch);
                    self.place = Some(place);
                }
                Ok(answer)
            }
            Step::Apply(batch) => {
                let first_seq = batch.first_seq;
                let answer = self.shared.ledger.apply(batch).await;
                self.session.applied(first_seq, answer)
            }
        }
    }

    async fn answer(
        &self,
        message: Response,
    ) -> Result<(), mpsc::error::SendError<Result<pb::DeliverResponse, Status>>> {
        self.answers.send(Ok(pb::DeliverResponse { message: Some(message) })).await
    }

    async fn reject(&self, reject: pb::Reject) {
        let code = reject.code().as_str_name().to_ascii_lowercase();
        self.shared.metrics.rejects.with_label_values(&[&code]).inc();
        if let Some((node, _)) = self.session.welcome()
            && self.shared.heard.allows(node.clone(), clock::boot_ns())
        {
            tracing::warn!(%node, code, "{}; {}", reject.reason, reject.what_to_do);
        }
        if self.answer(Response::Reject(reject)).await.is_err() {
            tracing::debug!("an agent left before it was told why");
        }
    }

    async fn leave(&self) {
        let Some(place) = &self.place else { return };
        if self.shared.lanes.leave(place) {
            tracing::info!(node = %place.node(), "an agent disconnected");
        }
        if let Some((_, welcome)) = self.session.welcome() {
            self.shared.ledger.closed(welcome).await;
        }
    }
}

/// A message that cannot be read is told apart from a stream that broke.
fn next(message: Result<Option<pb::DeliverRequest>, Status>) -> Result<Next, pb::Reject> {
    match message {
        Ok(Some(request)) => Ok(Next::Sent(request.message.map(Box::new))),
        Ok(None) => Ok(Next::Ended),
        Err(status) => match status.code() {
            Code::OutOfRange | Code::ResourceExhausted => Err(too_large(status.message())),
            Code::Internal if status.message().contains("decode") => {
                Err(malformed("a message is not of the telemetry protocol"))
            }
            _ => Ok(Next::Ended),
        },
    }
}

fn now() -> Now {
    let utc_ns = i64::try_from(clock::real_ns()).unwrap_or(i64::MAX);
    Now { boot_ns: clock::boot_ns(), utc_ns }
}
