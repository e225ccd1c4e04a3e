//! The series that agent and collector serve alike: one list of names, one way to fill them.
//!
//! Device series carry `node` and `gpu_uuid` (and `mig_uuid`) only; `gleaner_gpu_info` has the rest,
//! to join on. Tenant series carry the tenant's labels only. A scrape configuration takes these from
//! the agents or from the collector, not from both.
//!
//! Each file declares its families and gives them to the `tables` here.

mod cuda;
mod figures;
mod metering;
mod sources;
mod tracing;
mod xids;

use std::collections::BTreeMap;

pub use cuda::{write_devices, write_tenants};
pub use metering::{Metered, TENANT_ENERGY, UNOWNED_ENERGY, write_metered};

use crate::exposition::{Labels, Text};
use crate::family::{FLAG, Family, Label, Subject, Table, names};
use crate::names::{
    ACTIONS, CLASSES, UNCONFIGURED, action_name, class_name, class_names, instance_labels,
    tenant_labels,
};
use crate::telemetry::v1::figure::Kind;
use crate::telemetry::v1::{Device, DeviceReadings, Health, Holder, LiveUpdate, TracedMemory};

pub const TENANT_GPU_SECONDS: Family = Family::counter(
    "gleaner_tenant_gpu_seconds_total",
    "GPU time of a tenant by share; method says how an active share was found.",
)
.of(Subject::Tenant)
.by(&[
    Label::of("share", &["active", "held_idle", "held_unknown"]),
    Label::of("method", &["exclusive", "measured", "launch_weighted", "equal_split"]),
])
.absent("the tenant never had that share");
pub const GPU_SECONDS: Family =
    Family::counter("gleaner_gpu_seconds_total", "GPU time of nobody by share and reason.")
        .of(Subject::Instance)
        .by(&[
            Label::of("share", &["free", "unattributed", "unobserved"]),
            Label::of("reason", &REASONS),
        ])
        .absent("the instance never had that share for that reason");

/// Why time, or energy, is nobody's.
const REASONS: [&str; 13] = [
    UNCONFIGURED,
    "agent_down",
    "nvml_failed",
    "gpu_lost",
    "gpu_hung",
    "reset_required",
    "released",
    "no_process_list",
    "no_holder",
    "unresolved_process",
    "missing",
    "node_reboot",
    "other",
];

/// Of what NVML is asked at every tick.
const NOT_READ: &str = "the device was not read, or does not say";

const GPU_INFO: Family =
    Family::gauge("gleaner_gpu_info", "1; identity of a device, to join on gpu_uuid.")
        .of(Subject::Device)
        .by(&[
            Label::free("index"),
            Label::free("pci_bus_id"),
            Label::free("model"),
            Label::free("driver_version"),
            Label::free("cuda_version"),
            Label::free("compute_capability"),
            Label::of("mig", &["on", "off"]),
        ])
        .absent("never, for a device that the driver ever listed")
        .note("A label is left out where the driver does not say.");
const BUSY: Family = Family::gauge(
    "gleaner_gpu_busy_ratio",
    "Part of the last driver sample period in which a kernel ran; not a share of capacity.",
)
.of(Subject::Device)
.absent("the device was not read, or has MIG on")
.note("NVML `utilization.gpu`.");
const MEMORY_BUSY: Family = Family::gauge(
    "gleaner_gpu_memory_busy_ratio",
    "Part of the last driver sample period in which device memory was read or written.",
)
.of(Subject::Device)
.absent("the device was not read, or has MIG on")
.note("NVML `utilization.memory`.");
const MEMORY_TOTAL: Family = Family::gauge("gleaner_gpu_memory_total_bytes", "Device memory.")
    .of(Subject::Device)
    .absent(NOT_READ);
const MEMORY_USED: Family = Family::gauge(
    "gleaner_gpu_memory_used_bytes",
    "Device memory in use, without the reserved part.",
)
.of(Subject::Device)
.absent(NOT_READ);
const MEMORY_RESERVED: Family = Family::gauge(
    "gleaner_gpu_memory_reserved_bytes",
    "Device memory that the driver keeps for itself.",
)
.of(Subject::Device)
.absent(NOT_READ);
const MEMORY_FREE: Family =
    Family::gauge("gleaner_gpu_memory_free_bytes", "Device memory not in use.")
        .of(Subject::Device)
        .absent(NOT_READ);
const POWER: Family = Family::gauge("gleaner_gpu_power_watts", "Power draw of the device.")
    .of(Subject::Device)
    .absent(NOT_READ);
