//! Whose the energy is, and what else a tile says besides whose its time is.

use super::{Change, active, held, nothing, observe, tile, two};
use crate::accounting::Meter;
use crate::attribution::fixtures;
use crate::model::figures::Figure;
use crate::model::metering::{EnergyMethod, Seen, SmActivity};
use crate::model::readings::{Health, Readings};
use crate::model::usage::{Method, Reason, Share};

/// The millijoules of each share of device 0 over a second in which it drew 400 J.
fn drawn(meter: &Meter, change: Change<'_>) -> Vec<(Share, u64)> {
    let reading = |at: u64, energy: u64| {
        let mut readings = fixtures::readings(at * 1_000_000_000, 1);
        change(&mut readings);
        let device = readings.nvml.devices.get_mut(&fixtures::device(0)).unwrap();
        device.counters.energy_mj = Some(energy);
        readings
    };
    let previous = observe(None, reading(50, 1_000_000));
    let next = observe(Some(&previous), reading(51, 1_400_000));
    let tile = meter.slice(&previous, &next).remove(0);
    assert!(tile.conserves());
    tile.energy.unwrap().shares.into_iter().collect()
}

/// Of a device that draws 70 W when it does nothing.
fn with_floor() -> Meter {
    let mut meter = Meter::default();
    let idle = |at: u64| {
        let mut readings = fixtures::readings(at * 1_000_000_000, 1);
        let device = readings.nvml.devices.get_mut(&fixtures::device(0)).unwrap();
        device.counters.energy_mj = Some(at * 70_000);
        readings
    };
    (0..20).for_each(|at| meter.learn(Some(&idle(at)), &idle(at + 1)));
    meter
}

#[test]
fn the_floor_is_held_and_what_is_above_is_worked_for() {
    let works = two([Some(30), Some(10)]);
    let measured = |tgid: u32| active(&format!("unit-{tgid}"), Method::Measured);
    // 70 J by time (3/8, 1/8, 1/4, 1/4), 330 J by active time (3/4, 1/4).
    let expected = [
        (measured(10), 26_250 + 247_500),
        (measured(11), 8_750 + 82_500),
        (held("unit-10"), 17_500),
        (held("unit-11"), 17_500),
    ];
    assert_eq!(drawn(&with_floor(), &works), expected);
    let by_time = [
        (measured(10), 150_000),
        (measured(11), 50_000),
        (held("unit-10"), 100_000),
        (held("unit-11"), 100_000),
    ];
    assert_eq!(drawn(&Meter::default(), &works), by_time, "no floor was seen yet");
}

#[test]
fn what_nobody_worked_for_goes_by_time() {
    let hold = |it: &mut Readings| fixtures::hold(it, 0, 10, Some(1));
    assert_eq!(drawn(&with_floor(), &hold), [(held("unit-10"), 400_000)]);
    assert_eq!(drawn(&with_floor(), &nothing), [(Share::Free, 400_000)]);
    let unlisted = |it: &mut Readings| fixtures::instance(it, 0).processes = None;
    let nobodys = Share::Unobserved(Reason::NoProcessList);
    assert_eq!(drawn(&with_floor(), &unlisted), [(nobodys, 400_000)]);
}

#[test]
fn a_device_that_mig_has_cut_is_metered_by_slices() {
    let cut = |it: &mut Readings| {
        fixtures::cut(it, 0, &["3g.40gb", "1g.10gb"]);
        fixtures::hold(it, 0, 10, Some(1));
    };
    let mut meter = Meter::default();
    let mut first = fixtures::readings(1, 1);
    cut(&mut first);
    meter.learn(None, &first);
    let [mut before, mut after] = [1_000, 2_000].map(|at| fixtures::readings(at, 1));
    cut(&mut before);
    cut(&mut after);
    let previous = observe(None, before);
    let next = observe(Some(&previous), after);
    let tiles = meter.slice(&previous, &next);
    let energies: Vec<_> = tiles.iter().map(|it| it.energy.clone().unwrap()).collect();
    // 1,000 mJ by 3, 1 and 3 of 7.
    assert_eq!(energies.iter().map(|it| it.mj).collect::<Vec<_>>(), [429, 143, 428]);
    assert!(energies.iter().all(|it| it.method == Some(EnergyMethod::Slices)));
    let shares: Vec<_> = energies.iter().flat_map(|it| it.shares.keys()).collect();
    assert_eq!(shares, [&held("unit-10"), &Share::Free, &Share::Unconfigured]);
    assert!(Meter::default().slice(&previous, &next).iter().all(|it| it.energy.is_none()));
}

#[test]
fn a_second_that_was_seen_says_what_was_there() {
    let hold = |it: &mut Readings| {
        fixtures::hold(it, 0, 10, Some(1));
        fixtures::instance(it, 0).figures.set(Figure::SmActive, 433_000);
    };
    let found = tile(&hold, &hold);
    assert_eq!(found.sm, SmActivity { active_ns: 433, measured_ns: 1_000 });
    assert_eq!(found.seen, Some(Seen { process_ns: 1_000, healthy_ns: 1_000 }));
    let degraded = |it: &mut Readings| {
        it.nvml.devices.get_mut(&fixtures::device(0)).unwrap().health = Health::Degraded;
    };
    let found = tile(&nothing, &degraded);
    assert_eq!((found.sm, found.seen), (SmActivity::default(), Some(Seen::default())));
}
