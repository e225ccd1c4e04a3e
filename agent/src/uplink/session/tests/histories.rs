//! Histories of a session and a tiny collector, with lost, late and repeated messages: every record
//! is committed once.

use std::collections::VecDeque;

use proptest::prelude::{Strategy, any, prop, prop_oneof, proptest};
use proto::telemetry::v1::{Ack, Batch, Limits, Resume, Welcome};

use super::{Answer, End, Message, Session, Standing, open, send, spool, wanted, welcome};

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
        let session = open(&spool(0, 0), welcome(0)).unwrap().session;
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
        let welcomed = open(&spool(self.sealed, self.acked), welcome).unwrap();
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
            Ok(Answer::Rewound { next }) => assert_eq!(wanted(&self.session), Some(next)),
            Ok(Answer::Known) => {}
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