const POWER_LIMIT: Family = Family::gauge("gleaner_gpu_power_limit_watts", "Enforced power limit.")
    .of(Subject::Device)
    .absent(NOT_READ);
const ENERGY: Family = Family::counter(
    "gleaner_gpu_energy_joules_total",
    "Energy since the driver was loaded; resets with the driver.",
)
.of(Subject::Device)
.absent(NOT_READ);
const TEMPERATURE: Family =
    Family::gauge("gleaner_gpu_temperature_celsius", "Temperature of the device, by sensor.")
        .of(Subject::Device)
        .by(&[Label::of("sensor", &["gpu", "memory"])])
        .absent(NOT_READ);
const CLOCK: Family = Family::gauge("gleaner_gpu_clock_hertz", "Clock of the device, by domain.")
    .of(Subject::Device)
    .by(&[Label::of("domain", &["sm", "memory", "video"])])
    .absent(NOT_READ);
const HEALTH: Family =
    Family::gauge("gleaner_gpu_health_state", "1 for the state that holds, 0 for the others.")
        .of(Subject::Device)
        .by(&[Label::of("state", &names(&HEALTH_STATES))])
        .in_unit(FLAG)
        .absent("never, for a device that the driver ever listed")
        .note("From calls and their results.");
const SUGGESTED_ACTION: Family = Family::gauge(
    "gleaner_gpu_suggested_action",
    "1; what people can do about the device. The other actions have no series.",
)
.of(Subject::Device)
.by(&[Label::of("action", &names(&ACTIONS))])
.in_unit("1")
.absent("there is nothing to do")
.note("What each means: `docs/operations.md`, \"A GPU in trouble\".")
.experimental();
const CLASS: Family = Family::gauge(
    "gleaner_gpu_class",
    "1; what the instance is doing now. The other classes have no series.",
)
.of(Subject::Instance)
.by(&[Label::of("class", &class_names(&CLASSES))])
.in_unit("1")
.absent("never, for a device that the driver ever listed");
const TENANT_MEMORY: Family = Family::gauge(
    "gleaner_tenant_gpu_memory_bytes",
    "Device memory that the driver lists for the processes of a tenant.",
)
.of(Subject::Tenant)
.absent("the driver does not say it of every process of the tenant");

/// Of what the calls of a tenant's processes tell.
const NOT_ALL_TRACED: &str = "memory calls of a process of the tenant were not counted from its start, or do not tell what it has";
const LIVE_BYTES: Family = Family::gauge(
    "gleaner_tenant_cuda_live_bytes",
    "Device memory that a tenant's processes have allocated now, as their traced calls tell it.",
)
.of(Subject::Tenant)
.absent(NOT_ALL_TRACED)
.note("Device, managed and virtual memory.")
.experimental();
const PEAK_BYTES: Family = Family::gauge(
    "gleaner_tenant_cuda_peak_bytes",
    "Sum of the highest live bytes of each process that lives now: at least the tenant's own peak.",
)
.of(Subject::Tenant)
.absent(NOT_ALL_TRACED)
.experimental();
const PINNED_BYTES: Family = Family::gauge(
    "gleaner_tenant_cuda_pinned_host_bytes",
    "Pinned host memory that a tenant's processes have allocated or registered now.",
)
.of(Subject::Tenant)
.absent(NOT_ALL_TRACED)
.experimental();

const HEALTH_STATES: [(&str, Health); 6] = [
    ("ok", Health::Ok),
    ("degraded", Health::Degraded),
    ("hung", Health::Hung),
    ("lost", Health::Lost),
    ("reset_required", Health::ResetRequired),
    ("released", Health::Released),
];

/// Every family that agent and collector serve alike.
#[must_use]
pub fn tables() -> Vec<Table> {
    let own = [
        ("gpu-time", vec![TENANT_GPU_SECONDS, GPU_SECONDS]),
        ("metering", metering::families()),
        ("cuda-calls", cuda::families()),
        ("cuda-memory", vec![LIVE_BYTES, PEAK_BYTES, PINNED_BYTES]),
        ("devices", device_families()),
        ("device-counters", [figures::families(), xids::families()].concat()),
        ("instances", figures::instance_families()),
        ("tracing", tracing::families()),
    ];
    own.map(|(name, families)| Table { name, families }).into()
}

fn device_families() -> Vec<Family> {
    let read = READINGS.map(|(family, _)| family);
    let others = [TEMPERATURE, CLOCK, HEALTH, SUGGESTED_ACTION, CLASS, TENANT_MEMORY];
    [&[GPU_INFO], &read[..], &others, &sources::families()].concat()
}

