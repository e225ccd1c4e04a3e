//! The same product on the real libraries: what keeps the stand-ins honest.
//!
//! Needs a GPU, its driver and root. Not part of `cargo xtask test`: on a machine that has them run
//! `cargo xtask bpf && cargo build --workspace && cargo test -p tests --test gpu -- --test-threads=1`.
//! Without them the tests fail and say what is missing; they do not skip. Nothing here changes a
//! setting of the card.

use std::time::Duration;

use tests::node::{Node, Setup};
use tests::wait::check;

const SOON: Duration = Duration::from_secs(30);

/// An agent that has found the driver of this machine.
fn node() -> Node {
    let node = Setup::real().named("gpu-node").start();
    let found = node.until_part(SOON, "nvml", "active");
    assert!(!found.starts_with("0 "), "the driver lists no device: {found}");
    node
}

/// Waits until the first device, on which the workloads run, is of a class.
fn until_class(node: &Node, class: &str) {
    node.until(SOON, class, |it| {
        let uuid = it.label("gleaner_gpu_info", &[("index", "0")], "gpu_uuid").unwrap_or_default();
        let found = it.label("gleaner_gpu_class", &[("gpu_uuid", &uuid)], "class");
        check(found.as_deref() == Some(class), || format!("it is {found:?}"))
    });
}

#[test]
fn every_device_says_what_it_is() {
    let node = node();
    let devices = node.status()["devices"].as_array().expect("devices are listed").clone();
    for device in devices {
        assert_eq!(device["health"], "ok", "{device}");
        assert!(device["gpu_uuid"].as_str().is_some_and(|it| it.starts_with("GPU-")), "{device}");
        assert!(device["model"].is_string() && device["index"].is_number(), "{device}");
    }
}

#[test]
fn every_gauge_of_a_device_is_read() {
    let node = node();
    let names = [
        "memory_total_bytes",
        "memory_used_bytes",
        "memory_reserved_bytes",
        "power_watts",
        "energy_joules_total",
        "temperature_celsius",
        "clock_hertz",
    ];
    for name in names {
        let name = format!("gleaner_gpu_{name}");
        node.until(SOON, &name, |it| {
            check(it.sum(&name, &[]) > Some(0.0), || format!("no {name}"))
        });
    }
}

#[test]
fn the_hooks_fit_the_real_driver() {
    let node = node();
    node.until_part(SOON, "tracing", "active");
    let status = node.status();
    let library = &status["libraries"][0];
    assert!(library["attached"].as_u64() > Some(0), "{library}");
    let slow = library["hooks"].as_array().expect("hooks are listed").iter();
    let slow: Vec<_> = slow
        .filter(|it| it["reason"].as_str().is_some_and(|it| it.starts_with("slow")))
        .map(|it| it["symbol"].clone())
        .collect();
    assert!(slow.is_empty(), "single-stepped on this driver: {slow:?}");
}

#[test]
fn launches_are_counted_exactly() {
    let node = node();
    let truth = node.tenant("counted", &["--launches=1000", "--synchronize-every=10"]).finish();
    assert_eq!(truth.launches(), 1_000);
    node.until(SOON, "every launch is counted", |it| {
        it.counts("gleaner_tenant_cuda_launches_total", &[("tenant", "counted")], truth.launches())
    });
}

#[test]
fn a_holder_is_named_and_its_memory_comes_back() {
    let node = node();
    let tenant = node.tenant("holder", &["--memory-mib=1024", "--hold"]);
    node.until(SOON, "the driver lists the holder", |it| {
        let bytes = it.sum("gleaner_tenant_gpu_memory_bytes", &[("tenant", "holder")]);
        check(bytes >= Some(1024.0 * 1024.0 * 1024.0), || format!("{bytes:?} bytes"))
    });
    until_class(&node, "memory_held");
    tenant.stop();
    until_class(&node, "free");
}
