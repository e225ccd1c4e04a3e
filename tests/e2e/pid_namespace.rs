//! An agent that does not see the host's processes: whose time it is cannot be known, so nothing is
//! idle, nothing is free and nobody is billed. That a kernel ran is still seen.

use std::process::Command;
use std::time::Duration;

use tests::collector::Collector;
use tests::node::{Node, Setup};
use tests::program::run;
use tests::scrape::Scrape;
use tests::wait::check;

const SOON: Duration = Duration::from_secs(30);

/// On the first GPU.
const WORK: [&str; 2] = ["--launches-per-second=100", "--kernel-us=5000"];

/// Ends with what it starts.
fn unshare(further: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child"]).args(further);
    command
}

/// Shares of time that say that somebody, or nobody, used a device.
fn known_shares(scrape: &Scrape) -> Vec<String> {
    let tenants = scrape.all("gleaner_tenant_gpu_seconds_total", &[]);
    let free = scrape.all("gleaner_gpu_seconds_total", &[("share", "free")]);
    tenants.chain(free).map(|it| format!("{it:?}")).collect()
}

#[track_caller]
fn check_unknown(node: &Node, collector: &Collector) {
    let message = node.until_part(SOON, "attribution", "failed");
    for part in ["unavailable", "PID namespace", "hostPID"] {
        assert!(message.contains(part), "{message}");
    }
    let unobserved = [("share", "unobserved"), ("reason", "no_process_list")];
    node.until(SOON, "time passes that nobody can attribute", |it| {
        let seconds = it.sum("gleaner_gpu_seconds_total", &unobserved);
        check(seconds.is_some_and(|it| it > 3.0), || format!("{seconds:?} s"))
    });
    for (gpu, class) in [(0, "active"), (1, "unknown")] {
        node.until_class(SOON, gpu, class);
        let source = [("gpu_uuid", node.gpu_uuid(gpu)), ("source", "processes")];
        assert_eq!(node.metrics().value("gleaner_gpu_sample_success", &source), None);
        let busy = node.metrics().value("gleaner_gpu_busy_ratio", &source[..1]);
        assert!(busy.is_some(), "the rest is read");
    }
    let scrape = node.metrics();
    assert_eq!(known_shares(&scrape), [""; 0]);
    assert_eq!(scrape.all("gleaner_tenant_gpu_memory_bytes", &[]).count(), 0);
    let launches: Vec<_> = scrape.all("gleaner_tenant_cuda_launches_total", &[]).collect();
    let of_others = launches.iter().filter(|it| it.labels["tenant"] != "t");
    assert_eq!(of_others.count(), 0, "nobody else is named: {launches:?}");
    assert!(collector.scheduler().offers().is_empty());
}

fn node(collector: &Collector) -> Node {
    // As the driver behaves there.
    Setup::gpus(2).with(|it| it.scenario.pids_visible = false).reporting_to(collector).make()
}

#[test]
fn in_a_pid_namespace_of_its_own_the_agent_calls_nothing_idle() {
    let collector = Collector::start();
    let mut node = node(&collector);
    let own = ["--mount-proc"];
    node.start_agent_under(unshare(&own));
    let _tenant = node.tenant("t", &WORK);
    check_unknown(&node, &collector);
    let mut doctor = unshare(&own);
    let agent = node.agent_command(&["doctor"]);
    doctor.arg(agent.get_program()).args(agent.get_args());
    let said = run(&doctor);
    assert_eq!(said.code, Some(69), "{said:?}");
    let line = said.output.lines().find(|it| it.contains("attribution"));
    assert!(line.is_some_and(|it| it.starts_with("MISSING") && it.contains("hostPID")), "{said:?}");
}

#[test]
fn the_hosts_proc_alone_does_not_make_processes_seen() {
    let collector = Collector::start();
    let mut node = node(&collector);
    node.start_agent_under(unshare(&[]));
    let _tenant = node.tenant("t", &WORK);
    check_unknown(&node, &collector);
}
