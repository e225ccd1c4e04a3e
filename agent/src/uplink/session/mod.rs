//! The durable lane after the collector's Welcome, as a state machine: what to send next, and what
//! an answer means. No I/O and no clock: `durable.rs` carries it out.
//!
//! The collector positions and paces the sender and cannot do more: each number that it sends is
//! checked against what was sent, or clamped to the bounds below.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::time::Duration;

use proto::telemetry::v1::{Batch, Reject, Welcome, deliver_response, reject::Code};

use crate::spool::{self, BatchLimits, OpenSpool, SpoolId};

/// Records in one batch, at most.
const BATCH_RECORDS: u32 = 4_096;
/// Bytes of one batch. The collector can narrow it, and not so far that a record does not fit.
pub(super) const BATCH_BYTES: RangeInclusive<u32> = 64 * 1024..=1024 * 1024;
/// Batches without an answer: what is sent twice after a lost connection.
const IN_FLIGHT: RangeInclusive<u32> = 1..=8;
/// A collector cannot keep an agent away for longer than this.
const MOST_RETRY_AFTER: Duration = Duration::from_secs(300);
/// A ledger's name is 16 bytes; longer than this is not a name.
const LEDGER_ID_BYTES: usize = 64;

/// One session, from Welcome to the end of the stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Session {
    spool_id: SpoolId,
    ledger_id: Vec<u8>,
    epoch: u64,
    limits: BatchLimits,
    in_flight_most: usize,
    /// By this session, or by the cursor of its Welcome.
    acked_through: u64,
    /// The next batch begins after this one; a Resume takes it back.
    sent_through: u64,
    /// Never taken back: no answer can name a record beyond it.
    highest_sent: u64,
    /// Last sequence number of each batch that has no answer.
    in_flight: VecDeque<u64>,
    rewound: Option<Rewound>,
}

/// A Resume that was followed, until an acknowledgement shows progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rewound {
    next: u64,
    /// Batches that were under way when it came; each may be answered by the same Resume.
    echoes: usize,
}

/// What a Welcome means.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Welcomed {
    pub(super) session: Session,
    pub(super) standing: Standing,
}

/// How much the ledger has, compared with what was acknowledged and with what the spool has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Everything that was acknowledged, or more.
    Whole,
    /// It is not the ledger that acknowledged; what it has is what this spool sent to it.
    New { cursor: u64, acknowledged: u64 },
    /// Less than it acknowledged: it was restored from an older copy, or its storage was damaged.
    Regressed { cursor: u64, acknowledged: u64 },
    /// Records of this spool that the spool does not know: the spool was restored from an older copy.
    /// What the spool has sealed is then certainly there.
    Ahead { cursor: u64, sealed: u64 },
}

/// The records that the next batch is made of: those from the number `from` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Want {
    pub(super) from: u64,
    pub(super) limits: BatchLimits,
}

/// What an answer changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Everything up to `through` is committed, `records` more than before.
    Acked { through: u64, records: u64 },
    /// The next batch begins with `next`.
    Rewound { next: u64 },
    /// Nothing that was not known.
    Known,
}

/// Why a session is over. The spool keeps everything that is not acknowledged.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The agent stops.
    Finished,
    /// The connection, the stream or an answer failed.
    Lost(String),
    /// The collector said something that cannot be.
    Violation(String),
    Rejected(Refusal),
    /// The spool gave what was not asked for, or nothing.
    Spool(String),
    /// The numbers of spool and ledger can no longer be joined: the spool begins a new sequence with
    /// the records after this one.
    Renumber {
        spool_id: SpoolId,
        after: u64,
        why: String,
    },
}

/// A Reject whose numbers are within bounds. The texts are only shown.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: Code,
    pub(super) reason: String,
    pub(super) what_to_do: String,
    pub(super) retry_after: Duration,
}

// === impl Session ===

impl Session {
    /// `spool` is what the Hello said; no batch has more than `most_bytes`.
    pub(super) fn open(
        spool: &OpenSpool,
        welcome: Welcome,
        most_bytes: u32,
    ) -> Result<Welcomed, End> {
        let Welcome { ledger_id, epoch, cursor, limits } = welcome;
        if ledger_id.is_empty() || ledger_id.len() > LEDGER_ID_BYTES {
            return Err(End::Violation(format!("its ledger's id has {} bytes", ledger_id.len())));
        }
        let standing = Standing::of(spool, &ledger_id, cursor);
        let asked = limits.unwrap_or_default();
        let bytes = narrowed(asked.max_batch_bytes, *BATCH_BYTES.start()..=most_bytes);
        let in_flight_most = narrowed(asked.max_in_flight, IN_FLIGHT);
        let known = cursor.min(spool.sealed_through);
        let session = Self {
            spool_id: spool.spool_id,
            ledger_id,
            epoch,
            limits: BatchLimits { records: BATCH_RECORDS, bytes: bytes.into() },
            in_flight_most: usize::try_from(in_flight_most).unwrap_or(1),
            acked_through: known,
            sent_through: known,
            highest_sent: known,
            in_flight: VecDeque::new(),
            rewound: None,
        };
        Ok(Welcomed { session, standing })
    }

    pub(super) fn ledger_id(&self) -> &[u8] {
        &self.ledger_id
    }

    pub(super) fn spool_id(&self) -> SpoolId {
        self.spool_id
    }

    pub(super) fn acked_through(&self) -> u64 {
        self.acked_through
    }

