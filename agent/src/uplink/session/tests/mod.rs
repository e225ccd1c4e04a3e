//! What single answers mean; whole histories are in `histories.rs`.

mod histories;

use std::ops::RangeInclusive;

use proto::telemetry::v1::{Ack, Batch, Limits, Reject, Resume, SealedRecord, Welcome};

use super::deliver_response::Message;
use super::{
    Answer, BATCH_BYTES, BatchLimits, Code, End, MOST_RETRY_AFTER, OpenSpool, Refusal, Session,
    SpoolId, Standing, Want, Welcomed,
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

fn open(spool: &OpenSpool, welcome: Welcome) -> Result<Welcomed, End> {
    Session::open(spool, welcome, *BATCH_BYTES.end())
}

/// A session of a spool with ten records, of which the collector has `cursor`.
fn session(cursor: u64) -> Session {
    open(&spool(10, cursor), welcome(cursor)).unwrap().session
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
    let it = open(spool, welcome).unwrap();
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
        let end = open(&spool(0, 0), Welcome { ledger_id, ..welcome(0) });
        assert_eq!(end, Err(End::Violation(format!("its ledger's id {text}"))));
    }
}

fn check_limits(max_batch_bytes: u32, max_in_flight: u32, bytes: u64, batches: u64) {
    let limits = Some(Limits { max_batch_bytes, max_in_flight });
    let welcomed = open(&spool(100, 0), Welcome { limits, ..welcome(0) });
    let mut session = welcomed.unwrap().session;
    let limits = BatchLimits { records: 4_096, bytes };
    assert_eq!(session.want(), Some(Want { from: 1, limits }));
    for seq in 1..=100 {
        if session.want().is_some() {
            send(&mut session, seq..=seq);
        }
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
fn a_collector_that_has_more_than_it_asked_for_is_believed() {
    let mut session = session(4);
    send(&mut session, 5..=8);
    assert_eq!(session.receive(resume(6)), Ok(Answer::Rewound { next: 6 }));
    assert_eq!(session.receive(ack(8)), Ok(Answer::Acked { through: 8, records: 4 }));
    assert_eq!(wanted(&session), Some(9));
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
    let renumber = End::Renumber { spool_id: SPOOL, after: 4, why };
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
    let renumber = End::Renumber { spool_id: SPOOL, after: 6, why: why() };
    assert_eq!(session.batch(picked(9..=10)), Err(renumber));
}
