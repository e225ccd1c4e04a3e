//! Readings for the tests of the pure half: idle devices, to which a test adds what it is about.

use std::collections::BTreeMap;

use crate::model::figures::Figures;
use crate::model::ids::{DeviceId, Holder, HolderKind, InstanceId, ProcessId};
use crate::model::metering::{Seen, SmActivity};
use crate::model::readings::{
    Counter, Counters, CudaCounts, CudaProcess, CudaReadings, DeviceReading, Health, Identity,
    InstanceReading, MigIdentity, NvmlReadings, NvmlState, ProcessReading, Readings, Tracing,
};
use crate::model::units::{BootNs, Percent};
use crate::model::usage::{Class, CudaActivity, Share, Tile};

pub(crate) fn device(index: u32) -> DeviceId {
    DeviceId(format!("GPU-{index}").into())
}

pub(crate) fn id(index: u32) -> InstanceId {
    InstanceId { device: device(index), mig: None }
}

pub(crate) fn process(tgid: u32) -> ProcessId {
    ProcessId { tgid, start_ticks: 1 }
}

pub(crate) fn holder(name: &str) -> Holder {
    Holder {
        kind: HolderKind::Unit,
        id: name.into(),
        tenant: name.into(),
        namespace: None,
        pod: None,
        container: None,
    }
}

/// `devices` idle devices without processes; tracing is on.
pub(crate) fn readings(at: u64, devices: u32) -> Readings {
    let tracing = Tracing { on: true, hooks_attached: 1, hooks_wanted: 1, ..Tracing::default() };
    Readings {
        at: BootNs(at),
        nvml: NvmlReadings {
            state: NvmlState::Ok,
            sees_processes: true,
            devices: (0..devices).map(|index| (device(index), idle(at, index))).collect(),
        },
        cuda: CudaReadings { tracing, ..CudaReadings::default() },
        holders: BTreeMap::new(),
    }
}

fn idle(at: u64, index: u32) -> DeviceReading {
    DeviceReading {
        inside_since: None,
        at: BootNs(at),
        health: Health::Ok,
        identity: Identity::default(),
        counters: Counters { energy_mj: Some(at), power_mw: Some(70_000), ..Counters::default() },
        figures: Figures::default(),
        xids: Vec::new(),
        hears_xids: true,
        sources: BTreeMap::new(),
        instances: vec![idle_instance(id(index))],
    }
}

fn idle_instance(id: InstanceId) -> InstanceReading {
    InstanceReading {
        id,
        busy: Percent::new(0),
        memory_total_bytes: Some(80 << 30),
        memory_used_bytes: Some(0),
        memory_reserved_bytes: Some(600 << 20),
        processes: Some(Vec::new()),
        figures: Figures::default(),
        mig: None,
    }
}

/// Turns MIG on, with one idle instance of each profile: `MIG-0`, `MIG-1` and so on.
pub(crate) fn cut(readings: &mut Readings, index: u32, profiles: &[&str]) {
    let device = readings.nvml.devices.get_mut(&device(index)).unwrap();
    device.identity.mig_on = Some(true);
    device.identity.mig_slices = Some(7);
    let instance = |(number, profile): (usize, &&str)| {
        let mig = Some(format!("MIG-{number}").into());
        let profile = Some((*profile).into());
        InstanceReading {
            mig: Some(MigIdentity { profile, ..MigIdentity::default() }),
            ..idle_instance(InstanceId { mig, ..id(index) })
        }
    };
    device.instances = profiles.iter().enumerate().map(instance).collect();
}

pub(crate) fn instance(readings: &mut Readings, index: u32) -> &mut InstanceReading {
    &mut readings.nvml.devices.get_mut(&device(index)).unwrap().instances[0]
}

pub(crate) fn busy(readings: &mut Readings, index: u32, percent: u32) {
    instance(readings, index).busy = Percent::new(percent);
}

/// A process of the holder `unit-TGID` on a device.
pub(crate) fn hold(readings: &mut Readings, index: u32, tgid: u32, memory: Option<u64>) {
    readings.holders.insert(process(tgid), holder(&format!("unit-{tgid}")));
    unresolved(readings, index, tgid);
    let listed = instance(readings, index).processes.as_mut().unwrap().last_mut().unwrap();
    listed.memory_bytes = memory;
}

/// A process on a device that nobody could resolve.
pub(crate) fn unresolved(readings: &mut Readings, index: u32, tgid: u32) {
    let listed = ProcessReading {
        process: Some(process(tgid)),
        tgid,
        memory_bytes: Some(1 << 30),
        sm_weight: None,
        sm: None,
    };
    instance(readings, index).processes.as_mut().unwrap().push(listed);
}

pub(crate) fn sm(readings: &mut Readings, index: u32, tgid: u32, weight: u64) {
    let listed = instance(readings, index).processes.as_mut().unwrap();
    listed.iter_mut().find(|it| it.tgid == tgid).unwrap().sm_weight = Some(weight);
}

/// Of device 0, about which nothing is known but its time.
pub(crate) fn tile(
    span: (u64, u64),
    shares: BTreeMap<Share, u64>,
    classes: BTreeMap<Class, u64>,
) -> Tile {
    Tile {
        id: id(0),
        start: BootNs(span.0),
        end: BootNs(span.1),
        shares,
        classes,
        energy: None,
        memory: None,
        sm: SmActivity::default(),
        seen: Some(Seen::default()),
        slices: None,
    }
}

/// Kernel launches and nothing else.
pub(crate) fn launched(launches: u64) -> CudaCounts {
    let mut counts = CudaCounts::default();
    counts[Counter::KernelLaunches] = launches;
    counts
}

/// Counted exactly, on a device that is not known.
pub(crate) fn activity(holder: Holder, span: (u64, u64), counts: CudaCounts) -> CudaActivity {
    CudaActivity {
        holder,
        start: BootNs(span.0),
        end: BootNs(span.1),
        device: None,
        counts,
        watched_ns: span.1 - span.0,
        memory_known: true,
    }
}

/// Traces a process in full, with `launches` so far.
pub(crate) fn trace(readings: &mut Readings, tgid: u32, launches: u64) {
    let last_launch = (launches > 0).then_some(readings.at);
    let traced =
        CudaProcess { last_launch, fully_hooked: true, ..cuda_process(1_000, launched(launches)) };
    readings.cuda.processes.insert(process(tgid), traced);
}

/// A process on devices that are not known.
pub(crate) fn cuda_process(uid: u32, counts: CudaCounts) -> CudaProcess {
    CudaProcess {
        uid,
        program: None,
        cgroup_id: None,
        counts,
        estimated: CudaCounts::default(),
        elsewhere: Vec::new(),
        home: None,
        memory: None,
        last_launch: None,
        fully_hooked: false,
        exited: false,
    }
}
