//! The durable lane.

use std::io::Write as _;
use std::time::Duration;

use proto::telemetry::v1::{
    Ack, DeliverResponse, Limits, Reject, Resume, Welcome, deliver_response::Message as Response,
    reject::Code,
};

use super::collector::{Collector, Session, reject, response};
use super::{Agent, FENCED, eventually};

#[tokio::test]
async fn everything_is_delivered_once_and_in_order() {
    let collector = Collector::start([]);
    let mut agent = Agent::connected(&collector);
    for records in [1, 10, 5_000, 3] {
        agent.append(records);
        agent.delivered(&collector).await;
    }
    agent.check_ledger(&collector).await;
    let link = agent.link.borrow().clone();
    assert!(link.connected);
    assert_eq!(link.ledger_id, Some(vec![1; 16]));
    let counters = link.counters;
    assert_eq!((counters.connects, counters.records_acked), (1, agent.appended));
    assert_eq!((counters.resumes, counters.rejects), (0, 0));
    assert_eq!(counters.batches, collector.ledger().batches);
    let hello = collector.ledger().hellos[0].clone();
    assert_eq!(hello.device_uuids, ["GPU-0"]);
    assert_eq!(hello.node.unwrap().node, "n");
    assert!(hello.clock.unwrap().boot_ns > 0);
}

/// Two hundred records, through sessions that go wrong in this way and then honest ones.
async fn check(script: impl IntoIterator<Item = Session>) -> Agent {
    let collector = Collector::start(script);
    let mut agent = Agent::new();
    agent.append(100);
    agent.connect(&collector.url());
    agent.append(100);
    agent.check_ledger(&collector).await;
    agent
}

#[tokio::test]
async fn streams_that_end_are_taken_up_again() {
    let agent = check([Session::EndBefore, Session::EndBefore, Session::EndAfter]).await;
    assert_eq!(agent.link.borrow().counters.connects, 4);
}

#[tokio::test]
async fn a_collector_that_does_not_answer_is_left() {
    check([Session::NoWelcome, Session::Hang]).await;
}

#[tokio::test]
async fn a_resume_rewinds_within_the_session() {
    let agent = check([Session::Answer(Response::Resume(Resume { next: 1 }))]).await;
    let counters = agent.link.borrow().counters;
    assert_eq!((counters.connects, counters.resumes), (1, 1));
}

#[tokio::test]
async fn a_reject_is_waited_out() {
    for code in [Code::StorageFull, Code::StaleEpoch, Code::Malformed, Code::TooLarge] {
        let agent = check([
            Session::Greet(response(reject(code))),
            Session::Answer(reject(code)),
            Session::Answer(reject(code)),
        ])
        .await;
        assert_eq!(agent.link.borrow().counters.rejects, 3);
    }
}

/// The second Hello comes this long after the first, which was answered with `reject`.
async fn check_wait(reject: Reject, least: Duration) {
    let collector = Collector::start([Session::Greet(response(Response::Reject(reject)))]);
    let mut agent = Agent::connected(&collector);
    agent.append(1);
    agent.check_ledger(&collector).await;
    let hellos = collector.ledger().hellos.clone();
    let at = |index: usize| u128::from(hellos[index].clock.unwrap().boot_ns);
    assert!(at(1) - at(0) >= least.as_nanos(), "{} ns", at(1) - at(0));
}

#[tokio::test]
async fn a_collector_says_how_long_to_wait() {
    let full = Reject { retry_after_ms: 200, ..Reject::default() };
    check_wait(full, Duration::from_millis(200)).await;
    let fenced = Reject { code: Code::StaleEpoch.into(), ..Reject::default() };
    check_wait(fenced, FENCED).await;
}

