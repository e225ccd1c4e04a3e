//! An observation as the live lane's message. What was not read is absent in it, never zero.

use std::collections::BTreeMap;
use std::sync::Arc;

use proto::telemetry::v1;

use crate::accounting::Observation;
use crate::classify::Evidence;
use crate::model::ids::{DeviceId, Holder, InstanceId};
use crate::model::readings::{
    Counters, DeviceReading, Health, Identity, InstanceReading, NvmlState, Tracing,
};
use crate::model::units::{BootNs, Percent};
use crate::model::usage::{HolderView, InstanceView, LastLaunch};
use crate::record::common::{wire_class, wire_counts, wire_holder};

/// The newest readings and classes of the node. `since` says since when each class has held;
/// `spool_records` are spooled and not acknowledged; `real_ns` is CLOCK_REALTIME at the reading.
#[must_use]
pub fn live_update(
    node: &v1::NodeIdentity,
    seen: &Observation,
    since: &BTreeMap<InstanceId, BootNs>,
    spool_records: u64,
    real_ns: i64,
) -> v1::LiveUpdate {
    let readings = &seen.readings;
    v1::LiveUpdate {
        node: Some(node.clone()),
        clock: Some(v1::ClockReading { boot_ns: readings.at.0, real_ns }),
        devices: readings.nvml.devices.iter().map(|(id, it)| device(seen, since, id, it)).collect(),
        tracing: Some(tracing(&readings.cuda.tracing)),
        spool_records,
        nvml_state: match &readings.nvml.state {
            NvmlState::Ok => String::new(),
            NvmlState::Absent(text) | NvmlState::Failed(text) => text.clone(),
        },
    }
}

fn device(
    seen: &Observation,
    since: &BTreeMap<InstanceId, BootNs>,
    id: &DeviceId,
    device: &DeviceReading,
) -> v1::Device {
    let identity = &device.identity;
    let text = |it: &Option<Arc<str>>| it.as_deref().map(str::to_owned);
    v1::Device {
        gpu_uuid: id.0.to_string(),
        index: identity.index,
        pci_bus_id: text(&identity.pci_bus_id),
        model: text(&identity.model),
        driver_version: text(&identity.driver_version),
        health: health(device.health).into(),
        numa_node: identity.numa_node,
        readings: Some(device_readings(identity, &device.counters)),
        instances: device.instances.iter().map(|it| instance(seen, since, device, it)).collect(),
    }
}

fn device_readings(identity: &Identity, counters: &Counters) -> v1::DeviceReadings {
    let hertz = |mhz: Option<u32>| mhz.map(|it| u64::from(it) * 1_000_000);
    v1::DeviceReadings {
        busy_ratio: counters.busy.map(Percent::ratio),
        memory_total_bytes: identity.memory_total_bytes,
        memory_used_bytes: counters.memory_used_bytes,
        memory_reserved_bytes: counters.memory_reserved_bytes,
        memory_free_bytes: counters.memory_free_bytes,
        power_mw: counters.power_mw,
        power_limit_mw: identity.power_limit_mw,
        energy_mj: counters.energy_mj,
        temperature_celsius: counters.temperature_celsius,
        sm_clock_hz: hertz(counters.sm_clock_mhz),
        memory_clock_hz: hertz(counters.memory_clock_mhz),
        memory_busy_ratio: counters.memory_busy.map(Percent::ratio),
    }
}

/// An instance without a verdict is `UNKNOWN` since this reading.
fn instance(
    seen: &Observation,
    since: &BTreeMap<InstanceId, BootNs>,
    device: &DeviceReading,
    instance: &InstanceReading,
) -> v1::Instance {
    let at = seen.readings.at;
    let verdict = seen.verdicts.get(&instance.id);
    let view = seen.views.get(&instance.id);
    v1::Instance {
        mig_uuid: instance.id.mig.as_deref().map(str::to_owned),
        class: verdict.map_or(v1::Class::Unknown, |it| wire_class(it.class)).into(),
        class_since_ns: since.get(&instance.id).copied().unwrap_or(at).0,
        reason: verdict.map(|it| it.reason.to_owned()).unwrap_or_default(),
        holders: view.map(|it| holders(seen, instance, it)).unwrap_or_default(),
        evidence: verdict.map(|it| evidence(&it.evidence)),
        memory_total_bytes: instance.memory_total_bytes,
        memory_free_bytes: memory_free(device, instance),
    }
}

/// The driver's word where it is about this instance; else what is neither used nor reserved.
fn memory_free(device: &DeviceReading, instance: &InstanceReading) -> Option<u64> {
    if instance.id.mig.is_none() {
        return device.counters.memory_free_bytes;
    }
    instance
        .memory_total_bytes?
        .checked_sub(instance.memory_used_bytes?)?
        .checked_sub(instance.memory_reserved_bytes.unwrap_or(0))
}

fn holders(
    seen: &Observation,
    instance: &InstanceReading,
    view: &InstanceView,
) -> Vec<v1::LiveHolder> {
    let sm = sm_by_holder(seen, instance);
    view.holders.iter().flatten().map(|it| holder(seen.readings.at, &sm, it)).collect()
}