/// Series of the newest readings. `updates` holds one entry per node that is not silent: a silent
/// node has no gauges.
pub fn write_live(text: &mut Text, updates: &[(&str, &LiveUpdate)]) {
    write_info(text, updates);
    write_readings(text, updates);
    figures::write(text, &devices(updates).collect::<Vec<_>>());
    xids::write(text, &devices(updates).collect::<Vec<_>>());
    sources::write(text, &devices(updates).collect::<Vec<_>>());
    write_health(text, updates);
    write_classes(text, updates);
    write_tenant_memory(text, updates);
    write_traced_memory(text, updates);
    tracing::write(text, updates);
}

fn write_info(text: &mut Text, updates: &[(&str, &LiveUpdate)]) {
    text.family(GPU_INFO);
    for (labels, device) in devices(updates) {
        let mut labels = labels;
        let index = device.index.map(|it| it.to_string());
        let mig = device.mig_on.map(|it| if it { "on" } else { "off" }.to_owned());
        let optional = [
            ("index", &index),
            ("pci_bus_id", &device.pci_bus_id),
            ("model", &device.model),
            ("driver_version", &device.driver_version),
            ("cuda_version", &device.cuda_version),
            ("compute_capability", &device.compute_capability),
            ("mig", &mig),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                labels.push(name, value);
            }
        }
        text.count(&labels, Some(1));
    }
}

/// One gauge or counter of `DeviceReadings`.
type Read = fn(&DeviceReadings) -> Option<f64>;

const READINGS: [(Family, Read); 9] = [
    (BUSY, |it| it.busy_ratio),
    (MEMORY_BUSY, |it| it.memory_busy_ratio),
    (MEMORY_TOTAL, |it| it.memory_total_bytes.map(approximate)),
    (MEMORY_USED, |it| it.memory_used_bytes.map(approximate)),
    (MEMORY_RESERVED, |it| it.memory_reserved_bytes.map(approximate)),
    (MEMORY_FREE, |it| it.memory_free_bytes.map(approximate)),
    (POWER, |it| it.power_mw.map(thousandths)),
    (POWER_LIMIT, |it| it.power_limit_mw.map(thousandths)),
    (ENERGY, |it| it.energy_mj.map(thousandths)),
];

fn write_readings(text: &mut Text, updates: &[(&str, &LiveUpdate)]) {
    for (family, read) in READINGS {
        text.family(family);
        for (labels, device) in devices(updates) {
            text.sample(&labels, device.readings.as_ref().and_then(read));
        }
    }
    text.family(TEMPERATURE);
    for (labels, device) in devices(updates) {
        let value = device.readings.as_ref().and_then(|it| it.temperature_celsius);
        text.sample(&labels.with("sensor", "gpu"), value.map(f64::from));
        let memory = figures::of(device, Kind::MemoryTemperature);
        text.count(&labels.with("sensor", "memory"), memory);
    }
    text.family(CLOCK);
    for (labels, device) in devices(updates) {
        let readings = device.readings.as_ref();
        text.count(&labels.with("domain", "sm"), readings.and_then(|it| it.sm_clock_hz));
        text.count(&labels.with("domain", "memory"), readings.and_then(|it| it.memory_clock_hz));
        text.count(&labels.with("domain", "video"), figures::of(device, Kind::VideoClock));
    }
}

fn write_health(text: &mut Text, updates: &[(&str, &LiveUpdate)]) {
    text.family(HEALTH);
    for (labels, device) in devices(updates) {
        for (name, state) in HEALTH_STATES {
            text.count(&labels.with("state", name), Some(u64::from(device.health() == state)));
        }
    }
    text.family(SUGGESTED_ACTION);
    for (labels, device) in devices(updates) {
        let action = device.suggestion.as_ref().and_then(|it| action_name(it.action()));
        if let Some(action) = action {
            text.count(&labels.with("action", action), Some(1));
        }
    }
}

fn write_classes(text: &mut Text, updates: &[(&str, &LiveUpdate)]) {
    text.family(CLASS);
    for (labels, device) in devices(updates) {
        for instance in &device.instances {
            let labels = instance_labels(&labels, instance);
            text.count(&labels.with("class", class_name(instance.class())), Some(1));
        }
    }
}

