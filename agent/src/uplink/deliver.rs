//! The durable lane of one connection: Hello, Welcome, then batches out and acknowledgements in.

use std::time::Duration;

use proto::telemetry::v1::{
    Batch as WireBatch, ClockReading, DeliverRequest, DeliverResponse, Hello, Limits, Reject,
    Welcome, deliver_request::Message as Request, deliver_response::Message as Response,
    reject::Code, telemetry_client::TelemetryClient,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;
use tracing::warn;

use crate::clock;
use crate::spool::{Batch, BatchLimits, OpenSpool, SpoolError, SpoolHandle, SpoolStatus};
use crate::uplink::window::{Standing, Window};
use crate::uplink::{Ended, Uplink, describe_status, stopped};

/// What a collector may narrow but not widen.
pub(super) const MOST_BATCH_BYTES: u64 = 1024 * 1024;
pub(super) const LEAST_BATCH_BYTES: u64 = 16 * 1024;
const MOST_RECORDS: u32 = 4_096;
const MOST_IN_FLIGHT: usize = 8;
/// A collector that does not answer a Hello within this is not one.
const WELCOME: Duration = Duration::from_secs(10);
/// For the last records when the agent stops; the rest stays in the spool.
const FLUSH: Duration = Duration::from_millis(900);

pub(super) struct Deliver<'a> {
    uplink: &'a mut Uplink,
    client: TelemetryClient<Channel>,
    spool: SpoolHandle,
    status: watch::Receiver<SpoolStatus>,
    stop: watch::Receiver<bool>,
}

/// A stream that has been welcomed.
struct Open {
    requests: mpsc::Sender<DeliverRequest>,
    answers: Streaming<DeliverResponse>,
    window: Window,
    limits: BatchLimits,
    epoch: u64,
    ledger_id: Vec<u8>,
    /// The spool as it was at the Hello.
    spool: OpenSpool,
}

// === impl Deliver ===

impl<'a> Deliver<'a> {
    pub(super) fn new(uplink: &'a mut Uplink, client: TelemetryClient<Channel>) -> Self {
        let spool = uplink.spool.clone();
        let status = spool.status();
        let stop = uplink.stop.clone();
        Self { uplink, client, spool, status, stop }
    }

    pub(super) async fn run(mut self) -> Ended {
        let mut stop = self.stop.clone();
        let mut open = tokio::select! {
            opened = self.open() => match opened {
                Ok(open) => open,
                Err(ended) => return ended,
            },
            () = stopped(&mut stop) => return Ended::Stopped,
        };
        match self.exchange(&mut open).await {
            Ok(()) => finish(open).await,
            Err(ended) => ended,
        }
    }

    /// Hello and Welcome, and what follows from where the two stand.
    async fn open(&mut self) -> Result<Open, Ended> {
        let spool = self.spool_is_open().await?;
        let hello = self.hello(&spool).await?;
        let (requests, queue) = mpsc::channel(MOST_IN_FLIGHT + 1);
        send(&requests, Request::Hello(hello)).await?;
        let welcomed = tokio::time::timeout(WELCOME, self.welcome(queue)).await;
        let (answers, welcome) = welcomed.map_err(|_elapsed| {
            Ended::Lost("it accepts connections and does not answer".to_owned())
        })??;
        self.stand(&spool, &welcome).await?;
        let waiting = spool.unsent_records;
        self.uplink.connected(waiting);
        let limits = welcome.limits.unwrap_or_default();
        Ok(Open {
            requests,
            answers,
            window: Window::new(welcome.cursor, in_flight(&limits)),
            limits: batch_limits(&limits, self.uplink.batch_bytes),
            epoch: welcome.epoch,
            ledger_id: welcome.ledger_id,
            spool,
        })
    }

    /// A spool whose disk refuses has no name to say Hello with.
    async fn spool_is_open(&mut self) -> Result<OpenSpool, Ended> {
        let status = self.status.wait_for(|it| it.open.is_some()).await;
        let closed = |_| Ended::Lost(SpoolError::Closed.to_string());
        status.map_err(closed)?.open.clone().ok_or(Ended::Stopped)
    }

    async fn hello(&mut self, spool: &OpenSpool) -> Result<Hello, Ended> {
        // Which devices there are is known after the first reading.
        let mut live = self.uplink.live.clone();
        let update = live.wait_for(Option::is_some).await;
        let update = update.map_err(|_closed| Ended::Stopped)?;
        let devices = update.iter().flat_map(|it| &it.devices);
        Ok(Hello {
            node: Some(self.uplink.config.identity.clone()),
            spool_id: spool.spool_id.0.to_vec(),
            sealed_through: spool.sealed_through,
            acked_through: spool.acked_through,
            ledger_id_seen: spool.ledger_id.clone(),
            clock: Some(ClockReading { boot_ns: clock::boot().0, real_ns: clock::real_ns() }),
            device_uuids: devices.map(|it| it.gpu_uuid.clone()).collect(),
        })
    }

