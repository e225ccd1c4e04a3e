//! What a device's answers mean. Values in, values out: no call, no clock.
//!
//! Whatever was not asked, was refused or cannot be true becomes `None`, never a zero.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::ids::{DeviceId, InstanceId};
use crate::model::readings::{Counters, Health, InstanceReading, ProcessReading};
use crate::model::units::Percent;
use crate::samplers::nvml::activity::Activity;
use crate::samplers::nvml::answers::{Answers, Call, Listed, Memory, MigDevice, Refusal};
use crate::samplers::nvml::probe::{Instances, Plan};

/// No GPU runs this hot; a driver that says so is not speaking of degrees.
const MAX_CELSIUS: i32 = 200;

/// `Degraded` = a question that decides who used the device was answered before or is expected to
/// be, and failed. A temperature that cannot be read is an absent temperature and nothing more.
pub(crate) fn health(answers: &Answers) -> Health {
    let refused = |refusal| answers.refused.values().any(|it| *it == refusal);
    let not_listed = answers.refused.get(&Call::Handle) == Some(&Refusal::NotFound);
    if refused(Refusal::GpuLost) || not_listed {
        return Health::Lost;
    }
    if refused(Refusal::ResetRequired) {
        return Health::ResetRequired;
    }
    let blind = answers.refused.iter().any(|(call, refusal)| match call {
        Call::Handle => true,
        _ if *refusal == Refusal::DriverGone => true,
        _ => *refusal == Refusal::Failed && is_evidence(*call),
    });
    if blind { Health::Degraded } else { Health::Ok }
}

fn is_evidence(call: Call) -> bool {
    match call {
        Call::Handle
        | Call::MigMode
        | Call::Utilization
        | Call::Memory
        | Call::Energy
        | Call::ComputeProcesses
        | Call::GraphicsProcesses
        | Call::MpsProcesses
        | Call::ProcessUtilization
        | Call::MigDevices => true,
        Call::Open
        | Call::List
        | Call::Power
        | Call::Temperature
        | Call::SmClock
        | Call::MemoryClock => false,
    }
}

/// The device no longer has what its probe found: the plan is out of date.
pub(crate) fn plan_is_stale(answers: &Answers) -> bool {
    answers.refused.values().any(|it| it.is_a_fact())
}

pub(crate) fn counters(plan: Plan, answers: &Answers) -> Counters {
    let utilization = answers.utilization.filter(|_| plan.asks(Call::Utilization));
    let memory = answers.memory.and_then(believable);
    Counters {
        busy: utilization.and_then(|it| Percent::new(it.gpu)),
        memory_busy: utilization.and_then(|it| Percent::new(it.memory)),
        memory_used_bytes: memory.map(|it| it.used),
        memory_reserved_bytes: memory.and_then(|it| it.reserved),
        memory_free_bytes: memory.map(|it| it.free),
        power_mw: answers.power_mw.filter(|it| *it != u32::MAX).map(u64::from),
        energy_mj: answers.energy_mj.filter(|it| *it != u64::MAX),
        temperature_celsius: answers
            .temperature_celsius
            .and_then(|it| i32::try_from(it).ok())
            .filter(|it| *it <= MAX_CELSIUS),
        sm_clock_mhz: answers.sm_clock_mhz.filter(|it| *it != u32::MAX),
        memory_clock_mhz: answers.memory_clock_mhz.filter(|it| *it != u32::MAX),
    }
}

/// The device's instances; `None` when it is not known which there are.
pub(crate) fn instances(
    id: &DeviceId,
    plan: Plan,
    answers: &Answers,
    activity: &Activity,
) -> Option<Vec<InstanceReading>> {
    match plan.instances {
        Instances::Whole => Some(vec![whole(id, plan, answers, activity)]),
        Instances::Mig => {
            let mig = answers.mig.as_ref()?;
            Some(mig.iter().map(|it| mig_instance(id, plan, it)).collect())
        }
        Instances::Unmeasurable => None,
    }
}

/// An instance of which nothing is known but that it is there.
pub(crate) fn unmeasured(id: InstanceId) -> InstanceReading {
    InstanceReading {
        id,
        busy: None,
        memory_total_bytes: None,
        memory_used_bytes: None,
        memory_reserved_bytes: None,
        processes: None,
    }
}

