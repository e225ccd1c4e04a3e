//! Idle capacity reaches a scheduler when it exists, and leaves it when it does not.

use std::time::Duration;

use nix::sys::signal::Signal;
use proto::capacity::v1::watch_response::Message;
use proto::capacity::v1::withdrawn::Reason;
use proto::telemetry::v1::Class;
use tests::collector::{Collector, find};
use tests::node::{Node, Setup};
use tests::scheduler::Scheduler;
use tests::wait::{eventually, now, throughout};

const SOON: Duration = Duration::from_secs(15);
const AT_ONCE: Duration = Duration::from_secs(1);

/// The shortest dwell that a profile asks for.
const BLINK: Duration = Duration::from_secs(60);

fn start(setup: Setup) -> (Collector, Node, Scheduler) {
    let collector = Collector::start();
    let node = setup.reporting_to(&collector).start();
    let scheduler = collector.scheduler();
    (collector, node, scheduler)
}

#[test]
fn a_free_device_is_offered_at_once_and_says_what_it_is() {
    let (_collector, node, scheduler) = start(Setup::gpus(1).named("rack-7"));
    let offer = scheduler.until_offered(SOON, node.gpu_uuid(0));
    assert_eq!(offer.class(), Class::Free);
    assert_eq!(offer.node, "rack-7");
    assert_eq!(offer.dwell_ms, 0);
    assert!((1..=30_000).contains(&offer.valid_for_ms));
    assert_eq!(offer.model.as_deref(), Some("NVIDIA H100 80GB HBM3"));
    assert_eq!(offer.memory_total_bytes, Some(81_559 << 20));
    assert_eq!(offer.memory_free_bytes, Some((81_559 - 551) << 20));
    assert!(offer.holders.is_empty());
    assert_eq!(offer.evidence.unwrap().processes, Some(0));
}

#[test]
fn a_device_without_a_source_of_allocations_is_never_offered() {
    let unknown = |it: &mut Setup| it.config.holders.allocations = "unknown".to_owned();
    let (collector, node, scheduler) = start(Setup::gpus(1).with(unknown));
    scheduler.until_whole(SOON);
    collector.until_class(SOON, node.gpu_uuid(0), Class::Unknown);
    throughout(Duration::from_secs(2), "nothing is offered", || {
        let offers = scheduler.offers();
        tests::wait::check(offers.is_empty(), || format!("{offers:?}"))
    });
}

#[test]
fn a_launch_takes_the_offer_back_at_once() {
    // Ticks are far apart: it is the launch that is seen, not the next reading.
    let (_collector, node, scheduler) = start(Setup::gpus(1).with(|it| it.config.tick_ms = 4_000));
    scheduler.until_offered(SOON, node.gpu_uuid(0));
    let _tenant = node.tenant("t", &["--launches-per-second=50"]);
    scheduler.until_not_offered(AT_ONCE, node.gpu_uuid(0));
}

#[test]
fn the_end_of_a_process_changes_the_class_at_once_and_is_offered_with_the_memory() {
    let slow = |it: &mut Setup| {
        it.config.tick_ms = 4_000;
        it.scenario.release_ms = 2_000;
    };
    let (collector, node, scheduler) = start(Setup::gpus(1).with(slow));
    let uuid = node.gpu_uuid(0);
    let tenant = node.tenant("t", &["--memory-mib=5000", "--hold"]);
    collector.until_class(SOON, uuid, Class::MemoryHeld);
    tenant.kill();
    let killed = now();
    eventually(AT_ONCE, "the fleet shows another class", || {
        let fleet = collector.fleet()?;
        let (_, instance, _) = find(&fleet, uuid).ok_or("it is not in the fleet")?;
        tests::wait::check(instance.class() != Class::MemoryHeld, || "it is memory_held".to_owned())
    });
    assert!(scheduler.offers().is_empty(), "the driver still has the memory");
    let offer = scheduler.until_offered(SOON, uuid);
    assert!(killed.elapsed() >= Duration::from_millis(1_900), "not before the driver let go");
    assert_eq!(offer.class(), Class::Free);
    assert_eq!(offer.memory_free_bytes, Some((81_559 - 551) << 20));
}

