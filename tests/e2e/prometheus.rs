//! A real Prometheus reads what we serve.

use std::time::Duration;

use tests::collector::Collector;
use tests::node::Setup;
use tests::prometheus::{Prometheus, promtool_findings};
use tests::registry::{Server, findings};
use tests::wait::{check, eventually};

const SOON: Duration = Duration::from_secs(30);

#[test]
fn agent_and_collector_serve_what_is_declared_and_promtool_finds_nothing() {
    let collector = Collector::start();
    let node = Setup::gpus(2).reporting_to(&collector).start();
    let truth = node.tenant("t", &["--rounds=5"]).finish();
    collector.until(SOON, "there is something of everything", |it| {
        let labels = [("tenant", "t"), ("kind", "kernel")];
        it.counts("gleaner_tenant_cuda_launches_total", &labels, truth.kernels())
    });
    for (scrape, server) in
        [(node.metrics(), Server::Agent), (collector.metrics(), Server::Collector)]
    {
        assert_eq!(promtool_findings(scrape.text()), "");
        assert_eq!(findings(&scrape, server), Vec::<String>::new());
    }
}

#[test]
fn prometheus_scrapes_the_collector_and_answers_questions() {
    let collector = Collector::start();
    let node = Setup::gpus(2).reporting_to(&collector).start();
    let prometheus = Prometheus::start(&[collector.http_port()]);
    let _tenant = node.tenant("busy", &["--launches-per-second=100", "--kernel-us=5000"]);
    let expect = |promql: &str, fits: &dyn Fn(&[f64]) -> bool| {
        eventually(SOON, promql, || {
            let values = prometheus.query(promql)?;
            check(fits(&values), || format!("{values:?}"))
        });
    };
    expect("up{job=\"gleaner\"}", &|it| it == [1.0]);
    expect("count(gleaner_gpu_info)", &|it| it == [2.0]);
    expect(
        "sum by (tenant) (rate(gleaner_tenant_gpu_seconds_total{share=\"active\"}[10s]))",
        &|it| it.len() == 1 && (0.3..0.7).contains(&it[0]),
    );
    // The join that the dashboards make, on the device's identity.
    let join = "gleaner_gpu_busy_ratio * on (gpu_uuid) group_left (model) gleaner_gpu_info";
    expect(join, &|it| it.len() == 2);
    let all = "sum(rate(gleaner_tenant_gpu_seconds_total[10s])) + sum(rate(gleaner_gpu_seconds_total[10s]))";
    expect(all, &|it| it.len() == 1 && (1.7..2.3).contains(&it[0]));
    let renamed = prometheus.query("{__name__=~\"gleaner_.*\", exported_tenant!=\"\"}").unwrap();
    assert!(renamed.is_empty(), "no label collides with those of the target");
}

/// What the panels of the best-known dashboard for dcgm-exporter ask, for a node of two GPUs.
const PANELS: [(&str, &[f64]); 5] = [
    ("max by (Hostname, gpu, UUID) (DCGM_FI_DEV_GPU_TEMP{SELECTED})", &[32.0, 32.0]),
    ("sum(max by (gpu) (DCGM_FI_DEV_POWER_USAGE{SELECTED}))", &[140.0]),
    ("max by (Hostname, gpu, UUID) (DCGM_FI_DEV_SM_CLOCK{SELECTED} * 1000000)", &[345e6, 345e6]),
    ("max by (Hostname, gpu) (DCGM_FI_DEV_GPU_UTIL{SELECTED})", &[63.0, 63.0]),
    ("avg(DCGM_FI_PROF_PIPE_TENSOR_ACTIVE{SELECTED})", &[0.4]),
];

#[test]
fn a_dashboard_for_dcgm_exporter_finds_what_it_asks_for() {
    let mut setup = Setup::gpus(2);
    setup.config.http.dcgm_compat = true;
    for gpu in &mut setup.scenario.gpus {
        gpu.busy_percent = Some(63);
        // By the numbers of `nvml.h`, in thousandths of a percent: 5 is the tensor cores.
        gpu.gpm = Some([(5, 40_000)].map(|(metric, value)| (metric.to_string(), value)).into());
    }
    let node = setup.start();
    let _tenant = node.tenant("t", &["--memory-mib=3", "--hold"]);
    let port = node.config.http.listen.rsplit(':').next().unwrap().parse().unwrap();
    let prometheus = Prometheus::start(&[port]);
    let expect = |panel: &str, fits: &dyn Fn(&[f64]) -> bool| {
        let promql = panel.replace("SELECTED", "Hostname=~\"node-a\", gpu=~\"0|1\"");
        eventually(SOON, &promql, || {
            let values = prometheus.query(&promql)?;
            check(fits(&values), || format!("{values:?}"))
        });
    };
    for (panel, expected) in PANELS {
        expect(panel, &|it| it == expected);
    }
    expect("sum(DCGM_FI_DEV_FB_USED{SELECTED})", &|it| it.len() == 1 && it[0] >= 3.0);
    let renamed = prometheus.query("{__name__=~\"DCGM_.*\", exported_instance!=\"\"}").unwrap();
    assert!(renamed.is_empty(), "no label collides with those of the target");
}
