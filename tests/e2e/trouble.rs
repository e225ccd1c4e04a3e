//! Bad input and missing things: each is said clearly, and the rest goes on.
#![expect(clippy::unwrap_used, reason = "what a test needs is there, or the test fails")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use tests::artefacts::artefact;
use tests::collector::Collector;
use tests::node::{Node, Setup};
use tests::ports;
use tests::program::run;
use tests::wait::{check, eventually};

const SOON: Duration = Duration::from_secs(15);
const LAUNCHES: &str = "gleaner_tenant_cuda_launches_total";

/// All of `parts` are in `text`.
fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
}

/// What a daemon says about a configuration with this text.
fn refused(program: &str, text: &str, parts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new(artefact(program));
    command.arg("--config").arg(&file);
    let said = run(&command);
    assert_eq!(said.code, Some(64), "{said:?}");
    says(&said.errors, parts);
    says(&said.errors, &["nothing was started"]);
}

#[test]
fn a_wrong_configuration_names_the_key_and_the_nearest_right_one() {
    let near = ["unknown key \"tick_mss\" (line 2)", "did you mean \"tick_ms\"?"];
    refused("gleaner-agent", "node = \"a\"\ntick_mss = 5\n", &near);
    let near = ["unknown key \"nvml.libary\"", "did you mean \"nvml.library\"?"];
    refused("gleaner-agent", "[nvml]\nlibary = \"x\"\n", &near);
    let typed = ["\"tick_ms\": invalid type", "expected a whole number (line 1)"];
    refused("gleaner-agent", "tick_ms = \"soon\"\n", &typed);
    refused("gleaner-agent", "tick_ms = 5\n", &["tick_ms is 5, expected 100 to"]);
    let near = ["unknown key \"http.lissten\"", "did you mean \"http.listen\"?"];
    refused("gleaner-collector", "[http]\nlissten = \"x\"\n", &near);
    refused(
        "gleaner-collector",
        "[idle]\nprofile = \"nip\"\n",
        &["idle.profile is nip", "\"nap\""],
    );
}

#[test]
fn a_taken_port_is_named_with_its_key() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut node = Setup::gpus(1).make();
    node.config.http.listen.clone_from(&address);
    let said = run(&node.agent_command(&[]));
    assert_ne!(said.code, Some(0));
    says(&said.errors, &[&address, "http.listen", "nothing was attached"]);
    for key in ["http", "grpc"] {
        let mut collector = Collector::make();
        collector.set(key, "listen", address.as_str());
        let said = run(&collector.command(&[]));
        assert_ne!(said.code, Some(0));
        says(&said.errors, &[&address, &format!("{key}.listen")]);
    }
}

/// The agent's kernel launches of one tenant, by name.
fn until_counted(node: &Node, tenant: &str, kernels: u64) {
    node.until(SOON, "the launches are counted", |it| {
        it.counts(LAUNCHES, &[("tenant", tenant), ("kind", "kernel")], kernels)
    });
}

