//! The table of offers: what changes it, and what a subscriber learns.

use proto::capacity::v1::withdrawn::Reason;
use proto::telemetry::v1::{Class, Device, Health};

use super::POLICY;
use crate::capacity::offers::{Filter, News, Offers, Step};
use crate::state::Event;
use crate::state::fixtures::{LIMITS, collector_ns, gone, gpu, held_by, live, tick};
use crate::state::fleet::Fleet;

/// A fleet and the offers that follow from it.
struct Market {
    fleet: Fleet,
    offers: Offers,
}

impl Market {
    fn new() -> Self {
        Self { fleet: Fleet::new(LIMITS), offers: Offers::new(POLICY, 100) }
    }

    fn after(events: Vec<Event>) -> Self {
        let mut market = Self::new();
        events.into_iter().for_each(|it| market.apply(it));
        market
    }

    fn apply(&mut self, event: Event) {
        for change in self.fleet.apply(event) {
            self.offers.apply(&change);
        }
    }

    /// What a subscriber who knew everything learns from `event`.
    fn learns(&mut self, event: Event, filter: Filter) -> Vec<String> {
        let mut at = self.offers.revision();
        self.apply(event);
        let mut learnt = Vec::new();
        loop {
            match self.offers.after(at, 0, filter) {
                Step::News { revision, news } => {
                    at = revision;
                    learnt.push(match news {
                        News::Offer(it) => {
                            format!("{} {:?}", it.observed().id(), it.observed().class())
                        }
                        News::Withdrawn { id, reason } => format!("{id} withdrawn {reason:?}"),
                    });
                }
                Step::Passed { revision } => at = revision,
                Step::UpToDate { .. } => return learnt,
                Step::Forgotten => unreachable!("the subscriber knew everything"),
            }
        }
    }
}

fn free() -> Device {
    gpu("GPU-1", Class::Free, 0)
}

/// What becomes of a free device's offer when `event` happens.
#[test]
fn every_way_to_lose_an_offer_is_named() {
    let unhealthy = Device { health: Health::Lost.into(), ..free() };
    let unread = Device { readings: None, ..free() };
    let held = held_by(gpu("GPU-1", Class::MemoryHeld, 201), &["a"]);
    for (event, reason) in [
        (live("n", 201, vec![gpu("GPU-1", Class::Active, 201)]), Reason::Busy),
        (live("n", 201, vec![gpu("GPU-1", Class::HostBound, 201)]), Reason::Busy),
        (live("n", 201, vec![gpu("GPU-1", Class::Unknown, 201)]), Reason::Unknown),
        (live("n", 201, vec![unread]), Reason::Unknown),
        (live("n", 201, vec![gpu("GPU-1", Class::Down, 201)]), Reason::Health),
        (live("n", 201, vec![unhealthy]), Reason::Health),
        (live("n", 201, vec![held]), Reason::ClassChanged),
        (live("n", 201, Vec::new()), Reason::Gone),
        (gone("n"), Reason::Gone),
        (tick(216), Reason::Silent),
    ] {
        let mut market = Market::after(vec![live("n", 200, vec![free()])]);
        let expected = format!("n/GPU-1 withdrawn {reason:?}");
        assert_eq!(market.learns(event, Filter::ALL), [expected]);
        assert!(market.offers.open().is_empty() && market.offers.open_by_class().is_empty());
    }
}

#[test]
fn a_reading_that_changes_nothing_is_no_news() {
    let mut market = Market::after(vec![live("n", 200, vec![free()])]);
    assert!(market.learns(live("n", 201, vec![free()]), Filter::ALL).is_empty());
    let offer = market.offers.open().remove(0);
    assert_eq!(offer.node.received_ns, collector_ns(201));
}

/// Whether the version changes when the free memory of a 16 GiB device goes from 16 GiB to `free_mib`.
fn check_memory(free_mib: u64, expected: bool) {
    let mut market = Market::after(vec![live("n", 200, vec![free()])]);
    let mut changed = free();
    changed.instances[0].memory_free_bytes = Some(free_mib << 20);
    let learnt = market.learns(live("n", 201, vec![changed]), Filter::ALL);
    assert_eq!(!learnt.is_empty(), expected, "{free_mib} MiB");
}

#[test]
fn the_version_follows_memory_coarsely() {
    check_memory(16 * 1024 - 100, false);
    check_memory(15 * 1024, false);
    check_memory(15 * 1024 - 1, true);
}

#[test]
fn the_version_follows_class_and_holders() {
    let held = |class, tenants: &[&str]| held_by(gpu("GPU-1", class, 100), tenants);
    let mut market = Market::after(vec![live("n", 200, vec![held(Class::MemoryHeld, &["a"])])]);
    let before = market.offers.open()[0].version;
    let stalled = market.learns(live("n", 201, vec![held(Class::Stalled, &["a"])]), Filter::ALL);
    assert_eq!(stalled, ["n/GPU-1 Stalled"], "its dwell runs on");
    assert!(market.offers.open()[0].version > before);
    let others = live("n", 202, vec![held(Class::Stalled, &["b"])]);
    assert_eq!(market.learns(others, Filter::ALL), ["n/GPU-1 withdrawn ClassChanged"]);
}

#[test]
fn a_filter_hides_what_was_never_wanted_and_ends_what_was() {
    let only_free = Filter::of([Class::Free]);
    let held = || held_by(gpu("GPU-1", Class::MemoryHeld, 1), &["a"]);
    let mut market = Market::new();
    assert!(market.learns(live("n", 100, vec![held()]), only_free).is_empty());
    assert!(market.learns(gone("n"), only_free).is_empty());
    assert_eq!(market.learns(live("n", 101, vec![free()]), only_free), ["n/GPU-1 Free"]);
    let withdrawn = ["n/GPU-1 withdrawn ClassChanged"];
    assert_eq!(market.learns(live("n", 200, vec![held()]), only_free), withdrawn);
}

#[test]
fn withdrawals_are_forgotten_in_order_and_a_late_subscriber_is_told_so() {
    let mut market = Market { fleet: Fleet::new(LIMITS), offers: Offers::new(POLICY, 2) };
    let devices = |used: usize| {
        let class = |it| if it < used { Class::Active } else { Class::Free };
        (0..5).map(|it| gpu(&format!("GPU-{it}"), class(it), 0)).collect()
    };
    for used in 0..4 {
        market.apply(live("n", 200, devices(used)));
    }
    let known =
        |revision| !matches!(market.offers.after(revision, 0, Filter::ALL), Step::Forgotten);
    assert_eq!((4..=9).map(known).collect::<Vec<_>>(), [false, false, true, true, true, false]);
    assert!(!matches!(market.offers.after(0, 8, Filter::ALL), Step::Forgotten), "a snapshot");
}