    async fn welcome(
        &mut self,
        queue: mpsc::Receiver<DeliverRequest>,
    ) -> Result<(Streaming<DeliverResponse>, Welcome), Ended> {
        let answers = self.client.deliver(ReceiverStream::new(queue)).await;
        let mut answers = answers.map_err(|it| Ended::Lost(describe_status(&it)))?.into_inner();
        match next(&mut answers).await? {
            Response::Welcome(welcome) => Ok((answers, welcome)),
            Response::Reject(reject) => Err(self.rejected(reject, None).await),
            _ => Err(Ended::Lost("it did not answer the Hello with a Welcome".to_owned())),
        }
    }

    /// Compares the collector's cursor with the spool. Every difference is either made up for here or
    /// ends in a new sequence.
    async fn stand(&self, spool: &OpenSpool, welcome: &Welcome) -> Result<(), Ended> {
        let cursor = welcome.cursor;
        match Standing::of(cursor, spool.sealed_through, spool.acked_through) {
            Standing::Level => {
                self.spool.acked(cursor, welcome.ledger_id.clone()).await.map_err(spool_failed)
            }
            Standing::Behind => self.refill(cursor, welcome.ledger_id.clone()).await,
            Standing::Ahead => {
                warn!(
                    "the collector has records of this spool up to {cursor}, and the spool has numbered \
                     {sealed}: it was restored from an older copy. What is in it is sent under a new \
                     sequence; the collector sets aside what it already has",
                    sealed = spool.sealed_through,
                );
                Err(self.renumber(spool.sealed_through).await)
            }
        }
    }

    /// The ledger has less than was acknowledged: sends again what is still here.
    async fn refill(&self, cursor: u64, ledger_id: Vec<u8>) -> Result<(), Ended> {
        let gone = self.spool.went_back(cursor, ledger_id).await.map_err(spool_failed)?;
        let kept = if gone == 0 {
            "all of them are still in the spool".to_owned()
        } else {
            format!("{gone} of them are no longer in the spool and stay missing in the ledger")
        };
        warn!(
            "the collector's ledger ends at record {cursor}, before what was acknowledged: it was \
             restored from an older copy, or is another ledger. The records after that are sent again; \
             {kept}"
        );
        if gone == 0 { Ok(()) } else { Err(self.renumber(cursor).await) }
    }

    async fn renumber(&self, after: u64) -> Ended {
        match self.spool.renumber(after).await {
            Ok(()) => Ended::Renumbered,
            Err(error) => spool_failed(error),
        }
    }

    /// Sends and receives until the agent stops and everything is acknowledged, or time is up.
    async fn exchange(&mut self, open: &mut Open) -> Result<(), Ended> {
        let mut stop = self.stop.clone();
        let mut flushed = std::pin::pin!(async move {
            stopped(&mut stop).await;
            tokio::time::sleep(FLUSH).await;
        });
        let mut stop = self.stop.clone();
        loop {
            let sent = open.window.has_room() && self.send_next(open).await?;
            if sent {
                continue;
            }
            if *self.stop.borrow() && open.window.is_empty() {
                return Ok(());
            }
            tokio::select! {
                answer = next(&mut open.answers) => self.receive(open, answer?).await?,
                changed = self.status.changed() => {
                    changed.map_err(|_closed| spool_failed(SpoolError::Closed))?;
                }
                () = stopped(&mut stop), if !*self.stop.borrow() => {}
                () = &mut flushed => return Ok(()),
            }
        }
    }

    /// Whether there was a batch to send.
    async fn send_next(&mut self, open: &mut Open) -> Result<bool, Ended> {
        let next = open.window.next();
        let batch = match self.spool.next_batch(next, open.limits).await {
            Ok(Some(batch)) => batch,
            // Records that wait for their disk are sent when it writes again.
            Ok(None) | Err(SpoolError::Unavailable(_)) => return Ok(false),
            Err(error) => return Err(spool_failed(error)),
        };
        if batch.spool_id != open.spool.spool_id {
            return Err(Ended::Renumbered);
        }
        if batch.first_seq != next {
            return Err(self.renumber(next - 1).await);
        }
        let last = batch.last_seq();
        send(&open.requests, wire_batch(open.epoch, batch)).await?;
        open.window.sent(last);
        self.uplink.link.send_modify(|it| it.counts.batches_sent += 1);
        Ok(true)
    }

