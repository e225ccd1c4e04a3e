//! The live lane, the two lanes beside each other, and their end.

use std::time::Duration;

use proto::telemetry::v1::reject::Code;

use super::collector::{Collector, Session, reject, response};
use super::{Agent, eventually, live_update};

/// `spool_records` of the update that was read last, where the tests put its number.
fn newest(collector: &Collector) -> Option<u64> {
    collector.ledger().live.last().map(|it| it.spool_records)
}

#[tokio::test]
async fn each_update_is_sent_at_once() {
    let collector = Collector::start([]);
    let agent = Agent::connected(&collector);
    for number in 0..20 {
        agent.live.send_replace(Some(live_update(number)));
        eventually("it arrives", || newest(&collector) == Some(number)).await;
    }
}

#[tokio::test]
async fn a_slow_collector_gets_the_newest_and_no_queue() {
    const UPDATES: u64 = 2_000;
    let collector = Collector::start([]);
    collector.reads_live.send_replace(false);
    let agent = Agent::connected(&collector);
    for number in 1..=UPDATES {
        let mut update = live_update(number);
        update.nvml_state = "x".repeat(10_000);
        agent.live.send_replace(Some(update));
        tokio::task::yield_now().await;
    }
    // As much as the connection holds was taken, and the rest is gone.
    tokio::time::sleep(Duration::from_millis(100)).await;
    collector.reads_live.send_replace(true);
    eventually("the newest arrives", || newest(&collector) == Some(UPDATES)).await;
    let read = collector.ledger().live.len() as u64;
    assert!(read < UPDATES / 2, "{read} updates had been queued");
}

#[tokio::test]
async fn both_lanes_come_back() {
    let mut collector = Collector::start([]);
    let mut agent = Agent::connected(&collector);
    for number in 1..=3 {
        agent.append(10);
        agent.live.send_replace(Some(live_update(number)));
        agent.delivered(&collector).await;
        eventually("it arrives", || newest(&collector) == Some(number)).await;
        collector.restart();
    }
    agent.check_ledger(&collector).await;
}

#[tokio::test]
async fn the_live_lane_does_not_need_the_durable_one() {
    let script = (0..1_000).map(|_| Session::Greet(response(reject(Code::StorageFull))));
    let collector = Collector::start(script);
    let mut agent = Agent::connected(&collector);
    agent.append(10);
    agent.link_is("it is refused", |it| it.counters.rejects > 0).await;
    agent.live.send_replace(Some(live_update(7)));
    eventually("it arrives", || newest(&collector) == Some(7)).await;
}

#[tokio::test]
async fn nothing_is_said_before_the_first_reading() {
    let collector = Collector::start([]);
    let mut agent = Agent::new();
    agent.live.send_replace(None);
    agent.append(10);
    agent.connect(&collector.url());
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(collector.ledger().hellos.is_empty());
    agent.live.send_replace(Some(live_update(0)));
    agent.check_ledger(&collector).await;
}

#[tokio::test]
async fn a_stop_delivers_what_is_spooled_and_closes_the_streams() {
    let collector = Collector::start([]);
    let mut agent = Agent::connected(&collector);
    agent.link_is("it is connected", |it| it.connected).await;
    eventually("the live lane stands", || newest(&collector).is_some()).await;
    agent.append(5_000);
    agent.stop().await;
    agent.check_ledger(&collector).await;
    assert_eq!(collector.ledger().live_closed, 1);
    assert!(!agent.link.borrow().connected);
}

#[tokio::test]
async fn a_stop_is_not_held_up() {
    // Nobody there; then somebody who does not answer.
    let mut collector = Collector::start([Session::Hang]);
    collector.kill();
    let mut agent = Agent::connected(&collector);
    agent.append(5);
    agent.link_is("there is none", |it| it.message.starts_with("no collector")).await;
    tokio::time::timeout(Duration::from_millis(1_500), agent.stop()).await.unwrap();

    collector.restart();
    let mut agent = Agent::connected(&collector);
    agent.append(5);
    agent.link_is("it sends", |it| it.counters.batches == 1).await;
    tokio::time::timeout(Duration::from_millis(1_500), agent.stop()).await.unwrap();
}