#[test]
fn without_the_privilege_to_trace_the_agent_says_so_and_meters_on() {
    let mut node = Setup::gpus(1).make();
    let mut powerless = Command::new("setpriv");
    powerless.args(["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]);
    node.start_agent_under(powerless);
    let tenant = node.tenant("t", &["--launches-per-second=100", "--kernel-us=5000"]);
    node.until_class(Duration::from_secs(30), 0, "active");
    says(&node.until_part(SOON, "tracing", "failed"), &["CAP_BPF"]);
    node.until(SOON, "time is metered by NVML alone", |it| {
        let active =
            it.sum("gleaner_tenant_gpu_seconds_total", &[("tenant", "t"), ("share", "active")]);
        check(active.is_some_and(|it| it > 0.5), || format!("{active:?}"))
    });
    assert_eq!(node.metrics().count(LAUNCHES, &[("tenant", "t")]), None, "absent is never zero");
    drop(tenant);
}

#[test]
fn without_a_collector_the_agent_works_alone_and_delivers_later() {
    let mut collector = Collector::make();
    let node = Setup::gpus(1).reporting_to(&collector).start();
    let truth = node.tenant("t", &["--rounds=10"]).finish();
    until_counted(&node, "t", truth.kernels());
    says(&node.until_part(SOON, "collector", "failed"), &["spool"]);
    collector.start_again();
    collector.until(Duration::from_secs(40), "what waited arrives", |it| {
        it.counts(LAUNCHES, &[("tenant", "t"), ("kind", "kernel")], truth.kernels())
    });
    node.until_part(SOON, "collector", "active");
}

#[test]
fn garbage_on_the_grpc_port_harms_nobody() {
    let mut collector = Collector::start();
    let node = Setup::gpus(1).reporting_to(&collector).start();
    let address = format!("127.0.0.1:{}", collector.grpc_port());
    let noise: Vec<u8> =
        (0..65_536_u32).map(|it| (it.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let inputs: [&[u8]; 5] = [
        &noise,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        preface,
        b"\0",
        &[preface, &noise[..]].concat(),
    ];
    for input in inputs {
        let mut connection = TcpStream::connect(&address).unwrap();
        connection.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        // The collector may close before it has read everything; that is its right.
        drop(connection.write_all(input));
        drop(connection.read(&mut [0; 64]));
    }
    let truth = node.tenant("t", &["--rounds=5"]).finish();
    collector.until(SOON, "the agent's records arrive", |it| {
        it.counts(LAUNCHES, &[("tenant", "t"), ("kind", "kernel")], truth.kernels())
    });
    assert!(collector.daemon().ended().is_none());
}

/// Writes until there is no room.
fn fill(path: &str) {
    let mut file = std::fs::File::create(path).unwrap();
    while file.write_all(&[7; 4_096]).is_ok() {}
}

#[test]
fn a_full_disk_stops_the_spool_and_nothing_else() {
    let mut collector = Collector::make();
    let mut node = Setup::gpus(1).reporting_to(&collector).make();
    // A small disk that only the agent sees.
    let spool = node.config.spool.path.clone();
    std::fs::create_dir(&spool).unwrap();
    let mut namespace = Command::new("unshare");
    let script = "mount -t tmpfs -o size=4m none \"$0\" && exec \"$@\"";
    namespace.args(["--mount", "--propagation=private", "/bin/sh", "-c", script]).arg(&spool);
    node.start_agent_under(namespace);
    node.until_class(Duration::from_secs(30), 0, "free");
    let disk = format!("/proc/{}/root{}", node.agent().pid(), spool.display());
    let filler = format!("{disk}/filler");
    fill(&filler);
    let truth = node.tenant("t", &["--rounds=10"]).finish();
    node.until_part(Duration::from_secs(30), "spool", "failed");
    until_counted(&node, "t", truth.kernels());
    std::fs::remove_file(&filler).unwrap();
    node.until_part(Duration::from_secs(60), "spool", "active");
    collector.start_again();
    collector.until(Duration::from_secs(40), "what was counted meanwhile arrives", |it| {
        it.counts(LAUNCHES, &[("tenant", "t"), ("kind", "kernel")], truth.kernels())
    });
}

#[test]
fn what_the_kernel_programs_have_to_say_is_in_the_log() {
    let node = Setup::gpus(1).with(|it| it.config.cuda.max_processes = 64).start();
    let crowd = ["--churn=90", "--at-a-time=90", "--launches=6", "--launches-per-second=6"];
    node.tenant("crowd", &crowd).finish();
    eventually(SOON, "the agent's log has the kernel's warning", || {
        let log = node.agent_log();
        let line = log.lines().find(|it| it.contains("raise cuda.max_processes"));
        let is_the_kernels = |it: &str| it.contains("WARN") && it.contains("source=\"kernel\"");
        check(line.is_some_and(is_the_kernels), || format!("{line:?}"))
    });
}

/// Its own hooks would look like text that somebody changed.
#[test]
fn doctor_beside_a_running_agent_says_what_that_agent_traces() {
    let node = Setup::gpus(1).start();
    let _tenant = node.tenant("t", &["--rounds=1", "--hold"]);
    let said = run(&node.agent_command(&["doctor", "--json"]));
    let report: serde_json::Value = serde_json::from_str(&said.output).unwrap();
    let library = &report["libraries"][0];
    assert_eq!(library["attached"], library["wanted"], "{library}");
    let tracing = &report["parts"].as_array().unwrap()[1];
    assert!(tracing["message"].as_str().unwrap().contains("the running agent"), "{tracing}");
    assert_eq!(node.status()["libraries"][0]["attached"], library["attached"]);
}

#[test]
fn doctor_says_what_is_missing_and_what_it_costs() {
    let mut node = Setup::gpus(1).make();
    let whole = run(&node.agent_command(&["doctor"]));
    assert_eq!(whole.code, Some(0), "nothing is missing: {}", whole.output);
    node.config.collector.address = format!("http://127.0.0.1:{}", ports::free());
    let report = |node: &Node| -> serde_json::Value {
        let said = run(&node.agent_command(&["doctor", "--json"]));
        assert_eq!(said.code, Some(69), "something is missing: {}", said.output);
        serde_json::from_str(&said.output).unwrap()
    };
    let state = |report: &serde_json::Value, name: &str| -> String {
        let parts = report["parts"].as_array().unwrap();
        parts.iter().find(|it| it["name"] == name).unwrap()["state"].as_str().unwrap().to_owned()
    };
    let whole = report(&node);
    assert_eq!(state(&whole, "nvml"), "active", "{whole}");
    assert_eq!(state(&whole, "tracing"), "active", "{whole}");
    assert_eq!(state(&whole, "collector"), "failed", "{whole}");
    node.config.nvml.library = "/nonexistent/libnvidia-ml.so.1".into();
    assert_eq!(state(&report(&node), "nvml"), "failed");
}
