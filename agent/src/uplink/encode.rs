//! What one tick saw, as the live lane carries it. Pure and total: every observation has an update.
//!
//! What a source did not say stays absent. Records are encoded elsewhere, in `record`.

use std::collections::BTreeMap;

use proto::telemetry::v1;

use crate::accounting::Observation;
use crate::advice;
use crate::attribution;
use crate::classify;
use crate::model::ids::{Holder, InstanceId};
use crate::model::readings::{
    Counters, CudaMemory, DeviceReading, Health, InstanceReading, Readings, Tracing,
};
use crate::model::units::{BootNs, Percent};
use crate::model::usage::{HolderView, LastLaunch};
use crate::record::common::{wire_class, wire_holder};
use crate::record::counts::wire_counts;
use crate::uplink::figures::{wire_figures, wire_source, wire_xid};

/// `since` says when each class began; an instance that it lacks has had its class since this tick.
#[must_use]
pub fn live_update(
    identity: &v1::NodeIdentity,
    seen: &Observation,
    since: &BTreeMap<InstanceId, BootNs>,
    spool_waiting: u64,
    real_ns: i64,
) -> v1::LiveUpdate {
    let readings = &seen.readings;
    let tick = Tick { seen, since };
    v1::LiveUpdate {
        node: Some(identity.clone()),
        clock: Some(v1::ClockReading { boot_ns: readings.at.0, real_ns }),
        devices: readings.nvml.devices.iter().map(|(id, it)| tick.device(&id.0, it)).collect(),
        tracing: Some(tracing(&readings.cuda.tracing)),
        spool_records: spool_waiting,
        nvml_state: readings.nvml.state.text().to_owned(),
        traced_memory: attribution::memory(readings).into_iter().map(traced_memory).collect(),
    }
}

/// What the parts of an update are made from.
#[derive(Clone, Copy, Debug)]
struct Tick<'a> {
    seen: &'a Observation,
    since: &'a BTreeMap<InstanceId, BootNs>,
}

// === impl Tick ===

impl Tick<'_> {
    fn device(&self, uuid: &str, device: &DeviceReading) -> v1::Device {
        let identity = &device.identity;
        v1::Device {
            gpu_uuid: uuid.to_owned(),
            index: identity.index,
            pci_bus_id: identity.pci_bus_id.as_deref().map(str::to_owned),
            model: identity.model.as_deref().map(str::to_owned),
            driver_version: identity.driver_version.as_deref().map(str::to_owned),
            cuda_version: identity.cuda_version.as_deref().map(str::to_owned),
            compute_capability: identity.compute_capability.as_deref().map(str::to_owned),
            mig_on: identity.mig_on,
            health: wire_health(device.health).into(),
            numa_node: identity.numa_node,
            readings: device_readings(device),
            figures: wire_figures(&device.figures),
            xids: device.xids.iter().map(wire_xid).collect(),
            hears_xids: device.hears_xids,
            suggestion: self.suggestion(device),
            sources: device.sources.iter().map(wire_source).collect(),
            instances: device.instances.iter().map(|it| self.instance(device, it)).collect(),
        }
    }

    fn suggestion(&self, device: &DeviceReading) -> Option<v1::Suggestion> {
        let readings = &self.seen.readings;
        let found = advice::suggestion(readings.at, &readings.nvml.state, device)?;
        Some(v1::Suggestion { action: found.action.into(), reason: found.reason.to_owned() })
    }

    fn instance(&self, device: &DeviceReading, instance: &InstanceReading) -> v1::Instance {
        let (id, mig) = (&instance.id, instance.mig.as_ref());
        let verdict = self.seen.verdicts.get(id);
        let class = verdict.map_or(v1::Class::Unknown, |it| wire_class(it.class));
        let holders = self.seen.views.get(id).and_then(|it| it.holders.as_deref());
        let began = self.since.get(id).copied().unwrap_or(self.seen.readings.at);
        v1::Instance {
            mig_uuid: id.mig.as_deref().map(str::to_owned),
            class: class.into(),
            class_since_ns: began.0,
            reason: verdict.map_or("it was not classified", |it| it.reason).to_owned(),
            holders: holders
                .unwrap_or_default()
                .iter()
                .map(|it| live_holder(&self.seen.readings, instance, it))
                .collect(),
            evidence: verdict.map(|it| evidence(&it.evidence)),
            memory_total_bytes: instance.memory_total_bytes,
            memory_free_bytes: memory_free(&device.counters, instance),
            figures: wire_figures(&instance.figures),
            mig_profile: mig.and_then(|it| it.profile.as_deref()).map(str::to_owned),
            gpu_instance: mig.and_then(|it| it.gpu_instance),
            compute_instance: mig.and_then(|it| it.compute_instance),
        }
    }
}