    async fn receive(&mut self, open: &mut Open, answer: Response) -> Result<(), Ended> {
        match answer {
            Response::Ack(ack) => {
                let before = self.status.borrow().open.as_ref().map_or(0, |it| it.acked_through);
                open.window.acked(ack.through).map_err(|it| Ended::Lost(it.to_string()))?;
                let ledger_id = open.ledger_id.clone();
                self.spool.acked(ack.through, ledger_id).await.or_else(until_it_writes)?;
                let new = ack.through.saturating_sub(before);
                self.uplink.link.send_modify(|it| it.counts.records_acked += new);
                Ok(())
            }
            Response::Resume(resume) => {
                self.uplink.link.send_modify(|it| it.counts.resumes += 1);
                self.resume(open, resume.next).await
            }
            Response::Reject(reject) => Err(self.rejected(reject, Some(open)).await),
            Response::Welcome(_) => Err(Ended::Lost("it sent a second Welcome".to_owned())),
        }
    }

    async fn resume(&self, open: &mut Open, next: u64) -> Result<(), Ended> {
        let Some(spool) = self.status.borrow().open.clone() else { return Ok(()) };
        let cursor = next.saturating_sub(1);
        match Standing::of(cursor, spool.sealed_through, spool.acked_through) {
            Standing::Level => {}
            Standing::Behind => self.refill(cursor, open.ledger_id.clone()).await?,
            Standing::Ahead => return Err(self.renumber(spool.sealed_through).await),
        }
        open.window.resume(next.max(1)).map_err(|it| Ended::Lost(it.to_string()))
    }

    /// Records that collide with those of another spool get a new sequence, so that the next
    /// connection can go on; the reject itself is the message.
    async fn rejected(&self, reject: Reject, open: Option<&Open>) -> Ended {
        if reject.code() == Code::SequenceReuse && open.is_some() {
            let acked = self.status.borrow().open.as_ref().map(|it| it.acked_through);
            if let Some(acked) = acked
                && let Err(error) = self.spool.renumber(acked).await
            {
                return spool_failed(error);
            }
        }
        Ended::Rejected(reject)
    }
}

/// An acknowledgement that cannot be written now is repeated by the next Welcome.
fn until_it_writes(error: SpoolError) -> Result<(), Ended> {
    match error {
        SpoolError::Unavailable(_) => Ok(()),
        other => Err(spool_failed(other)),
    }
}

fn spool_failed(error: SpoolError) -> Ended {
    Ended::Lost(error.to_string())
}

async fn send(requests: &mpsc::Sender<DeliverRequest>, message: Request) -> Result<(), Ended> {
    let request = DeliverRequest { message: Some(message) };
    let closed = |_| Ended::Lost("the stream broke while sending".to_owned());
    requests.send(request).await.map_err(closed)
}

async fn next(answers: &mut Streaming<DeliverResponse>) -> Result<Response, Ended> {
    match answers.message().await {
        Ok(Some(DeliverResponse { message: Some(message) })) => Ok(message),
        Ok(Some(_)) => Err(Ended::Lost("it sent a message that this agent cannot read".to_owned())),
        Ok(None) => Err(Ended::Lost("it ended the stream".to_owned())),
        Err(status) => Err(Ended::Lost(describe_status(&status))),
    }
}

/// Ends our half of the stream and gives the collector a moment to end its own.
async fn finish(open: Open) -> Ended {
    let Open { requests, mut answers, .. } = open;
    drop(requests);
    let ended = async { while let Ok(Some(_)) = answers.message().await {} };
    drop(tokio::time::timeout(FLUSH / 9, ended).await);
    Ended::Stopped
}

fn wire_batch(epoch: u64, batch: Batch) -> Request {
    Request::Batch(WireBatch { epoch, first_seq: batch.first_seq, records: batch.records })
}

/// A limit of 0 is none of the collector's.
fn in_flight(limits: &Limits) -> usize {
    match usize::try_from(limits.max_in_flight) {
        Ok(0) | Err(_) => MOST_IN_FLIGHT,
        Ok(narrower) => narrower.min(MOST_IN_FLIGHT),
    }
}

fn batch_limits(limits: &Limits, most: u64) -> BatchLimits {
    let bytes = match u64::from(limits.max_batch_bytes) {
        0 => most,
        narrower => narrower.clamp(LEAST_BATCH_BYTES, most),
    };
    BatchLimits { records: MOST_RECORDS, bytes }
}
