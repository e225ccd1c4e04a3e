//! Random worlds against a tiny model: time and energy that went in come out, once.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::{Strategy, any, prop, prop_assert, prop_assert_eq, proptest};

use super::observe;
use crate::accounting::tiles::{LONGEST_NS, OpenTiles};
use crate::accounting::{Meter, Observation, WATCHED_NS};
use crate::attribution::fixtures;
use crate::model::figures::Figure;
use crate::model::ids::{DeviceId, InstanceId, ProcessId};
use crate::model::metering::{EnergyMethod, Slices};
use crate::model::readings::{Health, NvmlState, Readings};
use crate::model::units::{BootNs, Percent, split};
use crate::model::usage::{Method, Share, Tile};

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
    /// Millionths of the time in which multiprocessors worked.
    sm_active: Option<u64>,
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
        Health::Released,
    ]);
    (
        health,
        prop::option::weighted(0.9, 0..=100_u32),
        prop::option::weighted(0.9, prop::collection::vec(listed(), 0..4)),
        // It often goes on, and sometimes back.
        prop::option::weighted(0.9, prop::sample::select(vec![3, 70_001, 70_001, 200_003])),
        prop::option::weighted(0.9, 0..1_u64 << 40),
        prop::option::weighted(0.7, 0..=1_000_000_u64),
    )
        .prop_map(|(health, busy, processes, energy, memory, sm_active)| DeviceTick {
            health,
            busy,
            processes,
            energy,
            memory,
            sm_active,
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

fn readings(at: u64, tick: &Tick, mig: bool) -> Readings {
    let mut readings = fixtures::readings(at, 2);
    if mig {
        fixtures::cut(&mut readings, 1, &["3g.40gb", "1g.10gb"]);
    }
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
    instance.busy = tick.busy.and_then(Percent::new);
    if let Some(millionths) = tick.sm_active {
        instance.figures.set(Figure::SmActive, millionths);
    }
    let device = readings.nvml.devices.get_mut(&fixtures::device(index)).unwrap();
    device.health = tick.health;
    device.counters.energy_mj = tick.energy;
}

/// Slices of a run of ticks, by an agent that remembers, and when each tick was.
fn run(ticks: &[Tick], mig: bool) -> (Vec<Vec<Tile>>, Vec<u64>) {
    let mut at = 5 * SECOND;
    let mut meter = Meter::default();
    let mut previous: Option<Observation> = None;
    let (mut slices, mut times) = (Vec::new(), Vec::new());
    for tick in ticks {
        at += tick.length_ns;
        times.push(at);
        let next = observe(previous.as_ref(), readings(at, tick, mig));
        slices.extend(previous.as_ref().map(|it| meter.slice(it, &next)));
        meter.learn(previous.as_ref().map(|it| &it.readings), &next.readings);
        previous = Some(next);
    }
    (slices, times)
}

/// The tiles that are made of slices.
fn joined(slices: &[Vec<Tile>]) -> Vec<Tile> {
    let mut open = OpenTiles::default();
    let mut tiles = Vec::new();
    for slice in slices {
        slice.iter().for_each(|it| open.add(it.clone()));
        let at = slice.first().map_or(BootNs(0), |it| it.end);
        tiles.extend(open.close(at, Duration::from_secs(10)));
    }
    tiles.extend(open.close_all());
    tiles
}

/// The model: what the counter of a device says of every span that was watched from end to end.
fn drawn(ticks: &[Tick], times: &[u64], device: usize) -> u128 {
    let counter = |tick: &Tick| {
        let it = &tick.devices[device];
        let answers = tick.nvml_ok && matches!(it.health, Health::Ok | Health::Degraded);
        it.energy.filter(|_| answers)
    };
    let pairs = ticks.windows(2).zip(times.windows(2));
    let spans = pairs.filter_map(|(ticks, times)| {
        let known = (1..=WATCHED_NS).contains(&(times[1] - times[0]));
        counter(&ticks[1])?.checked_sub(counter(&ticks[0])?).filter(|_| known)
    });
    spans.map(u128::from).sum()
}

fn energy_of<'a>(tiles: impl IntoIterator<Item = &'a Tile>, device: &DeviceId) -> u128 {
    let own = tiles.into_iter().filter(|it| it.id.device == *device);
    own.filter_map(|it| it.energy.as_ref()).map(|it| u128::from(it.mj)).sum()
}

type Parts = BTreeMap<(InstanceId, Share, Option<EnergyMethod>), u128>;

/// Energy by whose it is and how that was found.
fn parts<'a>(tiles: impl IntoIterator<Item = &'a Tile>) -> Parts {
    let mut parts = Parts::new();
    for (tile, energy) in tiles.into_iter().filter_map(|it| Some((it, it.energy.as_ref()?))) {
        for (share, mj) in &energy.shares {
            let key = (tile.id.clone(), share.clone(), energy.method);
            *parts.entry(key).or_default() += u128::from(*mj);
        }
    }
    parts
}

