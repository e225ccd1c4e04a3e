//! Single answers by table, and whole histories against a tiny collector.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use proptest::prelude::{Strategy, any, prop, prop_oneof, proptest};
use proto::telemetry::v1::{Ack, Batch, Limits, Reject, Resume, SealedRecord, Welcome};

use super::deliver_response::Message;
use super::{
    Answer, BatchLimits, Code, End, MOST_RETRY_AFTER, OpenSpool, Refusal, Session, SpoolId,
    Standing, Want,
};
use crate::spool;

const LEDGER: [u8; 2] = [1, 2];

const SPOOL: SpoolId = SpoolId([7; 16]);

fn spool(sealed_through: u64, acked_through: u64) -> OpenSpool {
    OpenSpool {
        spool_id: SPOOL,
        sealed_through,
        acked_through,
        ledger_id: if acked_through > 0 { LEDGER.to_vec() } else { Vec::new() },
        unsent_records: sealed_through - acked_through,
        used_bytes: 0,
    }
}

fn welcome(cursor: u64) -> Welcome {
    Welcome { ledger_id: LEDGER.to_vec(), epoch: 3, cursor, limits: None }
}

/// A session of a spool with ten records, of which the collector has `cursor`.
fn session(cursor: u64) -> Session {
    Session::open(&spool(10, cursor), welcome(cursor)).unwrap().session
}

/// Records whose content is their number.
fn picked(seqs: RangeInclusive<u64>) -> spool::Batch {
    let first_seq = *seqs.start();
    let record = |seq: u64| SealedRecord { payload: seq.to_be_bytes().to_vec(), hash: Vec::new() };
    spool::Batch { spool_id: SPOOL, first_seq, records: seqs.map(record).collect() }
}

fn send(session: &mut Session, seqs: RangeInclusive<u64>) -> Batch {
    session.batch(picked(seqs)).expect("the records follow what was sent")
}

fn ack(through: u64) -> Option<Message> {
    Some(Message::Ack(Ack { through }))
}

fn resume(next: u64) -> Option<Message> {
    Some(Message::Resume(Resume { next }))
}

fn violation(session: &mut Session, message: Option<Message>, expected: &str) {
    assert_eq!(session.receive(message), Err(End::Violation(expected.to_owned())));
}

fn wanted(session: &Session) -> Option<u64> {
    session.want().map(|it| it.from)
}

// === Welcome ===

fn check_welcome(spool: &OpenSpool, welcome: Welcome, standing: Standing, from: u64) {
    let it = Session::open(spool, welcome).unwrap();
    assert_eq!((it.standing, wanted(&it.session)), (standing, Some(from)));
    assert_eq!(it.session.acked_through(), from - 1);
}

#[test]
fn a_welcome_says_where_the_ledger_stands() {
    check_welcome(&spool(10, 0), welcome(0), Standing::Whole, 1);
    check_welcome(&spool(10, 4), welcome(4), Standing::Whole, 5);
    // The acknowledgement was lost on the way.
    check_welcome(&spool(10, 4), welcome(9), Standing::Whole, 10);
    let regressed = Standing::Regressed { cursor: 2, acknowledged: 4 };
    check_welcome(&spool(10, 4), welcome(2), regressed, 3);
    let new = Standing::New { cursor: 0, acknowledged: 4 };
    check_welcome(&spool(10, 4), Welcome { ledger_id: vec![9], ..welcome(0) }, new, 1);
    let ahead = Standing::Ahead { cursor: 12, sealed: 10 };
    check_welcome(&spool(10, 4), welcome(12), ahead, 11);
}

#[test]
fn a_ledger_without_a_usable_id_is_refused() {
    for (ledger_id, text) in [(vec![], "has 0 bytes"), (vec![1; 65], "has 65 bytes")] {
        let end = Session::open(&spool(0, 0), Welcome { ledger_id, ..welcome(0) });
        assert_eq!(end, Err(End::Violation(format!("its ledger's id {text}"))));
    }
}

fn check_limits(max_batch_bytes: u32, max_in_flight: u32, bytes: u64, batches: u64) {
    let limits = Some(Limits { max_batch_bytes, max_in_flight });
    let welcomed = Session::open(&spool(100, 0), Welcome { limits, ..welcome(0) });
    let mut session = welcomed.unwrap().session;
    let limits = BatchLimits { records: 4_096, bytes };
    assert_eq!(session.want(), Some(Want { from: 1, limits }));
    while let Some(Want { from, .. }) = session.want() {
        send(&mut session, from..=from);
    }
    assert_eq!(session.sent_through, batches);
}

#[test]
fn limits_narrow_and_never_widen() {
    check_limits(0, 0, 1024 * 1024, 8);
    check_limits(u32::MAX, u32::MAX, 1024 * 1024, 8);
    check_limits(100_000, 3, 100_000, 3);
    check_limits(1, 1, 64 * 1024, 1);
}

// === answers ===

