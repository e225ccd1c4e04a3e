//! What a device's answers mean. Values in, values out: no call, no clock.
//!
//! Whatever was not asked, was refused or cannot be true becomes `None`, never a zero.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::figures::Figures;
use crate::model::ids::{DeviceId, InstanceId};
use crate::model::readings::{Counters, InstanceReading, ProcessReading};
use crate::model::units::Percent;
use crate::samplers::nvml::activity::{Activity, SmUse};
use crate::samplers::nvml::answers::{Answers, Call, Listed, Memory, MigDevice};
use crate::samplers::nvml::gpm;
use crate::samplers::nvml::probe::{Instances, Plan};

/// No GPU runs this hot; a driver that says so is not speaking of degrees.
const MAX_CELSIUS: i32 = 200;

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
            Some(mig.iter().map(|it| mig_instance(id, plan, answers, it)).collect())
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
        figures: Figures::default(),
        mig: None,
    }
}

fn whole(id: &DeviceId, plan: Plan, answers: &Answers, activity: &Activity) -> InstanceReading {
    let memory = answers.memory.and_then(believable);
    let of_mps = |pid| answers.mps.iter().flatten().any(|it| it.pid == pid);
    let use_of = |pid| {
        if of_mps(pid) { activity.of_mps_client(pid) } else { activity.of_process(pid) }
    };
    InstanceReading {
        busy: counters(plan, answers).busy,
        processes: process_list(plan, answers).map(|it| processes(it, memory, use_of)),
        figures: worked(answers, None),
        ..with_memory(InstanceId { device: id.clone(), mig: None }, memory)
    }
}

/// Neither utilisation nor samples exist for an instance: what it does is known by its own counters,
/// or not at all. A GPU instance that several compute instances share does not say which of them.
fn mig_instance(
    id: &DeviceId,
    plan: Plan,
    answers: &Answers,
    device: &MigDevice,
) -> InstanceReading {
    let place = device.identity.gpu_instance;
    let all = answers.mig.iter().flatten();
    let alone = all.filter(|it| it.identity.gpu_instance == place).count() == 1;
    let figures = place.filter(|_| alone).map(|it| worked(answers, Some(it))).unwrap_or_default();
    let memory = device.memory.and_then(believable);
    let id = InstanceId { device: id.clone(), mig: Some(Arc::from(&*device.uuid)) };
    let listed = device.processes.as_deref().filter(|_| plan.lists_processes);
    InstanceReading {
        busy: gpm::decode::busy(&figures),
        figures,
        mig: Some(device.identity.clone()),
        processes: listed.map(|it| processes(merged([it]), memory, |_| SmUse::default())),
        ..with_memory(id, memory)
    }
}

/// What the counters of a device, or of one of its GPU instances, say.
fn worked(answers: &Answers, gpu_instance: Option<u32>) -> Figures {
    let values = answers.gpm.as_ref().and_then(|it| it.get(&gpu_instance));
    values.map(|it| gpm::decode::figures(it)).unwrap_or_default()
}

