//! The durable lane of one agent, step by step. No I/O: time comes in, what to do comes out.
//!
//! Hello, Welcome, then batches; each ends in an Ack, a Resume or a Reject, and a Reject ends the
//! stream. Only the ledger decides what is counted; this decides what may be asked of it.

use std::sync::Arc;
use std::time::Duration;

use proto::telemetry::v1 as pb;
use proto::telemetry::v1::deliver_request::Message as Request;
use proto::telemetry::v1::deliver_response::Message as Response;
use proto::telemetry::v1::reject::Code;

use crate::ingest::decode;
use crate::ledger::decide::MAX_BOOT_NS;
use crate::ledger::{Applied, Batch, Hello, Refused, Welcome};
use crate::model::ids::{NodeKey, SpoolId};

/// What the Welcome allows an agent; it may have less.
const MAX_BATCH_BYTES: u32 = 1024 * 1024;
const MAX_IN_FLIGHT: u32 = 8;
/// More records are not one batch.
const MAX_BATCH_RECORDS: usize = 4_096;
/// Sequence numbers fit signed 64 bits.
const MAX_SEQ: u64 = i64::MAX as u64 - 1;

/// One stream.
#[derive(Debug)]
pub struct Session {
    /// The cluster of agents that name none.
    cluster: String,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Silent,
    /// The Hello is with the ledger.
    Greeted(Box<Greeting>),
    Open(Box<Open>),
}

/// What a Hello said that outlives it.
#[derive(Clone, Debug)]
struct Greeting {
    node: NodeKey,
    spool: SpoolId,
    boot_id: Arc<str>,
    /// The node's boot time at the Hello minus this collector's, to run on with the latter.
    ahead_ns: i128,
    acked_through: u64,
}

#[derive(Debug)]
struct Open {
    greeting: Greeting,
    welcome: Welcome,
    /// First sequence number of the batch that was answered with a Resume.
    resumed_at: Option<u64>,
}

/// What to ask of the ledger.
#[derive(Debug)]
pub enum Step {
    Hello(Hello),
    Apply(Batch),
}

/// This collector's clocks at the arrival of a message.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub boot_ns: u64,
    pub utc_ns: i64,
}

// === impl Session ===

impl Session {
    #[must_use]
    pub fn new(cluster: String) -> Self {
        Self { cluster, stage: Stage::Silent }
    }

    /// The node, as soon as it was welcomed, and how.
    #[must_use]
    pub fn welcome(&self) -> Option<(&NodeKey, &Welcome)> {
        match &self.stage {
            Stage::Open(open) => Some((&open.greeting.node, &open.welcome)),
            Stage::Silent | Stage::Greeted(_) => None,
        }
    }

    /// The next message of the agent.
    pub fn receive(&mut self, message: Option<Request>, now: Now) -> Result<Step, pb::Reject> {
        match (&mut self.stage, message) {
            (Stage::Silent, Some(Request::Hello(hello))) => {
                let hello = decode::hello(hello, &self.cluster, now.utc_ns)
                    .map_err(|it| malformed(&format!("the Hello cannot be read: {it}")))?;
                self.stage = Stage::Greeted(Box::new(Greeting::of(&hello, now)));
                Ok(Step::Hello(hello))
            }
            (Stage::Open(open), Some(Request::Batch(batch))) => open.batch(batch, now),
            (Stage::Silent, _) => Err(malformed("the stream did not begin with a Hello")),
            (_, Some(Request::Hello(_))) => Err(malformed("the stream has a second Hello")),
            (_, None) => Err(malformed("a message is empty")),
            (Stage::Greeted(_), _) => Err(malformed("a batch came before the Welcome")),
        }
    }

    /// The ledger's answer to the Hello.
    pub fn welcomed(&mut self, answer: Result<Welcome, Refused>) -> Result<Response, pb::Reject> {
        let welcome = answer.map_err(|it| refused(&it))?;
        if let Stage::Greeted(greeting) = std::mem::replace(&mut self.stage, Stage::Silent) {
            let open = Open { greeting: *greeting, welcome, resumed_at: None };
            open.log();
            self.stage = Stage::Open(Box::new(open));
        }
        Ok(Response::Welcome(pb::Welcome {
            ledger_id: welcome.ledger_id.0.to_vec(),
            epoch: welcome.epoch,
            cursor: welcome.cursor,
            limits: Some(pb::Limits {
                max_batch_bytes: MAX_BATCH_BYTES,
                max_in_flight: MAX_IN_FLIGHT,
            }),
        }))
    }

