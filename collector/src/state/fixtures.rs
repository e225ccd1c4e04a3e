//! Events for tests, in few words.

use proto::telemetry::v1::{
    Class, ClockReading, Device, DeviceReadings, Health, Holder, Instance, LiveHolder, LiveUpdate,
    NodeIdentity,
};
use std::time::Duration;

use super::Event;
use super::fleet::Limits;
use crate::model::ids::NodeKey;

pub(crate) const SECOND: u64 = 1_000_000_000;
pub(crate) const LIMITS: Limits = Limits { nodes: 3, stale_after: Duration::from_secs(15) };

pub(crate) fn key(node: &str) -> NodeKey {
    NodeKey { cluster: "c".to_owned(), node: node.to_owned() }
}

/// A healthy device that was read, in `class` since that second of the node's clock.
pub(crate) fn gpu(uuid: &str, class: Class, since_s: u64) -> Device {
    let instance = Instance {
        class: class.into(),
        class_since_ns: since_s * SECOND,
        memory_total_bytes: Some(16 << 30),
        memory_free_bytes: Some(16 << 30),
        ..Instance::default()
    };
    Device {
        gpu_uuid: uuid.to_owned(),
        health: Health::Ok.into(),
        readings: Some(DeviceReadings::default()),
        instances: vec![instance],
        ..Device::default()
    }
}

pub(crate) fn held_by(mut device: Device, tenants: &[&str]) -> Device {
    let holder =
        |it: &&str| Holder { id: (*it).to_owned(), tenant: (*it).to_owned(), ..Holder::default() };
    device.instances[0].holders = tenants
        .iter()
        .map(|it| LiveHolder { holder: Some(holder(it)), ..LiveHolder::default() })
        .collect();
    device
}

/// What a node says when its clock, and the collector's, are at that second: the two are some hours
/// apart.
pub(crate) fn live(node: &str, at_s: u64, devices: Vec<Device>) -> Event {
    let update = LiveUpdate {
        node: Some(NodeIdentity { boot_id: "boot".to_owned(), ..NodeIdentity::default() }),
        clock: Some(ClockReading { boot_ns: at_s * SECOND, real_ns: 0 }),
        devices,
        ..LiveUpdate::default()
    };
    Event::Live { node: key(node), update: Box::new(update), received_ns: collector_ns(at_s) }
}

pub(crate) fn gone(node: &str) -> Event {
    Event::Gone { node: key(node) }
}

pub(crate) fn tick(at_s: u64) -> Event {
    Event::Tick { now_ns: collector_ns(at_s) }
}

/// The collector's clock when a node's is at that second.
pub(crate) fn collector_ns(at_s: u64) -> u64 {
    (at_s + 100_000) * SECOND
}
