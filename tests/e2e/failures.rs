//! Devices and drivers that fail: typed, visible, and never idle capacity; the others go on.

use std::time::Duration;

use gpu_state::scenario::{Scenario, State};
use tests::collector::Collector;
use tests::node::{Node, Setup};
use tests::scrape::Scrape;
use tests::wait::check;

const SOON: Duration = Duration::from_secs(15);

/// A device that was lost is left in peace for half a minute before it is asked again.
const RESTED: Duration = Duration::from_secs(60);

/// Codes of `nvml.h`.
const NOT_SUPPORTED: u32 = 3;
const DRIVER_NOT_LOADED: u32 = 9;
const UNKNOWN: u32 = 999;

/// Series that say something about a device now.
const GAUGES: [&str; 3] =
    ["gleaner_gpu_busy_ratio", "gleaner_gpu_memory_used_bytes", "gleaner_gpu_power_watts"];

const SUGGESTED: &str = "gleaner_gpu_suggested_action";

fn health(scrape: &Scrape, uuid: &str, state: &str) -> Option<f64> {
    scrape.value("gleaner_gpu_health_state", &[("gpu_uuid", uuid), ("state", state)])
}

fn until_health(node: &Node, gpu: usize, state: &str) {
    let uuid = node.gpu_uuid(gpu);
    node.until(RESTED, &format!("{uuid} is {state}"), |it| {
        let value = health(it, uuid, state);
        check(value == Some(1.0), || format!("{state} is {value:?}"))
    });
}

/// What a device in trouble must not do, on agent and collector, while its neighbour goes on.
fn check_failure(
    break_it: impl Fn(&mut Scenario),
    mend_it: impl Fn(&mut Scenario),
    (state, action): (&str, &str),
) {
    let collector = Collector::start();
    let mut node = Setup::gpus(2).reporting_to(&collector).start();
    let scheduler = collector.scheduler();
    for gpu in [0, 1] {
        scheduler.until_offered(SOON, node.gpu_uuid(gpu));
    }
    node.change(break_it);
    until_health(&node, 0, state);
    scheduler.until_not_offered(SOON, node.gpu_uuid(0));
    assert!(scheduler.offers().contains_key(node.gpu_uuid(1)), "the other one goes on");
    let [broken, whole] = [0, 1].map(|it| node.gpu_uuid(it).to_owned());
    collector.until(SOON, "the collector shows no stale reading", |it| {
        check(health(it, &broken, state) == Some(1.0), || format!("it is not {state}"))?;
        gauges_of(it, &broken, 0)?;
        let suggested = |uuid| it.label(SUGGESTED, &[("gpu_uuid", uuid)], "action");
        let found = (suggested(&broken), suggested(&whole));
        check(found == (Some(action.to_owned()), None), || format!("{found:?}"))?;
        gauges_of(it, &whole, GAUGES.len())
    });
    let class = node.metrics().label("gleaner_gpu_class", &[("gpu_uuid", &broken)], "class");
    assert_eq!(class.as_deref(), Some("down"));
    node.change(mend_it);
    until_health(&node, 0, "ok");
    scheduler.until_offered(SOON, &broken);
}

fn gauges_of(scrape: &Scrape, uuid: &str, expected: usize) -> Result<(), String> {
    let shown = |it: &&&str| scrape.value(it, &[("gpu_uuid", uuid)]).is_some();
    let found: Vec<_> = GAUGES.iter().filter(shown).collect();
    check(found.len() == expected, || format!("{uuid} has {found:?}"))
}

#[test]
fn a_device_that_fell_off_the_bus_is_lost_and_not_idle() {
    let set = |state| move |it: &mut Scenario| it.gpus[0].state = state;
    check_failure(set(State::Lost), set(State::Ok), ("lost", "reboot_node"));
}

#[test]
fn a_device_that_needs_a_reset_is_not_idle() {
    let set = |state| move |it: &mut Scenario| it.gpus[0].state = state;
    check_failure(set(State::ResetRequired), set(State::Ok), ("reset_required", "reset_gpu"));
}

#[test]
fn a_device_that_does_not_answer_does_not_hold_up_the_others() {
    let set = |hang_ms| move |it: &mut Scenario| it.gpus[0].hang_ms = hang_ms;
    check_failure(set(600_000), set(0), ("hung", "wait"));
}

#[test]
fn time_in_which_nobody_could_watch_is_unobserved() {
    let mut node = Setup::gpus(1).start();
    let tenant = node.tenant("t", &["--memory-mib=500", "--hold"]);
    node.until_class(SOON, 0, "memory_held");
    node.change(|it| it.gpus[0].state = State::Lost);
    let held = [("tenant", tenant.name.as_str())];
    let unobserved = [("share", "unobserved"), ("reason", "gpu_lost")];
    node.until(SOON, "unobserved time grows", |it| {
        let seconds = it.sum("gleaner_gpu_seconds_total", &unobserved);
        check(seconds.is_some_and(|it| it > 1.0), || format!("{seconds:?} s"))
    });
    let before = node.metrics().sum("gleaner_tenant_gpu_seconds_total", &held);
    std::thread::sleep(Duration::from_secs(1));
    let after = node.metrics().sum("gleaner_tenant_gpu_seconds_total", &held);
    assert_eq!(before, after, "nobody pays for what nobody saw");
}

