//! How far counts can be trusted is told from the kernel to the client.

use std::time::Duration;

use tests::collector::Collector;
use tests::node::Setup;
use tests::program::run;
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