/// `None` when nothing was read at this tick: what never changes is not a reading.
fn device_readings(device: &DeviceReading) -> Option<v1::DeviceReadings> {
    let (identity, counters) = (&device.identity, &device.counters);
    let hertz = |mhz: u32| u64::from(mhz) * 1_000_000;
    (*counters != Counters::default()).then(|| v1::DeviceReadings {
        busy_ratio: counters.busy.map(Percent::ratio),
        memory_total_bytes: identity.memory_total_bytes,
        memory_used_bytes: counters.memory_used_bytes,
        memory_reserved_bytes: counters.memory_reserved_bytes,
        memory_free_bytes: counters.memory_free_bytes,
        power_mw: counters.power_mw,
        power_limit_mw: identity.power_limit_mw,
        energy_mj: counters.energy_mj,
        temperature_celsius: counters.temperature_celsius,
        sm_clock_hz: counters.sm_clock_mhz.map(hertz),
        memory_clock_hz: counters.memory_clock_mhz.map(hertz),
        memory_busy_ratio: counters.memory_busy.map(Percent::ratio),
    })
}

/// Of the device as the driver says; of a MIG instance what is left. Where the driver does not list
/// its own part, that part is in `used`.
fn memory_free(device: &Counters, instance: &InstanceReading) -> Option<u64> {
    if instance.id.mig.is_none() {
        return device.memory_free_bytes;
    }
    let left = instance.memory_total_bytes?.checked_sub(instance.memory_used_bytes?)?;
    match instance.memory_reserved_bytes {
        Some(reserved) => left.checked_sub(reserved),
        None => Some(left),
    }
}

fn live_holder(
    readings: &Readings,
    instance: &InstanceReading,
    view: &HolderView,
) -> v1::LiveHolder {
    v1::LiveHolder {
        holder: Some(wire_holder(&view.holder)),
        processes: view.processes,
        memory_bytes: view.memory_bytes,
        last_launch_age_ns: match view.last_launch {
            LastLaunch::At(at) => Some(readings.at.since(at)),
            LastLaunch::Unknown | LastLaunch::Never => None,
        },
        sm_ratio: sm_ratio(readings, instance, &view.holder),
        cuda: view.cuda.as_ref().map(wire_counts),
    }
}

/// Of all processes of a holder on an instance; `None` when one of them has no sample.
fn sm_ratio(readings: &Readings, instance: &InstanceReading, holder: &Holder) -> Option<f64> {
    let listed = instance.processes.as_deref()?.iter();
    let own = listed
        .filter(|it| it.process.and_then(|process| readings.holders.get(&process)) == Some(holder));
    let percents: Option<Vec<f64>> = own.map(|it| it.sm.map(Percent::ratio)).collect();
    let percents = percents.filter(|it| !it.is_empty())?;
    Some(percents.iter().sum::<f64>().min(1.0))
}

fn evidence(evidence: &classify::Evidence) -> v1::Evidence {
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
        hooks_slow: tracing.hooks_slow,
        lost: tracing.lost.iter().map(loss).collect(),
        sampling_factor: tracing.sampling.as_ref().map(|it| it.factor),
        sampling_reason: tracing.sampling.as_ref().map_or_else(String::new, |it| it.reason.clone()),
        memory_held_back: tracing.memory_held_back.clone(),
    }
}

