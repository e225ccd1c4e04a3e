//! The client, as people and as scripts use it.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tests::collector::Collector;
use tests::node::Setup;
use tests::program::run;
use tests::wait::{check, eventually};

const SOON: Duration = Duration::from_secs(15);

/// Standard output of a client that must succeed.
fn said(collector: &Collector, arguments: &[&str]) -> Result<String, String> {
    let said = run(&collector.client(arguments));
    check(said.code == Some(0), || format!("{arguments:?}: {said:?}")).map(|()| said.output)
}

#[test]
fn usage_and_top_show_the_tenant_to_people_and_to_scripts() {
    let collector = Collector::start();
    let node = Setup::gpus(2).reporting_to(&collector).start();
    let _tenant = node.tenant("trainer", &["--launches-per-second=100", "--kernel-us=5000"]);
    eventually(SOON, "usage names the tenant", || {
        let text = said(&collector, &["usage"])?;
        check(text.contains("trainer"), || text)
    });
    eventually(SOON, "usage for scripts names the tenant", || {
        let text = said(&collector, &["usage", "--json"])?;
        let json: Value =
            serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        check(json.to_string().contains("\"trainer\""), || text)
    });
    let text = said(&collector, &["top", "--once", "--json"]).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    for gpu in [0, 1] {
        assert!(json.to_string().contains(node.gpu_uuid(gpu)), "{text}");
    }
}

#[test]
fn idle_watch_for_scripts_is_one_object_per_line() {
    let collector = Collector::start();
    let node = Setup::gpus(1).reporting_to(&collector).start();
    let mut client = collector.client(&["idle", "watch", "--json"]);
    let mut client = client.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(client.stdout.take().unwrap()).lines();
    let offered = lines.map(|it| it.unwrap()).find(|it| {
        let _: Value = serde_json::from_str(it).expect("each line is one object");
        it.contains(node.gpu_uuid(0))
    });
    client.kill().unwrap();
    client.wait().unwrap();
    assert!(offered.is_some());
}

#[test]
fn a_client_without_a_collector_says_what_to_do() {
    let collector = Collector::make();
    let said = run(&collector.client(&["usage"]));
    assert_ne!(said.code, Some(0));
    assert!(said.errors.contains(&collector.grpc_port().to_string()), "{said:?}");
}