/// The end of an instance's name: `NVIDIA H100 80GB HBM3 MIG 1g.10gb`.
pub(crate) fn mig_profile(name: &str) -> Option<&str> {
    name.rsplit_once("MIG ").map(|(_, profile)| profile).filter(|it| !it.is_empty())
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
    use_of: impl Fn(u32) -> SmUse,
) -> Vec<ProcessReading> {
    let most = memory.map_or(u64::MAX - 1, |it| it.total);
    listed
        .into_iter()
        .map(|(tgid, memory)| {
            let used = use_of(tgid);
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
pub(crate) fn believable(memory: Memory) -> Option<Memory> {
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{counters, instances, only_bit};
    use crate::model::ids::DeviceId;
    use crate::model::readings::{Counters, InstanceReading, MigIdentity};
    use crate::model::units::Percent;
    use crate::samplers::nvml::activity::Activity;
    use crate::samplers::nvml::answers::{
        Answers, Call, Listed, Memory, MigDevice, Refusal, Sample, Utilization,
    };
    use crate::samplers::nvml::probe::{Facts, Plan};

    const NOW: u64 = 1_700_000_000_000_000;

    fn capable() -> Answers {
        Answers {
            mig_on: Some(false),
            utilization: Some(Utilization { gpu: 60, memory: 20 }),
            memory: Some(Memory { total: 1000, used: 300, free: 690, reserved: Some(10) }),
            power_mw: Some(250_000),
            energy_mj: Some(7_000),
            temperature_celsius: Some(41),
            sm_clock_mhz: Some(1980),
            memory_clock_mhz: Some(2619),
            compute: Some(vec![Listed { pid: 7, memory: 200 }, Listed { pid: 8, memory: 100 }]),
            graphics: Some(Vec::new()),
            mps: Some(Vec::new()),
            samples: Some(vec![Sample { pid: 7, at_us: NOW, sm: 55 }]),
            mig: None,
            gpm: None,
            figures: None,
            fields: Vec::new(),
            codes: [].into(),
            refused: [(Call::MigDevices, Refusal::NotSupported)].into(),
        }
    }

    fn plan(answers: &Answers) -> Plan {
        Plan::from_facts(&Facts::from_answers(answers, true))
    }

    fn read(answers: &Answers) -> (Counters, Vec<InstanceReading>) {
        let plan = plan(&capable());
        let mut cursor = crate::samplers::nvml::activity::Cursor::default();
        let activity = cursor.consume(NOW - 1_000_000, NOW, answers);
        let id = DeviceId(Arc::from("GPU-1"));
        (counters(plan, answers), instances(&id, plan, answers, &activity).unwrap())
    }

    fn only(answers: &Answers) -> InstanceReading {
        let [instance] = <[InstanceReading; 1]>::try_from(read(answers).1).unwrap();
        instance
    }

    #[test]
    fn a_whole_device_says_everything() {
        let (counters, _) = read(&capable());
        assert_eq!(counters.busy, Percent::new(60));
        assert_eq!(counters.memory_used_bytes, Some(300));
        assert_eq!(counters.energy_mj, Some(7_000));
        let instance = only(&capable());
        assert_eq!(instance.busy, Percent::new(60));
        assert_eq!(instance.memory_reserved_bytes, Some(10));
        let processes = instance.processes.unwrap();
        let said = |it: &super::ProcessReading| (it.tgid, it.memory_bytes, it.sm_weight);
        assert_eq!(
            processes.iter().map(said).collect::<Vec<_>>(),
            [(7, Some(200), Some(55)), (8, Some(100), Some(0))]
        );
    }

    /// Each answer taken away, or replaced by what drivers say when they do not know.
    #[test]
    fn losing_an_answer_never_invents_a_reading() {
        let without = |change: fn(&mut Answers)| {
            let mut answers = capable();
            change(&mut answers);
            (read(&answers).0, only(&answers))
        };
        let changes: [fn(&mut Answers); 2] = [
            |it| it.utilization = None,
            |it| it.utilization = Some(Utilization { gpu: 2_147_483_632, memory: 101 }),
        ];
        for change in changes {
            let (counters, instance) = without(change);
            assert_eq!((counters.busy, counters.memory_busy, instance.busy), (None, None, None));
        }
        let changes: [fn(&mut Answers); 4] = [
            |it| it.memory = None,
            |it| it.memory.as_mut().unwrap().total = u64::MAX,
            |it| it.memory.as_mut().unwrap().used = 1001,
            |it| it.memory = Some(Memory { total: 0, used: 0, free: 0, reserved: None }),
        ];
        for change in changes {
            let (counters, instance) = without(change);
            assert_eq!((counters.memory_used_bytes, counters.memory_free_bytes), (None, None));
            assert_eq!((instance.memory_total_bytes, instance.memory_used_bytes), (None, None));
        }
        let (counters, _) = without(|it| {
            it.power_mw = Some(u32::MAX);
            it.energy_mj = Some(u64::MAX);
            it.temperature_celsius = Some(u32::MAX);
            it.sm_clock_mhz = Some(u32::MAX);
            it.memory_clock_mhz = None;
        });
        assert_eq!((counters.power_mw, counters.energy_mj), (None, None));
        assert_eq!((counters.temperature_celsius, counters.sm_clock_mhz), (None, None));
        assert_eq!(counters.memory_clock_mhz, None);
    }

    #[test]
    fn an_empty_list_is_not_the_absence_of_one() {
        let processes = |change: fn(&mut Answers)| {
            let mut answers = capable();
            change(&mut answers);
            only(&answers).processes.map(|it| it.len())
        };
        assert_eq!(processes(|it| it.compute = Some(Vec::new())), Some(0));
        assert_eq!(processes(|it| it.compute = None), None);
        // Any list that should be there may hide a holder.
        assert_eq!(processes(|it| it.graphics = None), None);
        assert_eq!(processes(|it| it.mps = None), None);
    }

    #[test]
    fn a_kind_of_process_that_a_device_does_not_have_hides_nobody() {
        let no_mps = [(Call::MpsProcesses, Refusal::NotSupported)].into();
        let answers = Answers { mps: None, refused: no_mps, ..capable() };
        let activity = Activity::Unknown;
        let id = DeviceId(Arc::from("GPU-1"));
        let instances = instances(&id, plan(&answers), &answers, &activity).unwrap();
        assert_eq!(instances[0].processes.as_ref().map(Vec::len), Some(2));
    }

    #[test]
    fn a_process_in_two_lists_is_one() {
        let listed = |pid, memory| Some(vec![Listed { pid, memory }, Listed { pid: 0, memory }]);
        let memory = |compute, graphics| {
            let answers =
                Answers { compute: listed(7, compute), graphics: listed(7, graphics), ..capable() };
            let [process] = only(&answers).processes.unwrap()[..] else { panic!("one process") };
            process.memory_bytes
        };
        assert_eq!(memory(200, 150), Some(200));
        assert_eq!(memory(u64::MAX, 150), Some(150));
        assert_eq!(memory(200, u64::MAX), Some(200));
        assert_eq!(memory(u64::MAX, u64::MAX), None);
        // More than the device has.
        assert_eq!(memory(1001, 1001), None);
    }

    #[test]
    fn without_samples_the_use_of_a_process_is_unknown() {
        let answers = Answers { samples: None, ..capable() };
        let processes = only(&answers).processes.unwrap();
        assert!(processes.iter().all(|it| it.sm_weight.is_none() && it.sm.is_none()));
    }

    #[test]
    fn a_mig_instance_has_memory_and_processes_and_no_use() {
        let mig = MigDevice {
            uuid: "MIG-1".to_owned(),
            identity: MigIdentity::default(),
            memory: Some(Memory { total: 100, used: 40, free: 60, reserved: Some(0) }),
            processes: Some(vec![Listed { pid: 7, memory: u64::MAX }]),
        };
        let answers = Answers {
            mig_on: Some(true),
            mig: Some(vec![mig.clone(), MigDevice { processes: None, memory: None, ..mig }]),
            ..capable()
        };
        let plan = plan(&answers);
        let id = DeviceId(Arc::from("GPU-1"));
        assert_eq!(counters(plan, &answers).busy, None);
        let instances = instances(&id, plan, &answers, &Activity::Unknown).unwrap();
        assert!(instances.iter().all(|it| it.busy.is_none() && it.id.mig.is_some()));
        assert_eq!(instances[0].memory_used_bytes, Some(40));
        let process = instances[0].processes.as_ref().unwrap()[0];
        assert_eq!((process.tgid, process.memory_bytes, process.sm_weight), (7, None, None));
        assert_eq!((instances[1].memory_used_bytes, &instances[1].processes), (None, &None));
    }

    #[test]
    fn a_mask_of_one_bit_names_it() {
        assert_eq!(only_bit(&[0, 1]), Some(64));
        assert_eq!(only_bit(&[2]), Some(1));
        assert_eq!(only_bit(&[3]), None);
        assert_eq!(only_bit(&[0, 0]), None);
        assert_eq!(only_bit(&[]), None);
    }
}