/// What was not known at an end of a span is not known of the span.
fn assert_not_guessed(slice: &[Tile], ticks: &[Tick]) {
    for tile in slice.iter().filter(|it| it.id == fixtures::id(0)) {
        let [before, after] = [&ticks[0], &ticks[1]].map(|it| {
            let device = &it.devices[0];
            let answers = it.nvml_ok && matches!(device.health, Health::Ok | Health::Degraded);
            answers && device.processes.is_some()
        });
        let unobserved = |it: &Share| matches!(it, Share::Unobserved(_));
        if !(before && after && tile.span() <= WATCHED_NS) {
            assert!(tile.shares.keys().all(unobserved), "{tile:?}");
            assert_eq!((tile.sm.measured_ns, tile.memory), (0, None));
        } else if ticks[1].devices[0].busy.is_none() {
            let guess = |it: &Share| matches!(it, Share::Active(..) | Share::HeldIdle(_));
            assert!(!tile.shares.keys().any(guess), "{tile:?}");
        }
        if ticks[1].devices[0].sm_active.is_none() {
            assert_eq!(tile.sm.measured_ns, 0);
        }
    }
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
fn assert_contiguous(tiles: &[Tile], id: &InstanceId, (start, end): (u64, u64)) {
    let mut at = BootNs(start);
    for tile in tiles.iter().filter(|it| it.id == *id) {
        assert_eq!(tile.start, at);
        assert!(tile.conserves(), "{tile:?}");
        assert!(tile.span() <= LONGEST_NS);
        assert!(tile.sm.active_ns <= tile.sm.measured_ns && tile.sm.measured_ns <= tile.span());
        let seen = tile.seen.unwrap();
        assert!(seen.process_ns.max(seen.healthy_ns) <= tile.span());
        at = tile.end;
    }
    assert_eq!(at, BootNs(end));
}

/// The parts of both devices.
fn instances(mig: bool) -> Vec<InstanceId> {
    let part = |name: &str| InstanceId { mig: Some(name.into()), ..fixtures::id(1) };
    let second = if mig {
        vec![part("MIG-0"), part("MIG-1"), part("unconfigured")]
    } else {
        vec![fixtures::id(1)]
    };
    [vec![fixtures::id(0)], second].concat()
}

proptest! {
    #[test]
    fn time_is_conserved(ticks in prop::collection::vec(tick(), 2..30), mig in any::<bool>()) {
        let (slices, times) = run(&ticks, mig);
        let flat: Vec<&Tile> = slices.iter().flatten().collect();
        prop_assert!(flat.iter().all(|it| it.conserves()));
        let tiles = joined(&slices);
        for id in instances(mig) {
            assert_contiguous(&tiles, &id, (times[0], times[times.len() - 1]));
        }
        prop_assert_eq!(sums(tiles.iter()), sums(flat.into_iter()));
        for (slice, ticks) in slices.iter().zip(ticks.windows(2)) {
            assert_not_guessed(slice, ticks);
        }
    }

    #[test]
    fn energy_is_conserved(ticks in prop::collection::vec(tick(), 2..30), mig in any::<bool>()) {
        let (slices, times) = run(&ticks, mig);
        let tiles = joined(&slices);
        for (index, device) in [0, 1].map(fixtures::device).iter().enumerate() {
            let expected = drawn(&ticks, &times, index);
            prop_assert_eq!(energy_of(slices.iter().flatten(), device), expected);
            prop_assert_eq!(energy_of(&tiles, device), expected, "joining loses nothing");
        }
        prop_assert_eq!(parts(&tiles), parts(slices.iter().flatten()));
        let whole = tiles.iter().filter(|it| it.id == fixtures::id(0));
        let methods = whole.filter_map(|it| it.energy.as_ref()?.method);
        prop_assert!(methods.into_iter().all(|it| it != EnergyMethod::Slices));
    }

    /// The parts of a device that MIG has cut weigh as much as the device.
    #[test]
    fn slices_make_up_the_device(ticks in prop::collection::vec(tick(), 2..10)) {
        let (slices, _) = run(&ticks, true);
        for slice in slices.iter().filter(|it| !it.is_empty()) {
            let parts = slice.iter().filter(|it| it.id.device == fixtures::device(1));
            let sizes: Vec<Slices> = parts.filter_map(|it| it.slices).collect();
            prop_assert_eq!(sizes.iter().map(|it| it.instance).sum::<u32>(), 7);
            prop_assert!(sizes.iter().all(|it| it.device == 7));
        }
    }

    #[test]
    fn tenants_that_run_together_get_time_as_their_samples_say(
        weights in prop::collection::vec(0_u64..1_000, 2..5),
        busy in 1_u32..=100,
        span_ns in 1_000_u64..SECOND,
    ) {
        let hold = |at: u64| {
            let mut readings = fixtures::readings(at, 1);
            fixtures::busy(&mut readings, 0, busy);
            for (tgid, weight) in (10..).zip(&weights) {
                fixtures::hold(&mut readings, 0, tgid, None);
                fixtures::sm(&mut readings, 0, tgid, *weight);
            }
            readings
        };
        let previous = observe(None, hold(SECOND));
        let next = observe(Some(&previous), hold(SECOND + span_ns));
        let tile = Meter::default().slice(&previous, &next).remove(0);
        let active = Percent::new(busy).unwrap().of(span_ns);
        let found: Vec<u64> = (10..)
            .zip(&weights)
            .map(|(tgid, _)| {
                let holder = fixtures::holder(&format!("unit-{tgid}"));
                let by = |method| tile.shares.get(&Share::Active(holder.clone(), method)).copied();
                by(Method::Measured).or(by(Method::EqualSplit)).unwrap_or(0)
            })
            .collect();
        prop_assert_eq!(found, split(active, &weights));
    }
}
