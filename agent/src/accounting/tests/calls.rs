//! Random processes against a tiny model: every call that the kernel counted is in one activity.

use std::collections::BTreeMap;

use proptest::prelude::{Strategy, any, prop, prop_assert, prop_assert_eq, proptest};

use crate::accounting::cuda::CudaMeter;
use crate::attribution::fixtures;
use crate::model::ids::{DeviceId, ProcessId};
use crate::model::readings::{
    Counter, CudaCounts, CudaDevice, CudaMemory, CudaProcess, Readings, Sampling,
};
use crate::model::units::BootNs;
use crate::model::usage::CudaActivity;

/// Devices that a process may use; it calls them by their place here.
const DEVICES: u8 = 3;

/// What a process does between two readings.
#[derive(Clone, Debug)]
struct Work {
    tgid: u32,
    device: u8,
    launches: u64,
    allocations: u64,
    then: Then,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    GoesOn,
    Executes,
    Exits,
    /// As above, and nobody is told.
    ExecutesUntold,
    ExitsUntold,
}

/// What happens to the tracer at a reading.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Tracer {
    On,
    /// Says nothing; what it counts meanwhile is said later.
    Off,
    Sampled,
    /// Starts anew, with everything told, and counts from zero.
    Restarted,
}

#[derive(Clone, Debug)]
struct Tick {
    works: Vec<Work>,
    tracer: Tracer,
    /// The driver gives its list.
    listed: bool,
    resolved: bool,
    closes: bool,
}

fn work() -> impl Strategy<Value = Work> {
    let then = prop::sample::select(vec![
        Then::GoesOn,
        Then::GoesOn,
        Then::GoesOn,
        Then::Executes,
        Then::Exits,
        Then::ExecutesUntold,
        Then::ExitsUntold,
    ]);
    (0..4_u32, 0..DEVICES, 0..9_u64, 0..3_u64, then).prop_map(
        |(tgid, device, launches, allocations, then)| Work {
            tgid,
            device,
            launches,
            allocations,
            then,
        },
    )
}

fn tick() -> impl Strategy<Value = Tick> {
    let tracer = prop::sample::select(vec![
        Tracer::On,
        Tracer::On,
        Tracer::On,
        Tracer::Off,
        Tracer::Sampled,
        Tracer::Restarted,
    ]);
    (prop::collection::vec(work(), 0..6), tracer, any::<bool>(), any::<bool>(), any::<bool>())
        .prop_map(|(works, tracer, listed, resolved, closes)| Tick {
            works,
            tracer,
            listed,
            resolved,
            closes,
        })
}

/// One program: its counts by device. The first device that it uses is its home.
#[derive(Clone, Debug, Default)]
struct Program {
    life: u64,
    /// How many the process ran before.
    before: u64,
    home: Option<u8>,
    counts: BTreeMap<u8, CudaCounts>,
}

#[derive(Debug, Default)]
struct World {
    at: u64,
    programs: BTreeMap<u32, Program>,
    replaced: Vec<(ProcessId, CudaProcess)>,
    ended: Vec<(ProcessId, CudaProcess)>,
    truth: BTreeMap<Option<DeviceId>, CudaCounts>,
    /// Of programs whose end was not told.
    overflow: CudaCounts,
    /// Time for which hooks were on.
    watched: u64,
    was_on: bool,
    /// Which set of counts goes on.
    epoch: u64,
}

fn uuid(device: u8) -> [u8; 16] {
    [device + 1; 16]
}

fn device_id(device: u8) -> DeviceId {
    let pair = format!("{:02x}", device + 1);
    let groups = [4, 2, 2, 2, 6].map(|it| pair.repeat(it));
    DeviceId(format!("GPU-{}", groups.join("-")).into())
}

impl World {
    fn tick(&mut self, tick: &Tick) -> Readings {
        self.at += 1_000;
        if tick.tracer == Tracer::Restarted && self.was_on {
            self.programs.values_mut().for_each(|it| it.counts.clear());
            self.overflow = CudaCounts::default();
            self.epoch += 1;
        } else {
            tick.works.iter().for_each(|it| self.work(it));
        }
        let mut readings = self.readings(tick.listed);
        let on = tick.tracer != Tracer::Off;
        self.watched += match tick.tracer {
            _ if !on || !self.was_on => 0,
            Tracer::Sampled => 250,
            _ => 1_000,
        };
        self.was_on = on;
        readings.cuda.tracing.on = on;
        readings.cuda.tracing.sampling = (tick.tracer == Tracer::Sampled)
            .then(|| Sampling { factor: 4.0, reason: String::new() });
        if on {
            readings.cuda.lineage.epoch = self.epoch;
            self.tell(&mut readings);
        }
        if tick.resolved {
            let ids: Vec<_> = readings.cuda.processes.keys().copied().collect();
            for id in ids {
                let name = format!("unit-{}", id.tgid % 2);
                readings.holders.insert(id, fixtures::holder(&name));
            }
        }
        readings
    }

