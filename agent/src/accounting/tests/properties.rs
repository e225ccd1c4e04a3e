//! Random worlds against a tiny model: time and energy that went in come out, once.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::{Strategy, any, prop, prop_assert, prop_assert_eq, proptest};

use super::observe;
use crate::accounting::tiles::{LONGEST_NS, OpenTiles};
use crate::accounting::{Observation, slice};
use crate::attribution::fixtures;
use crate::model::ids::{InstanceId, ProcessId};
use crate::model::readings::{Health, NvmlState, Readings};
use crate::model::units::BootNs;
use crate::model::usage::{Share, Tile};

const SECOND: u64 = 1_000_000_000;

/// What happens to a device at one tick.
#[derive(Clone, Debug)]
struct DeviceTick {
    health: Health,
    busy: Option<u32>,
    /// `None` = the driver gives no list.
    processes: Option<Vec<ListedTick>>,
    energy: Option<u64>,
    memory: Option<u64>,
}

#[derive(Clone, Debug)]
struct ListedTick {
    tgid: u32,
    life: u64,
    resolved: bool,
    named: bool,
    sm: Option<u64>,
}

#[derive(Clone, Debug)]
struct Tick {
    length_ns: u64,
    nvml_ok: bool,
    devices: Vec<DeviceTick>,
}

fn listed() -> impl Strategy<Value = ListedTick> {
    (0..4_u32, 0..2_u64, any::<bool>(), any::<bool>(), prop::option::of(0..5_u64)).prop_map(
        |(tgid, life, resolved, named, sm)| ListedTick { tgid, life, resolved, named, sm },
    )
}

fn device() -> impl Strategy<Value = DeviceTick> {
    let health = prop::sample::select(vec![
        Health::Ok,
        Health::Ok,
        Health::Ok,
        Health::Degraded,
        Health::Hung,
        Health::Lost,
        Health::ResetRequired,
    ]);
    (
        health,
        prop::option::weighted(0.9, 0..=100_u32),
        prop::option::weighted(0.9, prop::collection::vec(listed(), 0..4)),
        prop::option::weighted(0.9, 0..1_000_000_u64),
        prop::option::weighted(0.9, 0..1_u64 << 40),
    )
        .prop_map(|(health, busy, processes, energy, memory)| DeviceTick {
            health,
            busy,
            processes,
            energy,
            memory,
        })
}

fn tick() -> impl Strategy<Value = Tick> {
    let length = proptest::prop_oneof![
        20 => 0..2 * SECOND,
        1 => 0..3 * LONGEST_NS,
    ];
    (length, prop::bool::weighted(0.9), prop::collection::vec(device(), 2))
        .prop_map(|(length_ns, nvml_ok, devices)| Tick { length_ns, nvml_ok, devices })
}

fn readings(at: u64, tick: &Tick) -> Readings {
    let mut readings = fixtures::readings(at, 2);
    if !tick.nvml_ok {
        readings.nvml.state = NvmlState::Failed("no answer".to_owned());
    }
    for (index, device) in (0_u32..).zip(&tick.devices) {
        apply(&mut readings, index, device);
    }
    readings
}

fn apply(readings: &mut Readings, index: u32, tick: &DeviceTick) {
    for process in tick.processes.iter().flatten() {
        fixtures::unresolved(readings, index, process.tgid);
        let id = ProcessId { tgid: process.tgid, start_ticks: process.life };
        if process.resolved {
            readings.holders.insert(id, fixtures::holder(&format!("unit-{}", process.tgid % 3)));
        }
        let listed = fixtures::instance(readings, index).processes.as_mut().unwrap();
        let last = listed.last_mut().unwrap();
        last.process = process.named.then_some(id);
        last.sm_weight = process.sm;
    }
    if tick.processes.is_none() {
        fixtures::instance(readings, index).processes = None;
    }
    let instance = fixtures::instance(readings, index);
    instance.memory_used_bytes = tick.memory;
    instance.busy = tick.busy.and_then(crate::model::units::Percent::new);
    let device = readings.nvml.devices.get_mut(&fixtures::device(index)).unwrap();
    device.health = tick.health;
    device.counters.energy_mj = tick.energy;
}

/// Slices of a run of ticks, and when the run began and ended.
fn run(ticks: &[Tick]) -> (Vec<Vec<Tile>>, u64, u64) {
    let mut at = 5 * SECOND;
    let mut previous: Option<Observation> = None;
    let mut slices = Vec::new();
    for tick in ticks {
        at += tick.length_ns;
        let next = observe(previous.as_ref(), readings(at, tick));
        slices.extend(previous.as_ref().map(|it| slice(it, &next)));
        previous = Some(next);
    }
    (slices, 5 * SECOND + ticks[0].length_ns, at)
}

fn sums<'a>(tiles: impl Iterator<Item = &'a Tile>) -> BTreeMap<(InstanceId, Share), u128> {
    let mut sums = BTreeMap::new();
    for tile in tiles {
        for (share, nanoseconds) in tile.shares.iter().filter(|(_, it)| **it > 0) {
            *sums.entry((tile.id.clone(), share.clone())).or_default() += u128::from(*nanoseconds);
        }
    }
    sums
}

/// Invariant 2: contiguous from the first to the last tick, without a hole or an overlap.
fn assert_contiguous(tiles: &[Tile], start: u64, end: u64) {
    for index in 0..2 {
        let mut at = BootNs(start);
        for tile in tiles.iter().filter(|it| it.id == fixtures::id(index)) {
            assert_eq!(tile.start, at);
            assert!(tile.conserves(), "{tile:?}");
            assert!(tile.span() <= LONGEST_NS);
            at = tile.end;
        }
        assert_eq!(at, BootNs(end));
    }
}

proptest! {
    #[test]
    fn time_is_conserved(ticks in prop::collection::vec(tick(), 2..30)) {
        let (slices, start, end) = run(&ticks);
        let flat: Vec<&Tile> = slices.iter().flatten().collect();
        prop_assert!(flat.iter().all(|it| it.conserves()));
        let mut open = OpenTiles::default();
        let mut tiles = Vec::new();
        for slice in &slices {
            slice.iter().for_each(|it| open.add(it.clone()));
            let at = slice.first().map_or(BootNs(0), |it| it.end);
            tiles.extend(open.close(at, Duration::from_secs(10)));
        }
        tiles.extend(open.close_all());
        assert_contiguous(&tiles, start, end);
        prop_assert_eq!(sums(tiles.iter()), sums(flat.into_iter()));
    }
}