    /// The ledger's answer to a batch that began at `first_seq`.
    pub fn applied(
        &mut self,
        first_seq: u64,
        answer: Result<Applied, Refused>,
    ) -> Result<Response, pb::Reject> {
        let Stage::Open(open) = &mut self.stage else {
            return Err(malformed("a batch came before the Welcome"));
        };
        match answer.map_err(|it| refused(&it))? {
            Applied::Through(through) => {
                open.resumed_at = None;
                Ok(Response::Ack(pb::Ack { through }))
            }
            Applied::Resume { next } => {
                open.resumed_at = Some(first_seq);
                Ok(Response::Resume(pb::Resume { next }))
            }
            Applied::StaleEpoch { newest } => Err(open.stale(newest)),
            Applied::SequenceReuse { seq, first_received_ns } => {
                Err(open.reuse(seq, first_received_ns))
            }
        }
    }

    /// A later stream of the node has taken over.
    #[must_use]
    pub fn superseded(&self) -> pb::Reject {
        match &self.stage {
            Stage::Open(open) => open.stale(0),
            Stage::Silent | Stage::Greeted(_) => malformed("the stream was replaced"),
        }
    }
}

impl Greeting {
    fn of(hello: &Hello, now: Now) -> Self {
        Self {
            node: hello.node.clone(),
            spool: hello.spool,
            boot_id: Arc::clone(&hello.boot_id),
            ahead_ns: i128::from(hello.clock.boot_ns) - i128::from(now.boot_ns),
            acked_through: hello.acked_through,
        }
    }

    fn boot_now_ns(&self, now: Now) -> u64 {
        u64::try_from(self.ahead_ns + i128::from(now.boot_ns)).unwrap_or(0).min(MAX_BOOT_NS)
    }
}

impl Open {
    fn batch(&mut self, batch: pb::Batch, now: Now) -> Result<Step, pb::Reject> {
        if batch.epoch != self.welcome.epoch {
            return Err(self.stale(0));
        }
        if batch.records.len() > MAX_BATCH_RECORDS {
            return Err(too_large(&format!(
                "the batch has {} records, the limit is {MAX_BATCH_RECORDS}",
                batch.records.len()
            )));
        }
        let count = u64::try_from(batch.records.len()).unwrap_or(u64::MAX);
        if batch.first_seq == 0 || batch.first_seq > MAX_SEQ - count {
            return Err(malformed("the batch has no usable first_seq"));
        }
        // An agent that was asked to go back and begins there again has nothing earlier: what was sent
        // before it saw the question begins later.
        let accept_gap = self.resumed_at.is_some_and(|it| batch.first_seq <= it);
        Ok(Step::Apply(Batch {
            node: self.greeting.node.clone(),
            epoch: batch.epoch,
            spool: self.greeting.spool,
            boot_id: Arc::clone(&self.greeting.boot_id),
            boot_now_ns: self.greeting.boot_now_ns(now),
            first_seq: batch.first_seq,
            accept_gap,
            records: batch.records.into_iter().map(decode::sealed).collect(),
        }))
    }

    fn log(&self) {
        let Greeting { node, spool, acked_through, .. } = &self.greeting;
        let Welcome { epoch, cursor, regressed, .. } = self.welcome;
        tracing::info!(%node, %spool, epoch, cursor, "an agent connected");
        if regressed {
            tracing::error!(
                %node, %spool,
                "this ledger ends at {cursor} and had acknowledged {acked_through}: it was restored from \
                 an older copy, or its storage was damaged. The agent sends again what it kept; what it \
                 cannot send is recorded as missing"
            );
        }
    }

    /// `newest` is 0 where it is not known.
    fn stale(&self, newest: u64) -> pb::Reject {
        let node = &self.greeting.node;
        let epoch = self.welcome.epoch;
        let later =
            if newest == 0 { String::new() } else { format!(" (epoch {newest} > {epoch})") };
        reject(
            Code::StaleEpoch,
            &format!(
                "another agent of node {node} connected later{later}; nothing of this stream was lost: \
                 what is not acknowledged stays in its spool"
            ),
            "if one agent runs on this node, nothing: it connects again. If two do, stop one",
            Duration::from_secs(5),
        )
    }

    fn reuse(&self, seq: u64, first_received_ns: i64) -> pb::Reject {
        let seconds = first_received_ns / 1_000_000_000;
        reject(
            Code::SequenceReuse,
            &format!(
                "record {seq} of spool {} came twice with different content; the first (received at Unix \
                 time {seconds}) stands and nothing of this batch was recorded",
                self.greeting.spool
            ),
            "this happens when a node image with a used spool is cloned: delete the spool folder of one \
             of them",
            Duration::from_secs(60),
        )
    }
}

// === rejects ===