#[tokio::test]
async fn batches_shrink_until_the_collector_takes_them() {
    let collector = Collector::start((0..4).map(|_| Session::Answer(reject(Code::TooLarge))));
    let mut agent = Agent::new();
    for _ in 0..3 {
        agent.append(2_000);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    agent.connect(&collector.url());
    agent.check_ledger(&collector).await;
    // Of 64 KiB each, at most, instead of 4,096 records.
    let per_batch = agent.appended / (collector.ledger().batches - 4);
    assert!(per_batch < 1_500, "{per_batch} records in a batch");
}

#[tokio::test]
async fn answers_that_cannot_be_are_not_believed() {
    let nameless = Response::Welcome(Welcome::default());
    check([
        Session::Greet(DeliverResponse { message: None }),
        Session::Greet(response(Response::Ack(Ack { through: 5 }))),
        Session::Greet(response(nameless.clone())),
        Session::Answer(nameless),
        Session::Answer(Response::Ack(Ack { through: 1_000_000 })),
        Session::Answer(Response::Resume(Resume { next: 0 })),
        Session::Answer(Response::Resume(Resume { next: u64::MAX })),
    ])
    .await;
}

#[tokio::test]
async fn a_reject_says_why_and_what_is_not_harmed() {
    let script = (0..1_000).map(|_| Session::Greet(response(reject(Code::StorageFull))));
    let collector = Collector::start(script);
    let mut agent = Agent::new();
    agent.append(3);
    agent.connect(&collector.url());
    let link = agent.link_is("refused", |it| it.message.contains("3 records")).await;
    assert!(!link.connected);
    assert!(link.message.contains("refuses usage (storage_full): because; wait"));
    assert!(link.message.contains("usage is kept in the spool (3 records), nothing is lost"));
}

#[tokio::test]
async fn a_killed_collector_loses_and_doubles_nothing() {
    let mut collector = Collector::start([Session::Hang]);
    let mut agent = Agent::connected(&collector);
    for _ in 0..5 {
        agent.append(100);
        let applied = agent.appended;
        eventually("the batch is committed", || collector.ledger().tiles.len() as u64 == applied)
            .await;
        // Committed, and no acknowledgement has left.
        collector.kill();
        agent.append(50);
        agent.link_is("it is lost", |it| !it.connected).await;
        collector.ledger().script.push_back(Session::Honest);
        collector.ledger().script.push_back(Session::Hang);
        collector.restart();
        agent.delivered(&collector).await;
        collector.restart();
    }
    agent.check_ledger(&collector).await;
}

#[tokio::test]
async fn a_collector_that_comes_late_gets_everything() {
    let mut collector = Collector::start([]);
    collector.kill();
    let mut agent = Agent::connected(&collector);
    agent.append(20);
    let link = agent.link_is("there is none", |it| it.message.starts_with("no collector")).await;
    assert!(link.message.contains("nothing is lost; retrying"), "{}", link.message);
    collector.restart();
    agent.check_ledger(&collector).await;
}

#[tokio::test]
async fn what_is_no_grpc_server_is_survived() {
    let mut collector = Collector::start([]);
    collector.kill();
    let listener = std::net::TcpListener::bind(collector.address).unwrap();
    let answering = tokio::task::spawn_blocking(move || {
        for _ in 0..3 {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n\0\xff garbage").unwrap();
        }
    });
    let mut agent = Agent::connected(&collector);
    agent.append(20);
    answering.await.unwrap();
    assert!(!agent.link.borrow().connected);
    collector.restart();
    agent.check_ledger(&collector).await;
}

#[tokio::test]
async fn limits_of_the_collector_are_kept() {
    let collector = Collector::start([Session::Hang]);
    collector.ledger().limits = Some(Limits { max_batch_bytes: 1, max_in_flight: 2 });
    let mut agent = Agent::connected(&collector);
    agent.append(10_000);
    // The first session takes one batch and reads no further.
    let state = agent.link_is("it sends", |it| it.counters.batches >= 2).await;
    assert_eq!(state.counters.batches, 2);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(agent.link.borrow().counters.batches, 2);
    agent.check_ledger(&collector).await;
    let most = 64 * 1024 / 30;
    assert!(collector.ledger().batches > 10_000 / most, "batches are small");
}

#[tokio::test]
async fn a_ledger_that_went_back_is_refilled() {
    let mut collector = Collector::start([]);
    let mut agent = Agent::connected(&collector);
    for _ in 0..3 {
        agent.append(10);
        agent.delivered(&collector).await;
    }
    collector.kill();
    {
        let mut ledger = collector.ledger();
        ledger.tiles.truncate(7);
        ledger.cursors.values_mut().for_each(|it| *it = 7);
    }
    agent.append(5);
    collector.restart();
    agent.check_ledger(&collector).await;
}

#[tokio::test]
async fn a_new_ledger_is_filled_from_the_beginning() {
    let mut collector = Collector::start([]);
    let mut agent = Agent::connected(&collector);
    agent.append(30);
    agent.delivered(&collector).await;
    collector.kill();
    {
        let mut ledger = collector.ledger();
        ledger.id = vec![2; 16];
        ledger.cursors.clear();
        ledger.tiles.clear();
    }
    collector.restart();
    agent.check_ledger(&collector).await;
    assert_eq!(agent.link.borrow().ledger_id, Some(vec![2; 16]));
}

#[tokio::test]
async fn a_spool_that_the_ledger_knows_better_gets_a_new_name() {
    let collector = Collector::start([]);
    let mut agent = Agent::new();
    let spool_id = agent.handle().status().borrow().open.as_ref().unwrap().spool_id;
    collector.ledger().cursors.insert(spool_id.0.to_vec(), 5);
    agent.append(10);
    agent.connect(&collector.url());
    agent.check_ledger(&collector).await;
    let hellos = collector.ledger().hellos.clone();
    assert_eq!(hellos.len(), 2);
    assert_ne!(hellos[1].spool_id, spool_id.0);
}

#[tokio::test]
async fn numbers_that_are_taken_are_given_up() {
    let agent = check([Session::Answer(reject(Code::SequenceReuse))]).await;
    assert_eq!(agent.link.borrow().counters.connects, 2);
}
