//! What the metrics say is what the workloads did.

use std::time::Duration;

use tests::artefacts::Build;
use tests::collector::Collector;
use tests::counted::work_equals;
use tests::node::Setup;
use tests::program::run;
use tests::scrape::Scrape;
use tests::usage::conserved_wall;
use tests::wait::{check, eventually, now};

const SOON: Duration = Duration::from_secs(15);

const LAUNCHES: &str = "gleaner_tenant_cuda_launches_total";
const TENANT_SECONDS: &str = "gleaner_tenant_gpu_seconds_total";
const GPU_SECONDS: &str = "gleaner_gpu_seconds_total";

#[test]
fn every_call_is_counted_once_on_agent_and_collector() {
    let collector = Collector::start();
    let node = Setup::gpus(2).reporting_to(&collector).start();
    let plain = node.tenant("plain", &["--rounds=50", "--threads=3"]);
    let variants =
        node.tenant("variants", &["--rounds=40", "--per-thread", "--proc-address", "--device=1"]);
    let (plain, variants) = (plain.finish(), variants.finish());
    assert_eq!(variants.launches(), 120);
    for (tenant, truth) in [("plain", &plain), ("variants", &variants)] {
        node.until(SOON, "the agent has every call", |it| work_equals(it, tenant, truth));
        collector.until(SOON, "the collector has every call", |it| work_equals(it, tenant, truth));
    }
}

#[test]
fn every_build_of_the_driver_is_counted() {
    for (build, offset) in [(Build::Cmp, 10), (Build::Push, 0), (Build::Endbr64, 4)] {
        let node = Setup::gpus(1).with(|it| it.build = Some(build)).start();
        let truth = node.tenant("t", &["--rounds=20"]).finish();
        node.until(SOON, "the agent has every call", |it| work_equals(it, "t", &truth));
        let status = node.status();
        let hooks = status["libraries"][0]["hooks"].as_array().unwrap();
        let launch = hooks.iter().find(|it| it["symbol"] == "cuLaunchKernel").unwrap();
        assert_eq!(launch["offset"], offset, "{build:?}");
    }
}

#[test]
fn a_process_that_ran_before_the_agent_is_counted_from_then_on() {
    let mut node = Setup::gpus(1).make();
    let tenant =
        node.tenant("early", &["--launches-per-second=200", "--phases=busy 400ms, idle 4s"]);
    std::thread::sleep(Duration::from_secs(1));
    let before = tenant.truth().launches();
    assert!(before > 0);
    node.start_agent();
    node.until_class(SOON, 0, "active");
    let after = tenant.stop().launches();
    node.until(SOON, "what was launched under the agent is counted", |it| {
        it.counts(LAUNCHES, &[("tenant", "early")], after - before)
    });
}

#[test]
fn tenants_on_one_device_get_time_as_their_work_differs() {
    let collector = Collector::start();
    let node = Setup::gpus(1).reporting_to(&collector).start();
    let more = node.tenant("more", &["--launches-per-second=60", "--kernel-us=10000"]);
    let less = node.tenant("less", &["--launches-per-second=60", "--kernel-us=2500"]);
    std::thread::sleep(Duration::from_secs(10));
    drop((more, less));
    let active = |scrape: &Scrape, tenant: &str| {
        let labels = [("tenant", tenant), ("share", "active")];
        scrape.sum(TENANT_SECONDS, &labels).ok_or_else(|| format!("{tenant} has no active time"))
    };
    let enough = |scrape: &Scrape| {
        let (more, less) = (active(scrape, "more")?, active(scrape, "less")?);
        check(more > 5.0, || format!("more has {more} s"))?;
        check((3.2..4.8).contains(&(more / less)), || format!("more {more} s, less {less} s"))
    };
    node.until(SOON, "the agent tells them apart", enough);
    collector.until(SOON, "the collector tells them apart", enough);
}