/// The message cannot be read.
#[must_use]
pub fn malformed(what: &str) -> pb::Reject {
    reject(
        Code::Malformed,
        &format!("{what}; nothing of it was recorded"),
        "run an agent of the same release as the collector",
        Duration::from_secs(30),
    )
}

#[must_use]
pub fn too_large(what: &str) -> pb::Reject {
    reject(
        Code::TooLarge,
        &format!("{what}; nothing of it was recorded and nothing is lost"),
        "the agent sends smaller batches by itself; if it does not, raise limits.max_message_bytes",
        Duration::from_secs(5),
    )
}

fn refused(refused: &Refused) -> pb::Reject {
    let text = refused.to_string();
    let wait = Duration::from_secs(5);
    match refused {
        Refused::Full { what_to_do, .. } => reject(Code::StorageFull, &text, what_to_do, wait),
        Refused::TooManyNodes { .. } => reject(
            Code::StorageFull,
            &format!("{text}; nothing was recorded, the agent keeps everything"),
            "raise limits.max_nodes of the collector",
            Duration::from_secs(60),
        ),
        Refused::Stopped => reject(
            Code::Unspecified,
            &format!("{text}; the agent keeps what is not acknowledged"),
            "nothing: the agent connects again",
            Duration::from_secs(1),
        ),
    }
}

/// Waits are spread over twice their least, so that a fleet does not come back as one.
fn reject(code: Code, reason: &str, what_to_do: &str, wait: Duration) -> pb::Reject {
    let least = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
    pb::Reject {
        code: code.into(),
        reason: reason.to_owned(),
        what_to_do: what_to_do.to_owned(),
        retry_after_ms: fastrand::u32(least..=least.saturating_mul(2)),
    }
}

#[cfg(test)]
mod tests {
    use super::{Now, Request, Response, Session, Step, pb};
    use crate::ledger::{Applied, Batch, Refused, Welcome};
    use crate::model::ids::LedgerId;

    const NOW: Now = Now { boot_ns: 500, utc_ns: 9 };

    fn hello() -> Request {
        Request::Hello(pb::Hello {
            node: Some(pb::NodeIdentity {
                node: "n".to_owned(),
                boot_id: "b".to_owned(),
                ..pb::NodeIdentity::default()
            }),
            spool_id: vec![1; 16],
            clock: Some(pb::ClockReading { boot_ns: 70, real_ns: 0 }),
            ..pb::Hello::default()
        })
    }

    fn open() -> Session {
        let mut session = Session::new("c".to_owned());
        assert!(matches!(session.receive(Some(hello()), NOW), Ok(Step::Hello(_))));
        let welcome = Welcome {
            node: 1,
            ledger_id: LedgerId([0; 16]),
            epoch: 3,
            cursor: 0,
            regressed: false,
        };
        assert!(matches!(session.welcomed(Ok(welcome)), Ok(Response::Welcome(_))));
        session
    }

    fn batch(session: &mut Session, first_seq: u64, now: Now) -> Batch {
        let records = vec![pb::SealedRecord::default()];
        let message = Request::Batch(pb::Batch { epoch: 3, first_seq, records });
        match session.receive(Some(message), now) {
            Ok(Step::Apply(batch)) => batch,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_gap_is_taken_only_from_an_agent_that_went_back() {
        let mut session = open();
        let mut check = |first_seq, accepts, answer| {
            assert_eq!(batch(&mut session, first_seq, NOW).accept_gap, accepts);
            session.applied(first_seq, Ok(answer)).unwrap();
        };
        let resume = Applied::Resume { next: 1 };
        check(40, false, resume.clone());
        // On its way before the agent saw the question.
        check(50, false, Applied::Resume { next: 1 });
        check(45, true, Applied::Through(45));
        check(46, false, Applied::Through(46));
    }

    #[test]
    fn the_nodes_boot_time_runs_on_with_our_clock() {
        let mut session = open();
        let later = Now { boot_ns: 1_500, utc_ns: 0 };
        assert_eq!(batch(&mut session, 1, later).boot_now_ns, 1_070);
    }

    #[test]
    fn a_refusal_ends_the_stream_and_says_what_to_do() {
        let mut session = open();
        batch(&mut session, 1, NOW);
        let full = Refused::Full { text: "full".to_owned(), what_to_do: "make room".to_owned() };
        let reject = session.applied(1, Err(full)).unwrap_err();
        assert_eq!(reject.code(), pb::reject::Code::StorageFull);
        assert_eq!((reject.reason.as_str(), reject.what_to_do.as_str()), ("full", "make room"));
        assert!((5_000..=10_000).contains(&reject.retry_after_ms));
    }
}
