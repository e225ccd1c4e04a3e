//! Usage is counted once, whatever is killed.
#![expect(clippy::unwrap_used, reason = "what a test needs is there, or the test fails")]

use std::time::Duration;

use tests::collector::Collector;
use tests::node::Setup;
use tests::scrape::Scrape;
use tests::usage::{conserved_wall as wall, nanoseconds};
use tests::wait::{check, eventually, now};

const SOON: Duration = Duration::from_secs(20);
const LAUNCHES: &str = "gleaner_tenant_cuda_launches_total";

fn counters(scrape: &Scrape) -> Vec<(String, f64)> {
    let names = ["gleaner_tenant_gpu_seconds_total", "gleaner_gpu_seconds_total", LAUNCHES];
    let series = names.iter().flat_map(|name| {
        scrape
            .all(name, &[])
            .map(move |it| (format!("{name}{:?}", it.labels), it.value.parse().unwrap()))
    });
    series.collect()
}

/// No counter of `before` is lower, or missing, in `after`.
fn never_back(before: &[(String, f64)], after: &[(String, f64)]) {
    for (name, value) in before {
        let now = after.iter().find(|it| it.0 == *name).map(|it| it.1);
        assert!(now.is_some_and(|it| it >= *value), "{name} was {value} and is {now:?}");
    }
}

#[test]
fn a_killed_collector_loses_nothing_and_counts_nothing_twice() {
    let mut collector = Collector::start();
    let node = Setup::gpus(2).reporting_to(&collector).start();
    let tenant = node.tenant("t", &["--launches-per-second=100", "--kernel-us=2000"]);
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(1_700));
        let before = counters(&collector.metrics());
        collector.kill();
        std::thread::sleep(Duration::from_millis(700));
        collector.start_again();
        never_back(&before, &counters(&collector.metrics()));
    }
    let truth = tenant.stop();
    collector.until(SOON, "every launch has arrived once", |it| {
        it.counts(LAUNCHES, &[("tenant", "t")], truth.launches())
    });
    eventually(SOON, "nothing of the time is unobserved", || {
        let usage = collector.usage()?;
        check(wall(&usage) > 16_000_000_000, || format!("{usage:?}"))?;
        let unobserved = usage.unowned.iter().filter(|it| it.share == "unobserved");
        assert_eq!(unobserved.count(), 0, "{usage:?}");
        Ok(())
    });
}

#[test]
fn a_collector_that_was_away_gets_what_it_missed() {
    let mut collector = Collector::start();
    let node = Setup::gpus(1).reporting_to(&collector).start();
    collector.until(SOON, "the node has arrived", |it| {
        check(it.all("gleaner_gpu_info", &[]).count() == 1, || "no device".to_owned())
    });
    assert!(collector.stop().success());
    let truth = node.tenant("t", &["--rounds=30"]).finish();
    std::thread::sleep(Duration::from_secs(2));
    node.until_part(SOON, "collector", "failed");
    collector.start_again();
    collector.until(SOON, "what happened meanwhile has arrived", |it| {
        it.counts(LAUNCHES, &[("tenant", "t"), ("kind", "kernel")], truth.kernels())
    });
}

#[test]
fn time_without_an_agent_is_unobserved_and_nothing_overlaps() {
    let collector = Collector::start();
    let mut node = Setup::gpus(1).reporting_to(&collector).start();
    let _tenant = node.tenant("t", &["--memory-mib=500", "--hold"]);
    std::thread::sleep(Duration::from_secs(3));
    node.kill_agent();
    std::thread::sleep(Duration::from_secs(2));
    node.start_agent();
    std::thread::sleep(Duration::from_secs(3));
    let before = eventually(SOON, "the gap has arrived", || {
        let usage = collector.usage()?;
        let down = usage.unowned.iter().find(|it| it.reason == "agent_down");
        let down = down.ok_or_else(|| format!("{usage:?}"))?;
        let gap = nanoseconds(down.time.unwrap());
        assert!((2_000_000_000..15_000_000_000).contains(&gap), "{gap} ns");
        Ok(usage)
    });
    // Contiguous: from then on one device adds one second per second, and the gap is not a part twice.
    let (start, wall_before) = (now(), wall(&before));
    std::thread::sleep(Duration::from_secs(3));
    let (elapsed, grown) = (start.elapsed(), wall(&collector.usage().unwrap()) - wall_before);
    let grown = Duration::from_nanos(u64::try_from(grown).unwrap());
    assert!(grown.abs_diff(elapsed) < Duration::from_secs(2), "{grown:?} in {elapsed:?}");
}

#[test]
fn a_killed_agent_keeps_what_it_had_committed() {
    let mut collector = Collector::start();
    let mut node = Setup::gpus(1).reporting_to(&collector).start();
    assert!(collector.stop().success());
    let truth = node.tenant("t", &["--launches=400"]).finish();
    node.until(SOON, "the launches are counted", |it| {
        it.counts(LAUNCHES, &[("tenant", "t")], truth.launches())
    });
    // Two tiles later they are on disk.
    std::thread::sleep(Duration::from_millis(2_500));
    node.kill_agent();
    collector.start_again();
    node.start_agent();
    collector.until(SOON, "they arrive from the spool", |it| {
        it.counts(LAUNCHES, &[("tenant", "t")], truth.launches())
    });
}

#[test]
fn an_agent_that_stops_in_order_leaves_no_gap_but_the_one_it_was_away() {
    let collector = Collector::start();
    let mut node = Setup::gpus(1).reporting_to(&collector).start();
    let tenant = node.tenant("t", &["--launches-per-second=50"]);
    std::thread::sleep(Duration::from_secs(2));
    // Quiet while the agent is away, so that every launch was under its eyes.
    let truth = tenant.stop();
    let stopping = now();
    assert!(node.stop_agent().success());
    assert!(stopping.elapsed() < Duration::from_secs(2), "{:?}", stopping.elapsed());
    collector.until(SOON, "the last records were handed over before the end", |it| {
        it.counts(LAUNCHES, &[("tenant", "t")], truth.launches())
    });
}

#[test]
fn what_was_launched_since_the_last_tick_is_not_lost_by_a_stop() {
    let collector = Collector::start();
    let slow_ticks = |it: &mut Setup| it.config.tick_ms = 5_000;
    let mut node = Setup::gpus(1).reporting_to(&collector).with(slow_ticks).start();
    // Quiet from the second second on: nothing but the stop itself looks again.
    let tenant =
        node.tenant("t", &["--launches-per-second=500", "--phases=busy 1500ms, idle 3600s"]);
    std::thread::sleep(Duration::from_millis(3_500));
    let truth = tenant.truth();
    assert!(truth.launches() > 100);
    assert!(node.stop_agent().success());
    collector.until(SOON, "the last readings were handed over", |it| {
        it.counts(LAUNCHES, &[("tenant", "t")], truth.launches())
    });
}