#[test]
fn the_shares_sum_to_wall_time() {
    let collector = Collector::start();
    let node = Setup::gpus(3).reporting_to(&collector).start();
    let _worker = node.tenant("worker", &["--launches-per-second=40", "--kernel-us=5000"]);
    let _holder = node.tenant("holder", &["--device=1", "--memory-mib=900", "--hold"]);
    std::thread::sleep(Duration::from_secs(3));
    let all = |it: &Scrape| {
        it.nanoseconds(TENANT_SECONDS, &[]).unwrap_or(0)
            + it.nanoseconds(GPU_SECONDS, &[]).unwrap_or(0)
    };
    let (start, before) = (now(), all(&node.metrics()));
    std::thread::sleep(Duration::from_secs(5));
    let (elapsed, after) = (start.elapsed(), all(&node.metrics()));
    let grown = Duration::from_nanos(u64::try_from((after - before) / 3).unwrap());
    // The counters stand at the last tick.
    assert!(grown.abs_diff(elapsed) < Duration::from_millis(700), "{grown:?} in {elapsed:?}");
    eventually(SOON, "the ledger has it all, and conserves it to the nanosecond", || {
        let wall = conserved_wall(&collector.usage()?);
        check(wall > 15_000_000_000, || format!("{wall} ns"))
    });
}

#[test]
fn time_goes_to_those_who_hold_and_to_nobody_where_nobody_does() {
    let node = Setup::gpus(3).start();
    let _worker = node.tenant("worker", &["--launches-per-second=100", "--kernel-us=20000"]);
    let _holder = node.tenant("holder", &["--device=1", "--memory-mib=900", "--hold"]);
    node.until_class(SOON, 0, "active");
    node.until_class(SOON, 1, "memory_held");
    node.until_class(SOON, 2, "free");
    let share = |scrape: &Scrape, tenant: &str, share: &str| {
        scrape.sum(TENANT_SECONDS, &[("tenant", tenant), ("share", share)]).unwrap_or(0.0)
    };
    node.until(SOON, "each has its kind of time", |it| {
        let (active, idle) = (share(it, "worker", "active"), share(it, "holder", "held_idle"));
        let free = it.sum(GPU_SECONDS, &[("share", "free")]).unwrap_or(0.0);
        check(active > 2.0 && idle > 2.0 && free > 2.0, || format!("{active} {idle} {free}"))
    });
    let scrape = node.metrics();
    let active = share(&scrape, "holder", "active");
    assert!(active <= 0.0, "who launched nothing was active for {active} s");
    let memory = scrape.sum("gleaner_tenant_gpu_memory_bytes", &[("tenant", "holder")]).unwrap();
    assert!(memory >= 900.0 * 1024.0 * 1024.0);
}

#[test]
fn a_tenant_without_a_unit_is_its_user() {
    let node = Setup::gpus(1).start();
    let truth =
        node.tenant_of_user(65_534, &["--launches=30", "--launches-per-second=60"]).finish();
    let tenant = "nobody";
    node.until(SOON, "the user has the launches", |it| {
        it.counts(LAUNCHES, &[("tenant", tenant)], truth.launches())
    });
}

#[test]
fn nobody_is_too_short_lived_to_be_counted() {
    let node = Setup::gpus(1).start();
    for index in 0..20 {
        node.tenant(&format!("short-{index}"), &["--launches=7"]).finish();
    }
    // Gone before anyone could look whose they were, and their groups with them.
    node.until(SOON, "every launch has its tenant", |it| {
        (0..20).try_for_each(|index| {
            it.counts(LAUNCHES, &[("tenant", format!("short-{index}").as_str())], 7)
        })
    });
    assert_eq!(node.metrics().count(LAUNCHES, &[]), Some(140), "and nobody else's");
}

#[test]
fn children_and_programs_that_follow_each_other_in_a_process_are_counted() {
    let node = Setup::gpus(1).start();
    let work = ["--launches=20", "--launches-per-second=100"];
    let then = format!("--library {} {}", node.cuda_library().display(), work.join(" "));
    let parts = [&work[..], &["--fork", "--then", &then]].concat();
    assert_eq!(run(&node.workload(&parts)).code, Some(0));
    node.until(SOON, "parent, child and what they became", |it| it.counts(LAUNCHES, &[], 80));
}