#[test]
fn a_missing_process_list_is_unknown_and_not_empty() {
    let mut node = Setup::gpus(2).start();
    node.until_class(SOON, 0, "free");
    node.change(|it| {
        for call in
            ["nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2"]
        {
            it.gpus[0].nvml_fails.insert(call.to_owned(), UNKNOWN);
        }
    });
    node.until_class(SOON, 0, "unknown");
    node.until_class(SOON, 1, "free");
}

#[test]
fn one_reading_that_fails_is_absent_alone() {
    let broken = |it: &mut Setup| {
        let fails = &mut it.scenario.gpus[0].nvml_fails;
        fails.insert("nvmlDeviceGetPowerUsage".to_owned(), NOT_SUPPORTED);
        fails.insert("nvmlDeviceGetTemperature".to_owned(), NOT_SUPPORTED);
    };
    let node = Setup::gpus(1).with(broken).start();
    node.until_class(SOON, 0, "free");
    let scrape = node.metrics();
    let of = |name: &str| scrape.value(name, &[("gpu_uuid", node.gpu_uuid(0))]);
    assert_eq!(of("gleaner_gpu_power_watts"), None, "absent is never zero");
    let gpu = [("gpu_uuid", node.gpu_uuid(0)), ("sensor", "gpu")];
    assert_eq!(scrape.value("gleaner_gpu_temperature_celsius", &gpu), None);
    assert_eq!(of("gleaner_gpu_busy_ratio"), Some(0.0));
    assert_eq!(
        health(&scrape, node.gpu_uuid(0), "ok"),
        Some(1.0),
        "what is not supported is no failure"
    );
}

#[test]
fn devices_that_answer_differently_each_show_what_they_know() {
    let node = Setup::scenario("kinds.toml").start();
    let shared = ["--launches-per-second=50", "--kernel-us=5000", "--device=2"];
    let _tenants = [node.tenant("a", &shared), node.tenant("b", &shared)];
    let classes = [(0, "free"), (1, "free"), (2, "active"), (3, "unknown")];
    for (gpu, class) in classes {
        node.until_class(SOON, gpu, class);
    }
    let absent = [
        (1, "gleaner_gpu_energy_joules_total"),
        (3, "gleaner_gpu_busy_ratio"),
        (3, "gleaner_gpu_memory_busy_ratio"),
    ];
    let scrape = node.metrics();
    let families =
        [&GAUGES[..], &["gleaner_gpu_energy_joules_total", "gleaner_gpu_memory_busy_ratio"]];
    for (gpu, name) in (0..4).flat_map(|gpu| families.concat().into_iter().map(move |it| (gpu, it)))
    {
        let shown = scrape.value(name, &[("gpu_uuid", node.gpu_uuid(gpu))]).is_some();
        assert_eq!(shown, !absent.contains(&(gpu, name)), "{gpu} {name}");
    }
    // Nothing of the driver tells the two apart, and what the kernel counted does.
    node.until(SOON, "time is shared by launches", |it| {
        let labels = [("share", "active"), ("method", "launch_weighted")];
        let tenants = it.all("gleaner_tenant_gpu_seconds_total", &labels).count();
        check(tenants == 2, || format!("{tenants} tenants"))
    });
}

#[test]
fn an_agent_that_sees_no_host_processes_does_not_call_the_device_free() {
    let node = Setup::gpus(1).with(|it| it.scenario.pids_visible = false).start();
    let _tenant = node.tenant("t", &["--memory-mib=500", "--hold"]);
    std::thread::sleep(Duration::from_secs(1));
    node.until_class(SOON, 0, "unknown");
}

#[test]
fn a_driver_that_is_not_there_yet_is_a_state() {
    let absent = |it: &mut Setup| it.scenario.nvml_init_fails = Some(DRIVER_NOT_LOADED);
    let mut node = Setup::gpus(1).with(absent).start();
    let message = node.until_part(SOON, "nvml", "failed");
    assert!(message.contains("no NVIDIA driver"), "{message}");
    assert!(node.agent().ended().is_none());
    node.change(|it| it.nvml_init_fails = None);
    node.until_part(Duration::from_secs(60), "nvml", "active");
    node.until_class(SOON, 0, "free");
}

#[test]
fn no_library_is_a_state_and_the_agent_goes_on() {
    let mut node = Setup::gpus(1).make();
    node.config.nvml.library = "/nonexistent/libnvidia-ml.so.1".into();
    node.start_agent();
    let message = node.until_part(SOON, "nvml", "failed");
    assert!(message.contains("/nonexistent/libnvidia-ml.so.1"), "{message}");
    let truth = node.tenant("t", &["--launches=25", "--launches-per-second=50"]).finish();
    node.until(SOON, "calls are counted without NVML", |it| {
        it.counts("gleaner_tenant_cuda_launches_total", &[("tenant", "t")], truth.launches())
    });
    assert_eq!(node.metrics().all("gleaner_gpu_info", &[]).count(), 0);
}
