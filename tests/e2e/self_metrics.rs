//! What the agent says of its own readings and of itself: which are of now, what they cost, and whether
//! it is alive and ready.

use std::time::Duration;

use gpu_state::scenario::State;
use tests::collector::Collector;
use tests::node::{Node, Setup};
use tests::scrape::{Scrape, get};
use tests::wait::{check, eventually};

const SOON: Duration = Duration::from_secs(15);
const SUCCESS: &str = "gleaner_gpu_sample_success";
const TIMESTAMP: &str = "gleaner_gpu_sample_timestamp_seconds";
const DURATIONS: &str = "gleaner_agent_nvml_call_duration_seconds";

/// Codes of `nvml.h`.
const NOT_SUPPORTED: u32 = 3;
const UNKNOWN: u32 = 999;

fn of(scrape: &Scrape, name: &str, uuid: &str, source: &str) -> Option<f64> {
    scrape.value(name, &[("gpu_uuid", uuid), ("source", source)])
}

/// The states of some sources of a device.
fn states<const COUNT: usize>(
    scrape: &Scrape,
    uuid: &str,
    sources: [&str; COUNT],
) -> [Option<f64>; COUNT] {
    sources.map(|it| of(scrape, SUCCESS, uuid, it))
}

#[test]
fn each_source_says_whether_it_is_of_now() {
    let collector = Collector::start();
    let lacks_energy = |it: &mut Setup| {
        let fails = &mut it.scenario.gpus[0].nvml_fails;
        fails.insert("nvmlDeviceGetTotalEnergyConsumption".to_owned(), NOT_SUPPORTED);
    };
    let mut node = Setup::gpus(2).with(lacks_energy).reporting_to(&collector).start();
    let sources = ["power", "energy", "memory", "processes", "fields", "events"];
    let works = Some(1.0);
    let whole = [works, None, works, works, works, works];
    let uuid = node.gpu_uuid(0).to_owned();
    node.until(SOON, "all that is offered works", |it| {
        let found = states(it, &uuid, sources);
        check(found == whole, || format!("{found:?}"))
    });
    node.change(|it| {
        let fails = &mut it.gpus[0].nvml_fails;
        fails.insert("nvmlDeviceGetPowerUsage".to_owned(), UNKNOWN);
    });
    let failing = [Some(0.0), None, works, works, works, works];
    let shows = |it: &Scrape| {
        let found = states(it, &uuid, sources);
        check(found == failing, || format!("{found:?}"))?;
        let last = ["power", "memory"].map(|source| of(it, TIMESTAMP, &uuid, source));
        let [Some(power), Some(memory)] = last else { return Err(format!("{last:?}")) };
        check(power + 0.5 < memory, || format!("{power} is not before {memory}"))?;
        check(of(it, TIMESTAMP, &uuid, "energy").is_none(), || "there is no energy".to_owned())
    };
    node.until(SOON, "power fails alone", shows);
    collector.until(SOON, "the collector says the same", shows);
}

#[test]
fn sick_devices_of_every_kind_fail_no_scrape() {
    let mut node = Setup::gpus(4).start();
    node.change(|it| {
        it.gpus[0].state = State::Lost;
        it.gpus[1].state = State::ResetRequired;
        it.gpus[2].hang_ms = 600_000;
    });
    let states = ["lost", "reset_required", "hung", "ok"];
    node.until(Duration::from_secs(60), "each is in its state", |it| {
        for (gpu, state) in states.into_iter().enumerate() {
            let labels = [("gpu_uuid", node.gpu_uuid(gpu)), ("state", state)];
            let value = it.value("gleaner_gpu_health_state", &labels);
            check(value == Some(1.0), || format!("{state} is {value:?}"))?;
        }
        Ok(())
    });
    for _ in 0..5 {
        let scrape = node.metrics();
        for gpu in 0..4 {
            let (uuid, whole) = (node.gpu_uuid(gpu), gpu == 3);
            let shown = scrape.value("gleaner_gpu_power_watts", &[("gpu_uuid", uuid)]);
            assert_eq!(shown.is_some(), whole, "GPU {gpu}");
            let memory = of(&scrape, SUCCESS, uuid, "memory");
            assert_eq!(memory, Some(f64::from(u8::from(whole))), "GPU {gpu}");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    for path in ["/healthz", "/readyz", "/status"] {
        get(&node.url(path)).unwrap();
    }
}

/// How often a call took at most so long.
fn calls(scrape: &Scrape, call: &str, at_most: &str) -> f64 {
    let labels = [("call", call), ("le", at_most)];
    scrape.value(&format!("{DURATIONS}_bucket"), &labels).unwrap_or(0.0)
}

#[test]
fn what_calls_take_is_shown_by_call() {
    let mut node = Setup::gpus(1).start();
    node.until(SOON, "calls are timed", |it| {
        let quick = ["open", "list", "handle", "utilization", "fields", "compute_processes"];
        let found = quick.map(|call| calls(it, call, "10"));
        check(found.iter().all(|it| *it >= 1.0), || format!("{found:?}"))
    });
    let slow = |it: &Scrape| calls(it, "utilization", "+Inf") - calls(it, "utilization", "0.1");
    assert!(slow(&node.metrics()) < 1.0);
    node.change(|it| it.gpus[0].hang_ms = 150);
    node.until(SOON, "a slow call is in a higher bucket", |it| {
        check(slow(it) >= 1.0, || format!("{}", slow(it)))
    });
}

#[test]
fn the_agent_shows_what_it_costs_and_what_waits_in_it() {
    let node = Setup::gpus(1).start();
    let scrape = node.metrics();
    let cost = ["process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"];
    for name in cost {
        assert!(scrape.value(name, &[]).is_some(), "{name}");
    }
    for queue in ["nvml_answers", "nvml_events", "commands"] {
        let depth = scrape.value("gleaner_agent_queue_depth", &[("queue", queue)]);
        assert!(depth.is_some(), "{queue}");
    }
}

fn assert_ready(node: &Node) {
    assert_eq!(get(&node.url("/readyz")).as_deref(), Ok("ready\n"));
    assert_eq!(get(&node.url("/healthz")).as_deref(), Ok("ok\n"));
}

#[test]
fn without_a_driver_the_agent_is_alive_and_ready() {
    let mut node = Setup::gpus(1).make();
    node.config.nvml.library = "/nonexistent/libnvidia-ml.so.1".into();
    node.start_agent();
    assert_ready(&node);
}

#[test]
fn without_a_spool_the_agent_is_alive_and_not_ready() {
    let mut node = Setup::gpus(1).make();
    let obstacle = node.folder().join("obstacle");
    std::fs::write(&obstacle, "not a folder").unwrap();
    node.config.spool.path = obstacle.join("spool");
    node.start_agent_unready();
    eventually(SOON, "it measures", || get(&node.url("/status")).map(drop));
    assert_eq!(get(&node.url("/healthz")).as_deref(), Ok("ok\n"));
    let answer = ureq::get(node.url("/readyz")).config().http_status_as_error(false).build().call();
    let mut answer = answer.unwrap();
    assert_eq!(answer.status(), 503);
    let text = answer.body_mut().read_to_string().unwrap();
    assert!(text.starts_with("not ready: the spool is not open"), "{text}");
    std::fs::remove_file(&obstacle).unwrap();
    eventually(SOON, "it is ready once the disk lets it", || get(&node.url("/readyz")).map(drop));
    assert_ready(&node);
}