    fn work(&mut self, work: &Work) {
        let program = self.programs.entry(work.tgid).or_default();
        let home = *program.home.get_or_insert(work.device);
        let counts = program.counts.entry(work.device).or_default();
        let mut added = fixtures::launched(work.launches);
        added[Counter::DeviceAllocations] = work.allocations;
        *counts = counts.plus(&added);
        let truth = self.truth.entry(Some(device_id(work.device))).or_default();
        *truth = truth.plus(&added);
        if work.then == Then::GoesOn {
            return;
        }
        let id = ProcessId { tgid: work.tgid, start_ticks: program.life };
        let ends = matches!(work.then, Then::Exits | Then::ExitsUntold);
        let last = process(program, home, ends);
        match work.then {
            Then::Exits => self.ended.push((id, last)),
            Then::Executes => self.replaced.push((id, last)),
            _ => self.overflow = self.overflow.plus(&last.counts),
        }
        let (life, before) = (program.life + u64::from(ends), program.before + 1);
        *program = Program { life, before, ..Program::default() };
    }

    fn readings(&self, listed: bool) -> Readings {
        let mut readings = fixtures::readings(self.at, 1);
        let like = readings.nvml.devices.remove(&fixtures::device(0)).unwrap();
        for device in 0..DEVICES {
            let mut reading = like.clone();
            reading.instances[0].id.device = device_id(device);
            reading.instances[0].processes = listed.then(Vec::new);
            readings.nvml.devices.insert(device_id(device), reading);
        }
        readings
    }

    fn tell(&mut self, readings: &mut Readings) {
        // A process that ran another program before it exited is told of by both.
        readings.cuda.overflow = self.overflow;
        readings.cuda.replaced = std::mem::take(&mut self.replaced);
        readings.cuda.processes.extend(std::mem::take(&mut self.ended));
        for (tgid, program) in &self.programs {
            let id = ProcessId { tgid: *tgid, start_ticks: program.life };
            let home = program.home.unwrap_or_default();
            readings.cuda.processes.insert(id, process(program, home, false));
        }
    }
}

fn process(program: &Program, home: u8, exited: bool) -> CudaProcess {
    let device = |it: u8| CudaDevice { ordinal: Some(it.into()), uuid: Some(uuid(it)) };
    let whole = whole(&program.counts);
    let elsewhere = program.counts.iter().filter(|(it, _)| **it != home);
    CudaProcess {
        elsewhere: elsewhere.map(|(it, counts)| (device(*it), *counts)).collect(),
        program: program.home.map(|_| program.before),
        home: program.home.map(device),
        memory: Some(CudaMemory::default()),
        exited,
        ..fixtures::cuda_process(7, whole)
    }
}

/// Every process names its devices: only what lost its owner has none.
fn add(counted: &mut BTreeMap<Option<DeviceId>, CudaCounts>, activity: &CudaActivity) {
    let sum = counted.entry(activity.device.clone()).or_default();
    *sum = sum.plus(&activity.counts);
}

fn whole<T>(counts: &BTreeMap<T, CudaCounts>) -> CudaCounts {
    counts.values().fold(CudaCounts::default(), |sum, it| sum.plus(it))
}

proptest! {
    #[test]
    fn every_call_is_counted_once_and_on_its_device(
        mut ticks in prop::collection::vec(tick(), 1..40)
    ) {
        // What is counted while it is off is said when it is on again.
        ticks.push(Tick { works: Vec::new(), tracer: Tracer::On, ..ticks[0].clone() });
        let mut world = World { epoch: 1, ..World::default() };
        let mut meter = CudaMeter::default();
        let mut previous = None;
        let mut counted = BTreeMap::new();
        let (mut end, mut watched) = (BootNs(1_000), 0);
        for tick in &ticks {
            let next = world.tick(tick);
            meter.advance(previous.as_ref(), &next);
            previous = Some(next);
            if tick.closes {
                for it in meter.close(BootNs(world.at)) {
                    prop_assert!(it.start == end && it.end == BootNs(world.at));
                    prop_assert!(it.memory_known || it.device.is_none());
                    prop_assert_eq!(it.watched_ns, world.watched - watched);
                    add(&mut counted, &it);
                }
                if world.at > end.0 {
                    (end, watched) = (BootNs(world.at), world.watched);
                }
            }
        }
        for it in meter.close(BootNs(world.at + 1)) {
            add(&mut counted, &it);
        }
        prop_assert_eq!(whole(&counted), whole(&world.truth));
        let lost = counted.remove(&None).is_some();
        for (device, truth) in &world.truth {
            let found = counted.get(device).copied().unwrap_or_default();
            let is_right = found == *truth || lost && truth.covers(&found);
            prop_assert!(is_right, "{found:?} of {truth:?}");
        }
    }
}