#[test]
fn held_capacity_is_offered_only_after_its_dwell() {
    let (collector, node, scheduler) = start(Setup::gpus(1));
    let uuid = node.gpu_uuid(0);
    let _tenant = node.tenant("notebook", &["--memory-mib=5000", "--hold"]);
    collector.until_class(SOON, uuid, Class::MemoryHeld);
    throughout(BLINK - Duration::from_secs(6), "it is not offered yet", || {
        let offers = scheduler.offers();
        tests::wait::check(offers.is_empty(), || format!("{offers:?}"))
    });
    let offer = scheduler.until_offered(SOON, uuid);
    assert_eq!(offer.class(), Class::MemoryHeld);
    assert_eq!(offer.dwell_ms, 60_000);
    assert!(offer.idle_age_ms >= 60_000, "{} ms", offer.idle_age_ms);
    assert_eq!(offer.holders[0].tenant, "notebook");
    let _guest = node.tenant("guest", &["--launches-per-second=50"]);
    scheduler.until_not_offered(AT_ONCE * 2, uuid);
    // It was free before the notebook came.
    assert_eq!(scheduler.withdrawals(uuid), [Reason::ClassChanged, Reason::Busy]);
}

#[test]
fn stopping_the_agent_withdraws_its_offers() {
    let (_collector, mut node, scheduler) = start(Setup::gpus(2));
    for gpu in [0, 1] {
        scheduler.until_offered(SOON, node.gpu_uuid(gpu));
    }
    assert!(node.stop_agent().success());
    for gpu in [0, 1] {
        scheduler.until_not_offered(AT_ONCE, node.gpu_uuid(gpu));
        assert_eq!(scheduler.withdrawals(node.gpu_uuid(gpu)), [Reason::Gone]);
    }
}

#[test]
fn a_silent_node_has_no_idle_capacity() {
    let (_collector, mut node, scheduler) = start(Setup::gpus(1));
    let uuid = node.gpu_uuid(0).to_owned();
    scheduler.until_offered(SOON, &uuid);
    node.agent().send(Signal::SIGSTOP);
    scheduler.until_not_offered(Duration::from_secs(6), &uuid);
    assert_eq!(scheduler.withdrawals(&uuid), [Reason::Silent]);
    node.agent().send(Signal::SIGCONT);
    scheduler.until_offered(SOON, &uuid);
}

#[test]
fn a_subscriber_is_told_again_after_the_collector_was_killed() {
    let (mut collector, node, scheduler) = start(Setup::gpus(1));
    scheduler.until_offered(SOON, node.gpu_uuid(0));
    collector.kill();
    scheduler.until_not_offered(Duration::from_secs(6), node.gpu_uuid(0));
    collector.start_again();
    scheduler.until_offered(SOON, node.gpu_uuid(0));
    let snapshots = |it: &&tests::scheduler::Heard| matches!(it.message, Message::SnapshotBegin(_));
    assert!(scheduler.heard().iter().filter(snapshots).count() >= 2, "another generation");
}

#[test]
fn the_end_of_a_working_process_does_not_wait_for_the_tick() {
    let slow = |it: &mut Setup| it.config.tick_ms = 5_000;
    let (collector, node, scheduler) = start(Setup::gpus(1).with(slow));
    let uuid = node.gpu_uuid(0);
    for _ in 0..3 {
        let tenant = node.tenant("t", &["--launches-per-second=100", "--kernel-us=5000"]);
        collector.until_class(SOON, uuid, Class::Active);
        tenant.kill();
        // The driver's last sample still holds its kernels, and its memory is given back late.
        scheduler.until_offered(AT_ONCE * 2, uuid);
    }
}