fn holder(at: BootNs, sm: &BTreeMap<&Holder, Option<f64>>, view: &HolderView) -> v1::LiveHolder {
    v1::LiveHolder {
        holder: Some(wire_holder(&view.holder)),
        processes: view.processes,
        memory_bytes: view.memory_bytes,
        last_launch_age_ns: match view.last_launch {
            LastLaunch::At(launch) => Some(at.since(launch)),
            LastLaunch::Unknown | LastLaunch::Never => None,
        },
        sm_ratio: sm.get(&view.holder).copied().flatten(),
        cuda: view.cuda.as_ref().map(wire_counts),
    }
}

/// SM samples of each holder's processes, added; `None` where one of them has none.
fn sm_by_holder<'a>(
    seen: &'a Observation,
    instance: &InstanceReading,
) -> BTreeMap<&'a Holder, Option<f64>> {
    let mut sums = BTreeMap::new();
    for process in instance.processes.iter().flatten() {
        let Some(holder) = process.process.and_then(|it| seen.readings.holders.get(&it)) else {
            continue;
        };
        let sum: &mut Option<f64> = sums.entry(holder).or_insert(Some(0.0));
        // Samples of processes are taken at different times and may add up to more than there is.
        *sum = sum.zip(process.sm).map(|(sum, it)| (sum + it.ratio()).min(1.0));
    }
    sums
}

fn evidence(evidence: &Evidence) -> v1::Evidence {
    v1::Evidence {
        busy_ratio: evidence.busy.map(Percent::ratio),
        memory_used_bytes: evidence.memory_used_bytes,
        processes: evidence.processes,
        last_launch_age_ns: evidence.last_launch_age_ns,
        power_mw: evidence.power_mw,
    }
}

fn tracing(tracing: &Tracing) -> v1::Tracing {
    v1::Tracing {
        on: tracing.on,
        reason: tracing.reason.clone(),
        hooks_attached: tracing.hooks_attached,
        hooks_wanted: tracing.hooks_wanted,
        dropped: tracing.dropped,
    }
}

fn health(health: Health) -> v1::Health {
    match health {
        Health::Ok => v1::Health::Ok,
        Health::Degraded => v1::Health::Degraded,
        Health::Hung => v1::Health::Hung,
        Health::Lost => v1::Health::Lost,
        Health::ResetRequired => v1::Health::ResetRequired,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proto::telemetry::v1;

    use super::live_update;
    use crate::accounting::Observation;
    use crate::attribution::{self, fixtures};
    use crate::classify::{self, Policy};
    use crate::config::Allocations;
    use crate::model::readings::{Health, NvmlState, Readings};
    use crate::model::units::{BootNs, Percent};

    fn update(readings: Readings) -> v1::LiveUpdate {
        let views = attribution::attribute(None, &readings);
        let policy = Policy::new(Allocations::None);
        let device = &readings.nvml.devices[&fixtures::device(0)];
        let instance = &device.instances[0];
        let id = instance.id.clone();
        let verdict = classify::classify(&policy, readings.at, device, instance, &views[&id]);
        let verdicts = BTreeMap::from([(id.clone(), verdict)]);
        let seen = Observation { readings, views, verdicts };
        let since = BTreeMap::from([(id, BootNs(400))]);
        live_update(&v1::NodeIdentity::default(), &seen, &since, 7, 9)
    }

    #[test]
    fn what_was_read_is_there() {
        let mut readings = fixtures::readings(1_000, 1);
        fixtures::hold(&mut readings, 0, 10, Some(5));
        fixtures::hold(&mut readings, 0, 11, Some(6));
        readings.holders.insert(fixtures::process(11), fixtures::holder("unit-10"));
        for process in fixtures::instance(&mut readings, 0).processes.as_mut().unwrap() {
            process.sm = Percent::new(40);
        }
        let found = update(readings);
        assert_eq!((found.spool_records, found.nvml_state.as_str()), (7, ""));
        assert_eq!(found.clock, Some(v1::ClockReading { boot_ns: 1_000, real_ns: 9 }));
        let device = &found.devices[0];
        assert_eq!((device.gpu_uuid.as_str(), device.health()), ("GPU-0", v1::Health::Ok));
        let instance = &device.instances[0];
        assert_eq!(instance.class(), v1::Class::MemoryHeld);
        assert_eq!(instance.class_since_ns, 400);
        assert_eq!(instance.evidence.as_ref().unwrap().processes, Some(2));
        let holder = &instance.holders[0];
        assert_eq!((holder.processes, holder.memory_bytes), (2, Some(11)));
        assert_eq!(holder.sm_ratio, Some(0.8));
    }

    #[test]
    fn what_was_not_read_is_absent() {
        let mut readings = fixtures::readings(1_000, 1);
        readings.nvml.state = NvmlState::Failed("the library does not answer".to_owned());
        fixtures::hold(&mut readings, 0, 10, None);
        let device = readings.nvml.devices.get_mut(&fixtures::device(0)).unwrap();
        device.health = Health::Lost;
        device.counters = crate::model::readings::Counters::default();
        device.instances[0].memory_total_bytes = None;
        let found = update(readings);
        assert_eq!(found.nvml_state, "the library does not answer");
        let device = &found.devices[0];
        assert_eq!(device.readings, Some(v1::DeviceReadings::default()));
        let instance = &device.instances[0];
        assert_eq!(instance.class(), v1::Class::Down);
        assert_eq!((instance.memory_total_bytes, instance.memory_free_bytes), (None, None));
        let holder = &instance.holders[0];
        assert_eq!((holder.memory_bytes, holder.sm_ratio, holder.cuda.clone()), (None, None, None));
        assert_eq!(holder.last_launch_age_ns, None);
    }
}