fn loss((cause, count): (&&'static str, &u64)) -> v1::TracingLoss {
    v1::TracingLoss { cause: (*cause).to_owned(), count: *count }
}

fn traced_memory((holder, memory): (&Holder, Option<CudaMemory>)) -> v1::TracedMemory {
    v1::TracedMemory {
        holder: Some(wire_holder(holder)),
        live_bytes: memory.map(|it| it.live_bytes),
        peak_bytes: memory.map(|it| it.peak_bytes),
        host_bytes: memory.map(|it| it.host_bytes),
    }
}

fn wire_health(health: Health) -> v1::Health {
    match health {
        Health::Ok => v1::Health::Ok,
        Health::Degraded => v1::Health::Degraded,
        Health::Hung => v1::Health::Hung,
        Health::Lost => v1::Health::Lost,
        Health::ResetRequired => v1::Health::ResetRequired,
        Health::Released => v1::Health::Released,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proto::cuda::Counts;
    use proto::telemetry::v1;

    use super::{live_update, memory_free};
    use crate::accounting::Observation;
    use crate::attribution::{self, fixtures};
    use crate::classify::{Policy, classify};
    use crate::config::Allocations;
    use crate::model::ids::InstanceId;
    use crate::model::readings::{Counters, Health, InstanceReading, NvmlState, Readings};
    use crate::model::units::{BootNs, Percent};

    const AT: u64 = 9_000;

    fn observed(change: impl Fn(&mut Readings)) -> Observation {
        let mut readings = fixtures::readings(AT, 1);
        change(&mut readings);
        let views = attribution::attribute(None, &readings);
        let policy = Policy::new(Allocations::None);
        let devices = readings.nvml.devices.values();
        let instances =
            devices.flat_map(|device| device.instances.iter().map(move |it| (device, it)));
        let verdicts = instances
            .map(|(device, it)| {
                let verdict = classify(&policy, readings.at, device, it, &views[&it.id]);
                (it.id.clone(), verdict)
            })
            .collect();
        Observation { readings, views, verdicts }
    }

    fn update(seen: &Observation) -> v1::LiveUpdate {
        let identity = v1::NodeIdentity { node: "n".to_owned(), ..v1::NodeIdentity::default() };
        let since = BTreeMap::from([(fixtures::id(0), BootNs(5))]);
        live_update(&identity, seen, &since, 3, -1)
    }

    #[test]
    fn a_tick_is_carried_whole() {
        let update = update(&observed(|it| {
            fixtures::hold(it, 0, 10, Some(500));
            fixtures::trace(it, 10, 4);
            fixtures::instance(it, 0).processes.as_mut().unwrap()[0].sm = Percent::new(40);
            let device = it.nvml.devices.get_mut(&fixtures::device(0)).unwrap();
            device.counters.sm_clock_mhz = Some(1_410);
            device.counters.memory_free_bytes = Some(77);
        }));
        assert_eq!(update.clock, Some(v1::ClockReading { boot_ns: AT, real_ns: -1 }));
        assert_eq!((update.spool_records, update.nvml_state.as_str()), (3, ""));
        assert_eq!(update.node.unwrap().node, "n");
        assert_eq!(update.tracing.map(|it| (it.on, it.hooks_attached)), Some((true, 1)));
        let device = &update.devices[0];
        assert_eq!((device.gpu_uuid.as_str(), device.health()), ("GPU-0", v1::Health::Ok));
        let readings = device.readings.unwrap();
        assert_eq!((readings.power_mw, readings.sm_clock_hz), (Some(70_000), Some(1_410_000_000)));
        let instance = &device.instances[0];
        assert_eq!((instance.class_since_ns, instance.memory_free_bytes), (5, Some(77)));
        assert_eq!(instance.evidence.unwrap().processes, Some(1));
        let holder = &instance.holders[0];
        assert_eq!(holder.holder.as_ref().unwrap().tenant, "unit-10");
        assert_eq!((holder.processes, holder.memory_bytes), (1, Some(500)));
        assert_eq!(holder.sm_ratio, Some(0.4));
        assert_eq!(Counts::of(holder.cuda.as_ref().unwrap()).launches(), 4);
    }

    #[test]
    fn what_was_not_read_is_absent_and_never_zero() {
        let update = update(&observed(|it| {
            it.nvml.state = NvmlState::Failed("no answer".to_owned());
            fixtures::hold(it, 0, 10, None);
            let device = it.nvml.devices.get_mut(&fixtures::device(0)).unwrap();
            device.health = Health::Lost;
            device.counters = Counters::default();
        }));
        assert_eq!(update.nvml_state, "no answer");
        let device = &update.devices[0];
        assert_eq!((device.readings, device.index, device.model.as_ref()), (None, None, None));
        let holder = &device.instances[0].holders[0];
        assert_eq!(
            (holder.memory_bytes, holder.last_launch_age_ns, holder.sm_ratio, &holder.cuda),
            (None, None, None, &None)
        );
        let evidence = device.instances[0].evidence.unwrap();
        assert_eq!((evidence.power_mw, evidence.last_launch_age_ns), (None, None));
    }

    #[test]
    fn an_instance_that_nobody_judged_is_unknown() {
        let mut seen = observed(|_| {});
        seen.verdicts.clear();
        seen.views.clear();
        let identity = v1::NodeIdentity::default();
        let update = live_update(&identity, &seen, &BTreeMap::new(), 0, 0);
        let instance = &update.devices[0].instances[0];
        assert_eq!(instance.class(), v1::Class::Unknown);
        assert_eq!((instance.class_since_ns, instance.evidence), (AT, None));
        assert!(instance.holders.is_empty());
    }

    fn check_free(total: Option<u64>, reserved: Option<u64>, expected: Option<u64>) {
        let id = InstanceId { mig: Some("MIG-0".into()), ..fixtures::id(0) };
        let instance = InstanceReading {
            id,
            busy: None,
            memory_total_bytes: total,
            memory_used_bytes: Some(30),
            memory_reserved_bytes: reserved,
            processes: None,
            figures: Default::default(),
            mig: None,
        };
        let device = Counters { memory_free_bytes: Some(1), ..Counters::default() };
        assert_eq!(memory_free(&device, &instance), expected);
    }

    #[test]
    fn memory_of_a_mig_instance_is_what_is_left() {
        check_free(Some(100), Some(5), Some(65));
        check_free(Some(100), None, Some(70));
        check_free(None, Some(5), None);
        // The figures contradict each other.
        check_free(Some(20), None, None);
        check_free(Some(31), Some(5), None);
    }
}
