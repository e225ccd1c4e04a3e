//! Every counter, and how far it can be trusted, is told from the kernel to the client.

use std::time::Duration;

use tests::collector::Collector;
use tests::counted::memory_equals;
use tests::node::Setup;
use tests::program::run;
use tests::prometheus::promtool_findings;
use tests::scrape::Scrape;
use tests::wait::check;

const SOON: Duration = Duration::from_secs(20);

const SAMPLED: &str = "gleaner_tenant_cuda_sampled_seconds_total";

#[test]
fn scaled_counts_are_marked_from_agent_to_client() {
    let collector = Collector::start();
    let setup = Setup::gpus(1).reporting_to(&collector);
    let node = setup.with(|it| it.config.cuda.budget_percent = 0.1).start();
    let _hot = node.tenant("hot", &["--launches-per-second=300000", "--kernel-us=1"]);
    node.until(SOON, "the agent says that it samples", |it| {
        let factor = it.value("gleaner_tracing_sampling_factor", &[]);
        let sampled = it.sum(SAMPLED, &[("tenant", "hot")]);
        check(factor > Some(1.0) && sampled > Some(0.0), || {
            let launches = it.count("gleaner_tenant_cuda_launches_total", &[("tenant", "hot")]);
            format!("{factor:?} {sampled:?} {launches:?}")
        })
    });
    let part = node.until_part(SOON, "tracing", "active");
    assert!(part.contains("sampled, counts are scaled"), "{part}");
    collector.until(SOON, "the collector has it", |it| {
        let sampled = it.sum(SAMPLED, &[("tenant", "hot")]);
        check(sampled > Some(0.0), || format!("{sampled:?}"))
    });
    let usage = run(&collector.client(&["usage"]));
    assert!(usage.output.contains(" ~"), "{}", usage.output);
}

#[test]
fn every_kind_of_memory_is_exact_on_agent_and_collector() {
    let collector = Collector::start();
    let node = Setup::gpus(1).reporting_to(&collector).start();
    let truth = node.tenant("t", &["--rounds=30", "--threads=2"]).finish();
    node.until(SOON, "the agent has every call", |it| memory_equals(it, "t", &truth));
    collector.until(SOON, "the collector has every call", |it| memory_equals(it, "t", &truth));
    assert_eq!(promtool_findings(node.metrics().text()), "");
    assert_eq!(promtool_findings(collector.metrics().text()), "");
}

#[test]
fn what_is_allocated_is_known_while_it_is() {
    let collector = Collector::start();
    let node = Setup::gpus(1).reporting_to(&collector).start();
    let tenant = node.tenant("t", &["--memory-mib=3", "--hold"]);
    let live = |it: &Scrape| {
        let [live, peak] = ["live", "peak"]
            .map(|it| format!("gleaner_tenant_cuda_{it}_bytes"))
            .map(|name| it.count(&name, &[("tenant", "t")]));
        check(live >= Some(3 << 20) && peak >= live, || format!("{live:?} {peak:?}"))
    };
    node.until(SOON, "the agent knows what it holds", live);
    collector.until(SOON, "the collector knows what it holds", live);
    tenant.stop();
    collector.until(SOON, "it holds nothing any more", |it| {
        let left = it.count("gleaner_tenant_cuda_live_bytes", &[("tenant", "t")]);
        check(left.is_none(), || format!("{left:?}"))
    });
}