#[test]
fn acknowledgements_are_cumulative_and_open_the_window() {
    let mut session = session(4);
    let batch = send(&mut session, 5..=6);
    assert_eq!((batch.epoch, batch.first_seq, batch.records.len()), (3, 5, 2));
    send(&mut session, 7..=8);
    assert_eq!(session.receive(ack(7)), Ok(Answer::Acked { through: 7, records: 3 }));
    assert!(session.is_waiting());
    assert_eq!(session.receive(ack(8)), Ok(Answer::Acked { through: 8, records: 1 }));
    assert!(!session.is_waiting());
    assert_eq!(session.receive(ack(6)), Ok(Answer::Known));
    assert_eq!(wanted(&session), Some(9));
}

#[test]
fn a_resume_rewinds_once_however_often_it_is_repeated() {
    let mut session = session(4);
    for seq in 5..=8 {
        send(&mut session, seq..=seq);
    }
    // Record 6 was not applied, so that 6, 7 and 8 are each answered by a Resume.
    assert_eq!(session.receive(resume(6)), Ok(Answer::Rewound { next: 6 }));
    assert_eq!(wanted(&session), Some(6));
    send(&mut session, 6..=8);
    assert_eq!(session.receive(resume(6)), Ok(Answer::Known));
    assert_eq!(session.receive(resume(6)), Ok(Answer::Known));
    assert_eq!(wanted(&session), Some(9));
    violation(&mut session, resume(6), "it wants 6 again");
}

#[test]
fn after_progress_the_same_may_be_asked_again() {
    let mut session = session(4);
    send(&mut session, 5..=6);
    assert_eq!(session.receive(resume(6)), Ok(Answer::Rewound { next: 6 }));
    assert_eq!(session.receive(ack(5)), Ok(Answer::Acked { through: 5, records: 1 }));
    send(&mut session, 6..=6);
    assert_eq!(session.receive(resume(6)), Ok(Answer::Rewound { next: 6 }));
}

#[test]
fn what_cannot_be_ends_the_session() {
    let mut session = session(4);
    send(&mut session, 5..=6);
    violation(&mut session, ack(7), "it acknowledged 7, sent was 6");
    violation(&mut session, resume(8), "it wants 8, acknowledged is 4 and sent 6");
    violation(&mut session, resume(4), "it wants 4, acknowledged is 4 and sent 6");
    violation(&mut session, resume(0), "it wants 0, acknowledged is 4 and sent 6");
    violation(&mut session, Some(Message::Welcome(welcome(4))), "it sent a second Welcome");
    violation(&mut session, None, "it sent a message of an unknown kind");
}

#[test]
fn a_reject_cannot_keep_the_agent_away_for_long() {
    let reject = Reject {
        code: Code::StorageFull.into(),
        reason: "full".to_owned(),
        what_to_do: "wait".to_owned(),
        retry_after_ms: u32::MAX,
    };
    let refusal = Refusal {
        code: Code::StorageFull,
        reason: "full".to_owned(),
        what_to_do: "wait".to_owned(),
        retry_after: MOST_RETRY_AFTER,
    };
    assert_eq!(session(0).receive(Some(Message::Reject(reject))), Err(End::Rejected(refusal)));
}

#[test]
fn numbers_that_are_taken_begin_a_new_sequence() {
    let reject = Reject {
        code: Code::SequenceReuse.into(),
        reason: "seq 5 twice".to_owned(),
        ..Reject::default()
    };
    let mut session = session(4);
    send(&mut session, 5..=6);
    let why = "the collector has other records under its numbers: seq 5 twice".to_owned();
    let renumber = End::Renumber { after: 4, why };
    assert_eq!(session.receive(Some(Message::Reject(reject))), Err(renumber));
}

#[test]
fn only_what_was_asked_for_is_sent() {
    let replaced = spool::Batch { spool_id: SpoolId([8; 16]), ..picked(5..=6) };
    let end = End::Spool("it was replaced by a new one".to_owned());
    assert_eq!(session(4).batch(replaced), Err(end));
}

#[test]
fn a_hole_in_the_spool_begins_a_new_sequence_when_it_is_known_where() {
    let mut session = session(4);
    send(&mut session, 5..=6);
    let why = || "it gave record 9 instead of 7".to_owned();
    assert_eq!(session.batch(picked(9..=10)), Err(End::Spool(why())));
    session.receive(ack(6)).unwrap();
    let renumber = End::Renumber { after: 6, why: why() };
    assert_eq!(session.batch(picked(9..=10)), Err(renumber));
}

// === histories ===

/// One step of a history. Numbers are taken modulo what is there.
#[derive(Clone, Debug)]
enum Step {
    Append(u8),
    /// The agent sends a batch of at most so many records, if it may.
    Send(u8),
    /// The collector takes a message, or the agent does.
    Deliver,
    Answer,
    /// The collector commits and acknowledges; so many times, as if the answer were duplicated.
    Commit(u8),
    /// The collector's transaction fails.
    RollBack,
    /// The connection breaks; what is under way is lost.
    Cut,
}