fn whole(id: &DeviceId, plan: Plan, answers: &Answers, activity: &Activity) -> InstanceReading {
    let memory = answers.memory.and_then(believable);
    InstanceReading {
        busy: counters(plan, answers).busy,
        processes: process_list(plan, answers).map(|it| processes(it, memory, activity)),
        ..with_memory(InstanceId { device: id.clone(), mig: None }, memory)
    }
}

/// Neither utilisation nor samples exist for an instance: what it does is not known.
fn mig_instance(id: &DeviceId, plan: Plan, device: &MigDevice) -> InstanceReading {
    let memory = device.memory.and_then(believable);
    let id = InstanceId { device: id.clone(), mig: Some(Arc::from(&*device.uuid)) };
    let listed = device.processes.as_deref().filter(|_| plan.lists_processes);
    InstanceReading {
        processes: listed.map(|it| processes(merged([it]), memory, &Activity::Unknown)),
        ..with_memory(id, memory)
    }
}

fn with_memory(id: InstanceId, memory: Option<Memory>) -> InstanceReading {
    InstanceReading {
        memory_total_bytes: memory.map(|it| it.total),
        memory_used_bytes: memory.map(|it| it.used),
        memory_reserved_bytes: memory.and_then(|it| it.reserved),
        ..unmeasured(id)
    }
}

/// Compute, graphics and MPS processes together. One list that is missing may hide a holder, so
/// that the others do not make a list; a kind that the device does not have hides nobody.
fn process_list(plan: Plan, answers: &Answers) -> Option<BTreeMap<u32, u64>> {
    if !plan.asks(Call::ComputeProcesses) {
        return None;
    }
    let lists = [
        (Call::ComputeProcesses, &answers.compute),
        (Call::GraphicsProcesses, &answers.graphics),
        (Call::MpsProcesses, &answers.mps),
    ];
    let asked = lists.into_iter().filter(|(call, _)| plan.asks(*call));
    let lists: Option<Vec<&[Listed]>> = asked.map(|(_, list)| list.as_deref()).collect();
    Some(merged(lists?))
}

/// Memory by PID. A process may be in several lists, each time with all that it has.
fn merged<'list>(lists: impl IntoIterator<Item = &'list [Listed]>) -> BTreeMap<u32, u64> {
    let mut merged = BTreeMap::new();
    for row in lists.into_iter().flatten().filter(|it| it.pid != 0) {
        let memory = merged.entry(row.pid).or_insert(row.memory);
        *memory = match (*memory, row.memory) {
            (u64::MAX, known) | (known, u64::MAX) => known,
            (one, other) => one.max(other),
        };
    }
    merged
}

fn processes(
    listed: BTreeMap<u32, u64>,
    memory: Option<Memory>,
    activity: &Activity,
) -> Vec<ProcessReading> {
    let most = memory.map_or(u64::MAX - 1, |it| it.total);
    listed
        .into_iter()
        .map(|(tgid, memory)| {
            let used = activity.of_process(tgid);
            ProcessReading {
                process: None,
                tgid,
                memory_bytes: Some(memory).filter(|it| *it <= most),
                sm_weight: used.weight,
                sm: used.mean,
            }
        })
        .collect()
}

/// A driver that does not know a size sets all bits, and parts that exceed the whole are not sizes.
fn believable(memory: Memory) -> Option<Memory> {
    let within = |part: u64| part <= memory.total;
    let known = memory.total != u64::MAX && memory.total != 0;
    let reserved = memory.reserved.filter(|it| within(*it));
    (known && within(memory.used) && within(memory.free)).then_some(Memory { reserved, ..memory })
}

/// The number of the only bit that is set.
pub(crate) fn only_bit(mask: &[u64]) -> Option<u32> {
    let ones: u32 = mask.iter().map(|it| it.count_ones()).sum();
    let word = mask.iter().position(|it| *it != 0).filter(|_| ones == 1)?;
    Some(u32::try_from(word).ok()? * u64::BITS + mask[word].trailing_zeros())
}