    /// The end after which the records that the ledger does not have get new numbers.
    pub(super) fn renumber(&self, why: String) -> End {
        End::Renumber { spool_id: self.spool_id, after: self.acked_through, why }
    }

    /// A batch has no answer yet.
    pub(super) fn is_waiting(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// What to ask the spool for; `None` while as many batches are under way as may be.
    pub(super) fn want(&self) -> Option<Want> {
        let room = self.in_flight.len() < self.in_flight_most;
        room.then_some(Want { from: self.sent_through + 1, limits: self.limits })
    }

    /// Makes a message of what the spool gave for `want`, and counts it as sent.
    pub(super) fn batch(&mut self, batch: spool::Batch) -> Result<Batch, End> {
        if batch.spool_id != self.spool_id {
            return Err(End::Spool("it was replaced by a new one".to_owned()));
        }
        let (wanted, first_seq) = (self.sent_through + 1, batch.first_seq);
        if first_seq != wanted || batch.records.is_empty() {
            return Err(self.hole(first_seq));
        }
        self.sent_through = batch.last_seq();
        self.highest_sent = self.highest_sent.max(self.sent_through);
        self.in_flight.push_back(self.sent_through);
        Ok(Batch { epoch: self.epoch, first_seq, records: batch.records })
    }

    /// The ledger would wait for ever for a record that is gone. While batches are under way it is
    /// not known which records it has, so that the numbers are kept until the next Welcome says it.
    fn hole(&self, given: u64) -> End {
        let why = format!("it gave record {given} instead of {}", self.sent_through + 1);
        if self.is_waiting() { End::Spool(why) } else { self.renumber(why) }
    }

    pub(super) fn receive(
        &mut self,
        message: Option<deliver_response::Message>,
    ) -> Result<Answer, End> {
        match message {
            Some(deliver_response::Message::Ack(it)) => self.ack(it.through),
            Some(deliver_response::Message::Resume(it)) => self.resume(it.next),
            Some(deliver_response::Message::Reject(it)) => Err(self.rejected(it)),
            Some(deliver_response::Message::Welcome(_)) => {
                Err(End::Violation("it sent a second Welcome".to_owned()))
            }
            None => Err(End::Violation("it sent a message of an unknown kind".to_owned())),
        }
    }

    fn rejected(&self, reject: Reject) -> End {
        match reject.code() {
            // Under new numbers no record can be taken for another one.
            Code::SequenceReuse => {
                let reason = reject.reason;
                self.renumber(format!(
                    "the collector has other records under its numbers: {reason}"
                ))
            }
            _ => End::refused(reject),
        }
    }

    /// Cumulative. An older one that comes late says nothing new.
    fn ack(&mut self, through: u64) -> Result<Answer, End> {
        if through > self.highest_sent {
            let sent = self.highest_sent;
            return Err(End::Violation(format!("it acknowledged {through}, sent was {sent}")));
        }
        let Some(records) = through.checked_sub(self.acked_through).filter(|it| *it > 0) else {
            return Ok(Answer::Known);
        };
        self.acked_through = through;
        self.sent_through = self.sent_through.max(through);
        while self.in_flight.front().is_some_and(|it| *it <= through) {
            self.in_flight.pop_front();
        }
        self.rewound = None;
        Ok(Answer::Acked { through, records })
    }

    /// Not an acknowledgement: what is below `next` may be applied and not yet committed.
    fn resume(&mut self, next: u64) -> Result<Answer, End> {
        if next <= self.acked_through || next > self.highest_sent + 1 {
            let (acked, sent) = (self.acked_through, self.highest_sent);
            return Err(End::Violation(format!(
                "it wants {next}, acknowledged is {acked} and sent {sent}"
            )));
        }
        match &mut self.rewound {
            Some(it) if it.next == next && it.echoes > 0 => {
                it.echoes -= 1;
                Ok(Answer::Known)
            }
            Some(_) => Err(End::Violation(format!("it wants {next} again"))),
            None => {
                let before = self.in_flight.len();
                self.in_flight.retain(|last| *last < next);
                let under_way = before - self.in_flight.len();
                self.rewound = Some(Rewound { next, echoes: under_way.saturating_sub(1) });
                self.sent_through = next - 1;
                Ok(Answer::Rewound { next })
            }
        }
    }
}

/// `asked` within the bounds; 0 asks for nothing.
fn narrowed(asked: u32, bounds: RangeInclusive<u32>) -> u32 {
    if asked == 0 { *bounds.end() } else { asked.clamp(*bounds.start(), *bounds.end()) }
}

// === impl Standing ===

impl Standing {
    fn of(spool: &OpenSpool, ledger_id: &[u8], cursor: u64) -> Self {
        let acknowledged = spool.acked_through;
        if cursor > spool.sealed_through {
            Self::Ahead { cursor, sealed: spool.sealed_through }
        } else if !spool.ledger_id.is_empty() && spool.ledger_id != ledger_id {
            Self::New { cursor, acknowledged }
        } else if cursor < acknowledged {
            Self::Regressed { cursor, acknowledged }
        } else {
            Self::Whole
        }
    }
}

// === impl End ===

impl End {
    pub(super) fn refused(reject: Reject) -> Self {
        let retry_after = Duration::from_millis(reject.retry_after_ms.into());
        Self::Rejected(Refusal {
            code: reject.code(),
            reason: reject.reason,
            what_to_do: reject.what_to_do,
            retry_after: retry_after.min(MOST_RETRY_AFTER),
        })
    }
}

#[cfg(test)]
mod tests;