/// A collector in few words: a cursor, and what is applied and not yet committed.
#[derive(Debug, Default)]
struct Collector {
    committed: u64,
    applied: u64,
    inbox: VecDeque<Batch>,
    /// Payloads of committed records, in order.
    ledger: Vec<u64>,
    open: Vec<u64>,
}

#[derive(Debug)]
struct World {
    limit: u32,
    appended: u64,
    sealed: u64,
    acked: u64,
    session: Session,
    outbox: VecDeque<Message>,
    collector: Collector,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1..20_u8).prop_map(Step::Append),
        8 => (1..6_u8).prop_map(Step::Send),
        8 => prop::bool::ANY.prop_map(|it| if it { Step::Deliver } else { Step::Answer }),
        4 => (1..4_u8).prop_map(Step::Commit),
        1 => any::<bool>().prop_map(|it| if it { Step::RollBack } else { Step::Cut }),
    ]
}

// === impl Collector ===

impl Collector {
    fn take(&mut self, outbox: &mut VecDeque<Message>) {
        let Some(batch) = self.inbox.pop_front() else { return };
        if batch.first_seq > self.applied + 1 {
            outbox.push_back(Message::Resume(Resume { next: self.applied + 1 }));
            return;
        }
        for (seq, record) in (batch.first_seq..).zip(&batch.records) {
            if seq == self.applied + 1 {
                self.applied = seq;
                self.open.push(u64::from_be_bytes(record.payload[..].try_into().unwrap()));
            }
        }
    }

    fn commit(&mut self, answers: u8, outbox: &mut VecDeque<Message>) {
        self.committed = self.applied;
        self.ledger.append(&mut self.open);
        for _ in 0..answers {
            outbox.push_back(Message::Ack(Ack { through: self.committed }));
        }
    }

    fn roll_back(&mut self) {
        self.applied = self.committed;
        self.open.clear();
    }
}

// === impl World ===

impl World {
    fn new(limit: u32) -> Self {
        let collector = Collector::default();
        let session = Session::open(&spool(0, 0), welcome(0)).unwrap().session;
        let outbox = VecDeque::new();
        let mut world =
            Self { limit, appended: 0, sealed: 0, acked: 0, session, outbox, collector };
        world.connect();
        world
    }

    fn connect(&mut self) {
        self.collector.roll_back();
        self.collector.inbox.clear();
        self.outbox.clear();
        let limits = Some(Limits { max_batch_bytes: 0, max_in_flight: self.limit });
        let welcome = Welcome { limits, ..welcome(self.collector.committed) };
        let welcomed = Session::open(&spool(self.sealed, self.acked), welcome).unwrap();
        assert_eq!(welcomed.standing, Standing::Whole);
        self.session = welcomed.session;
        self.acked = self.session.acked_through();
    }

    fn send(&mut self, most: u64) {
        let Some(want) = self.session.want() else { return };
        let last = self.appended.min(want.from - 1 + most);
        if last < want.from {
            return;
        }
        self.sealed = self.sealed.max(last);
        let batch = send(&mut self.session, want.from..=last);
        assert!(batch.first_seq > self.acked, "nothing acknowledged is sent again");
        self.collector.inbox.push_back(batch);
        assert!(self.session.in_flight.len() <= self.limit as usize);
    }

    fn answer(&mut self) {
        let Some(message) = self.outbox.pop_front() else { return };
        match self.session.receive(Some(message)) {
            Ok(Answer::Acked { through, records }) => {
                assert_eq!(through, self.acked + records);
                self.acked = through;
            }
            Ok(Answer::Rewound { .. } | Answer::Known) => {}
            Err(End::Violation(text)) if text.ends_with(" again") => self.connect(),
            Err(end) => panic!("the collector did nothing wrong: {end:?}"),
        }
        assert!(self.acked <= self.collector.committed, "only what is committed is forgotten");
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Append(records) => self.appended += u64::from(*records),
            Step::Send(most) => self.send(u64::from(*most)),
            Step::Deliver => self.collector.take(&mut self.outbox),
            Step::Answer => self.answer(),
            Step::Commit(answers) => self.collector.commit(*answers, &mut self.outbox),
            Step::RollBack => self.collector.roll_back(),
            Step::Cut => self.connect(),
        }
    }
}

proptest! {
    #[test]
    fn every_record_is_delivered_once(
        limit in 1..=8_u32,
        steps in prop::collection::vec(step(), 0..300),
    ) {
        let mut world = World::new(limit);
        for step in &steps {
            world.step(step);
        }
        // A batch that was rolled back and not followed by another has no answer: the driver's
        // deadline cuts such a connection.
        world.connect();
        for _ in 0..=world.appended {
            for step in [Step::Send(5), Step::Deliver, Step::Commit(1), Step::Answer] {
                world.step(&step);
            }
        }
        let all: Vec<u64> = (1..=world.appended).collect();
        assert_eq!(world.collector.ledger, all);
        assert_eq!(world.acked, world.appended);
        assert!(!world.session.is_waiting());
    }
}