/// As the driver lists it.
fn write_tenant_memory(text: &mut Text, updates: &[(&str, &LiveUpdate)]) {
    let mut sums = Sums::default();
    let holders = updates
        .iter()
        .flat_map(|(_, update)| &update.devices)
        .flat_map(|device| &device.instances)
        .flat_map(|instance| &instance.holders);
    for live in holders {
        sums.add(live.holder.as_ref(), live.memory_bytes);
    }
    sums.write(text, TENANT_MEMORY);
}

/// As the calls of its processes tell it.
fn write_traced_memory(text: &mut Text, updates: &[(&str, &LiveUpdate)]) {
    type Bytes = fn(&TracedMemory) -> Option<u64>;
    let families: [(Family, Bytes); 3] = [
        (LIVE_BYTES, |it| it.live_bytes),
        (PEAK_BYTES, |it| it.peak_bytes),
        (PINNED_BYTES, |it| it.host_bytes),
    ];
    for (family, bytes) in families {
        let mut sums = Sums::default();
        for memory in updates.iter().flat_map(|(_, update)| &update.traced_memory) {
            sums.add(memory.holder.as_ref(), bytes(memory));
        }
        sums.write(text, family);
    }
}

/// Sums by tenant. A tenant with a part that is not known has no sum: the others would read as the
/// whole.
#[derive(Debug, Default)]
struct Sums(BTreeMap<Labels, Option<u64>>);

impl Sums {
    fn add(&mut self, holder: Option<&Holder>, part: Option<u64>) {
        if let Some(holder) = holder {
            let sum = self.0.entry(tenant_labels(holder)).or_insert(Some(0));
            *sum = sum.zip(part).map(|(a, b)| a.saturating_add(b));
        }
    }

    fn write(self, text: &mut Text, family: Family) {
        text.family(family);
        for (labels, sum) in self.0 {
            text.count(&labels, sum);
        }
    }
}

fn devices<'a>(
    updates: &'a [(&'a str, &'a LiveUpdate)],
) -> impl Iterator<Item = (Labels, &'a Device)> {
    updates.iter().flat_map(|(node, update)| {
        update.devices.iter().map(|device| {
            (Labels::new([("node", *node), ("gpu_uuid", device.gpu_uuid.as_str())]), device)
        })
    })
}

/// Exact below 2^53, which neither bytes nor millijoules of one device reach.
#[expect(clippy::cast_precision_loss, reason = "gauges and device energy; time never passes here")]
fn approximate(value: u64) -> f64 {
    value as f64
}

fn thousandths(value: u64) -> f64 {
    approximate(value) / 1e3
}

#[cfg(test)]
mod tests {
    use super::write_live;
    use crate::exposition::Text;
    use crate::telemetry::v1::{
        Class, Device, DeviceReadings, Health, Holder, Instance, LiveHolder, LiveUpdate,
    };

    fn update() -> LiveUpdate {
        let holder = |tenant: &str| Holder { tenant: tenant.to_owned(), ..Holder::default() };
        let live = |tenant: &str, memory_bytes| LiveHolder {
            holder: Some(holder(tenant)),
            memory_bytes,
            ..LiveHolder::default()
        };
        LiveUpdate {
            devices: vec![Device {
                gpu_uuid: "GPU-1".to_owned(),
                model: Some("X\"1".to_owned()),
                health: Health::Ok.into(),
                readings: Some(DeviceReadings {
                    power_mw: Some(61_500),
                    ..DeviceReadings::default()
                }),
                instances: vec![Instance {
                    class: Class::MemoryHeld.into(),
                    holders: vec![live("a", Some(5)), live("a", Some(6)), live("b", None)],
                    ..Instance::default()
                }],
                ..Device::default()
            }],
            ..LiveUpdate::default()
        }
    }

    #[test]
    fn what_was_not_read_has_no_series() {
        let update = update();
        let mut text = Text::default();
        write_live(&mut text, &[("n", &update)]);
        let body = text.into_body();
        assert!(
            body.contains("gleaner_gpu_info{node=\"n\",gpu_uuid=\"GPU-1\",model=\"X\\\"1\"} 1\n")
        );
        assert!(body.contains("gleaner_gpu_power_watts{node=\"n\",gpu_uuid=\"GPU-1\"} 61.5\n"));
        assert!(body.contains(
            "gleaner_gpu_class{node=\"n\",gpu_uuid=\"GPU-1\",class=\"memory_held\"} 1\n"
        ));
        assert!(body.contains("gleaner_tenant_gpu_memory_bytes{tenant=\"a\"} 11\n"));
        for absent in ["busy_ratio", "tenant=\"b\"", "energy", "hooks"] {
            assert!(!body.contains(absent), "{absent} was not read");
        }
    }
}
