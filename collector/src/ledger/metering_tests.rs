//! What the ledger keeps of tiles besides time: energy, slices, work, presence.

use proptest::prelude::{any, prop, prop_assert_eq, proptest};
use tempfile::tempdir;

use crate::ledger::Applied;
use crate::ledger::accounts::{decode, encode};
use crate::ledger::amounts::{EnergyAmounts, ShareAmounts};
use crate::ledger::clock_map::HOUR_NS;
use crate::ledger::fixtures::{
    Bench, SECOND, active, batch_of, before_version_4, free, held_idle, hello_of, tile_mut, tile_of,
};
use crate::ledger::usage::Usage;
use crate::model::metering::{Energy, EnergyMethod, EnergySplit, Seen, Slices, SmActivity, WHOLE};
use crate::model::record::{CLASS_UNKNOWN, CLASSES, Record, Share};

const HOUR: u64 = HOUR_NS.cast_unsigned();

fn bench(path: &std::path::Path) -> Bench {
    let mut bench = Bench::open(path);
    bench.hello(&hello_of("a"));
    bench
}

/// A tile with the energy of each share, cut by `method`.
fn drawn(start_ns: u64, shares: &[(Share, u64, u64)], method: EnergyMethod) -> Record {
    let times: Vec<_> = shares.iter().map(|(share, ns, _)| (share.clone(), *ns)).collect();
    let mut record = tile_of("a", "g", start_ns, &times);
    let parts: Vec<u64> = shares.iter().map(|it| it.2).collect();
    let mj = parts.iter().sum();
    let mut classes = [0; CLASSES.len()];
    classes[CLASS_UNKNOWN] = mj;
    let split = EnergySplit { method, shares: parts, classes };
    tile_mut(&mut record).energy = Some(Energy { mj, split: Some(split) });
    record
}

/// A minute of a MIG instance.
fn part(mig: &str, start_ns: u64, slices: Option<u32>) -> Record {
    let mut record = tile_of("a", "g", start_ns, &[(active("ml"), 60 * SECOND)]);
    let tile = tile_mut(&mut record);
    tile.instance.mig_uuid = Some(mig.into());
    tile.slices = slices.map(|instance| Slices { instance, device: 7 });
    record
}

/// Millijoules of tenants and of nobody.
fn owned_and_not(usage: &Usage) -> (u128, u128) {
    let sum = |energies: &mut dyn Iterator<Item = EnergyAmounts>| {
        energies.filter_map(|it| it.total()).sum()
    };
    (
        sum(&mut usage.tenants.values().map(|it| it.total().energy)),
        sum(&mut usage.unowned.values().map(|it| it.energy)),
    )
}

/// What counters show of both, and of the devices.
fn shown(bench: &Bench) -> (u128, u128, u128) {
    let totals = &bench.totals;
    let sum = |it: &EnergyAmounts| it.total().unwrap_or(0);
    (
        totals.tenant_energy.values().map(sum).sum(),
        totals.unowned_energy.values().map(sum).sum(),
        totals.instances.values().filter_map(|it| it.energy_mj).sum(),
    )
}

#[test]
fn energy_goes_to_tenants_and_to_nobody_and_sums_to_the_devices() {
    let folder = tempdir().unwrap();
    let mut bench = bench(folder.path());
    let shares = [
        (active("ml"), 3 * SECOND, 1_501),
        (held_idle("etl"), 6 * SECOND, 419),
        (free(), SECOND, 70),
    ];
    let first = drawn(HOUR - 4 * SECOND, &shares, EnergyMethod::FloorDynamic);
    let second = drawn(HOUR + 6 * SECOND, &shares, EnergyMethod::Time);
    assert_eq!(bench.batch(&batch_of("a", 1, &[first, second])), Applied::Through(2));
    assert_eq!(shown(&bench), (3_840, 140, 3_980));
    let usage = bench.usage();
    assert_eq!(owned_and_not(&usage), (3_840, 140));
    assert_eq!((usage.wall.energy_mj, usage.wall.energy_ns), (3_980, u128::from(20 * SECOND)));
    let ml = usage.tenants["ml"].total().energy;
    assert_eq!((ml.mj, ml.known_ns), ([1_501, 1_501, 0], u128::from(6 * SECOND)));
    let class = bench.totals.instances.values().next().unwrap().class_mj.unwrap();
    assert_eq!(class[CLASS_UNKNOWN], 3_980);
}

#[test]
fn energy_whose_parts_do_not_sum_is_set_aside() {
    let folder = tempdir().unwrap();
    let mut bench = bench(folder.path());
    let good = || drawn(0, &[(active("ml"), SECOND, 5), (free(), SECOND, 2)], EnergyMethod::Time);
    let split = |record: &mut Record, change: fn(&mut EnergySplit)| {
        change(tile_mut(record).energy.as_mut().unwrap().split.as_mut().unwrap());
    };
    let changes: [fn(&mut EnergySplit); 3] =
        [|it| it.shares[0] += 1, |it| it.classes[1] += 1, |it| it.shares[1] = u64::MAX];
    for (seq, change) in (1..).zip(changes) {
        let mut record = good();
        split(&mut record, change);
        bench.batch(&batch_of("a", seq, &[record]));
        assert_eq!(bench.outcomes.quarantined, [("energy_does_not_sum", 1)].into());
    }
    assert_eq!(shown(&bench), (0, 0, 0));
    bench.batch(&batch_of("a", 4, &[good()]));
    assert_eq!(shown(&bench), (5, 2, 7));
}

#[test]
fn parts_that_are_longer_than_the_whole_are_set_aside() {
    let folder = tempdir().unwrap();
    let mut bench = bench(folder.path());
    let span = 10 * SECOND;
    let wrong: [fn(&mut crate::model::record::Tile); 6] = [
        |it| it.sm = Some(SmActivity { active_ns: 3, measured_ns: 2 }),
        |it| it.sm = Some(SmActivity { active_ns: 0, measured_ns: 10 * SECOND + 1 }),
        |it| it.seen = Some(Seen { process_ns: 10 * SECOND + 1, healthy_ns: 0 }),
        |it| it.seen = Some(Seen { process_ns: 0, healthy_ns: u64::MAX }),
        |it| it.slices = Some(Slices { instance: 0, device: 7 }),
        |it| it.slices = Some(Slices { instance: 8, device: 7 }),
    ];
    for (seq, change) in (1..).zip(wrong) {
        let mut record = tile_of("a", "g", 0, &[(free(), span)]);
        change(tile_mut(&mut record));
        bench.batch(&batch_of("a", seq, &[record]));
        assert_eq!(bench.outcomes.quarantined, [("malformed", 1)].into());
    }
}

#[test]
fn what_an_older_agent_did_not_say_is_absent() {
    let folder = tempdir().unwrap();
    let mut bench = bench(folder.path());
    let shares = [(active("ml"), 10 * SECOND)];
    bench.batch(&batch_of("a", 1, &[tile_of("a", "g", 0, &shares)]));
    assert_eq!(bench.outcomes.applied, 1);
    assert_eq!(shown(&bench), (0, 0, 700), "the device's own energy counts as before");
    assert!(bench.totals.tenant_energy.is_empty());
    let instance = bench.totals.instances.values().next().unwrap();
    assert_eq!((instance.class_mj, instance.sm_ns, instance.seen_ns), (None, None, None));
    assert_eq!(bench.usage().tenants["ml"].total().energy.total(), None);
}

#[test]
fn what_was_seen_and_measured_is_kept() {
    let folder = tempdir().unwrap();
    let mut bench = bench(folder.path());
    let mut record = tile_of("a", "g", HOUR - SECOND, &[(free(), 10 * SECOND)]);
    let tile = tile_mut(&mut record);
    tile.sm = Some(SmActivity { active_ns: 7, measured_ns: 9 * SECOND });
    tile.seen = Some(Seen { process_ns: 0, healthy_ns: 10 * SECOND });
    bench.batch(&batch_of("a", 1, &[record]));
    let instance = bench.totals.instances.values().next().unwrap();
    assert_eq!(instance.sm_ns, Some((7, u128::from(9 * SECOND))));
    assert_eq!(instance.seen_ns, Some((0, u128::from(10 * SECOND))));
}

// === slices ===

#[test]
fn mig_instances_weigh_by_their_slices() {
    let folder = tempdir().unwrap();
    let mut bench = bench(folder.path());
    let records =
        [part("M1", 0, Some(1)), part("M2", 0, Some(4)), part("unconfigured", 0, Some(2))];
    bench.batch(&batch_of("a", 1, &records));
    let usage = bench.usage();
    let minute = u128::from(60 * SECOND);
    assert_eq!(usage.wall.ns, 3 * minute);
    assert_eq!(usage.wall.weighed.complete(usage.wall.ns), Some(minute * u128::from(WHOLE)));
    let ml = usage.tenants["ml"].total();
    assert_eq!(ml.weighed.complete(ml.ns), Some(minute * u128::from(WHOLE)));

    bench.batch(&batch_of("a", 4, &[part("M3", 60 * SECOND, None)]));
    let usage = bench.usage();
    assert_eq!(usage.wall.weighed.complete(usage.wall.ns), None, "the size of one is not known");
}

#[test]
fn a_whole_device_weighs_as_one() {
    let folder = tempdir().unwrap();
    let mut bench = bench(folder.path());
    bench.batch(&batch_of("a", 1, &[tile_of("a", "g", 0, &[(free(), 10 * SECOND)])]));
    let usage = bench.usage();
    let ten = u128::from(10 * SECOND);
    assert_eq!(usage.wall.weighed.complete(ten), Some(ten * u128::from(WHOLE)));
}

#[test]
fn a_hole_weighs_like_its_instance_and_slices_without_one_have_no_holes() {
    let folder = tempdir().unwrap();
    let mut bench = bench(folder.path());
    let minutes = |mig: &str| [part(mig, 0, Some(1)), part(mig, 120 * SECOND, Some(1))];
    bench.batch(&batch_of("a", 1, &minutes("M1")));
    let minute = u128::from(60 * SECOND);
    let wall = bench.usage().wall;
    assert_eq!(wall.weighed.complete(3 * minute), Some(3 * minute * u128::from(WHOLE / 7)));
    // They may have been an instance in between.
    bench.batch(&batch_of("a", 3, &minutes("unconfigured")));
    assert_eq!(bench.usage().wall.ns, 5 * minute);
}

// === an existing database ===

#[test]
fn a_ledger_of_the_second_version_goes_on() {
    let folder = tempdir().unwrap();
    let mut bench = bench(folder.path());
    bench.batch(&batch_of("a", 1, &[tile_of("a", "g", 0, &[(active("ml"), 10 * SECOND)])]));
    // As that version left it: one amount of a share, thirteen of an instance.
    for (table, kind, kept) in [
        ("hour", "tenant", 1),
        ("total", "tenant", 1),
        ("hour", "instance", 13),
        ("total", "instance", 13),
    ] {
        let of_kind = format!("account IN (SELECT id FROM account WHERE kind = '{kind}')");
        let read = format!("SELECT amounts FROM {table} WHERE {of_kind}");
        let bytes: Vec<u8> = bench.db.query_row(&read, (), |row| row.get(0)).unwrap();
        let mut amounts = decode(&bytes).unwrap();
        amounts.resize(kept, 0);
        let write = format!("UPDATE {table} SET amounts = ?1 WHERE {of_kind}");
        bench.db.execute(&write, [encode(&amounts)]).unwrap();
    }
    before_version_4(&bench.db, 2);
    drop(bench);

    let mut bench = Bench::open(folder.path());
    assert_eq!(shown(&bench), (0, 0, 700));
    let epoch = bench.hello(&hello_of("a")).epoch;
    let more = drawn(10 * SECOND, &[(active("ml"), 10 * SECOND, 9_001)], EnergyMethod::Time);
    let mut batch = batch_of("a", 2, &[more]);
    batch.epoch = epoch;
    bench.batch(&batch);
    assert_eq!(shown(&bench), (9_001, 0, 9_701));
    let usage = bench.usage();
    let ml = usage.tenants["ml"].total();
    let (ten, all) = (u128::from(10 * SECOND), u128::from(20 * SECOND));
    assert_eq!((ml.ns, ml.energy.known_ns, ml.energy.total()), (all, ten, Some(9_001)));
    assert_eq!(ml.weighed.complete(all), Some(all * u128::from(WHOLE)));
    assert_eq!((usage.wall.ns, usage.wall.energy_ns), (all, all));
}

// === any tiles ===

proptest! {
    /// Whatever tiles come: in every hour, and in counters, tenants and nobody have what devices drew.
    #[test]
    fn energy_is_conserved_by_the_hour(
        tiles in prop::collection::vec(
            (1_u64..HOUR / 2, 1_u64..HOUR / 4, any::<u32>(), any::<u32>(), 0..3_usize),
            1..6,
        ),
    ) {
        let folder = tempdir().unwrap();
        let mut bench = bench(folder.path());
        let mut at = 0;
        let mut records = Vec::new();
        for (active_ns, free_ns, mine, nobodys, method) in &tiles {
            let shares = [
                (active("ml"), *active_ns, u64::from(*mine)),
                (free(), *free_ns, u64::from(*nobodys)),
            ];
            records.push(drawn(at, &shares, EnergyMethod::ALL[*method]));
            at += active_ns + free_ns;
        }
        bench.batch(&batch_of("a", 1, &records));
        prop_assert_eq!(bench.outcomes.applied, records.len() as u64);
        let mine: u128 = tiles.iter().map(|it| u128::from(it.2)).sum();
        let nobodys: u128 = tiles.iter().map(|it| u128::from(it.3)).sum();
        prop_assert_eq!(shown(&bench), (mine, nobodys, mine + nobodys));
        let usage = bench.usage();
        prop_assert_eq!(owned_and_not(&usage), (mine, nobodys));
        for (hour, shares, instance) in by_hour(&bench) {
            prop_assert_eq!(shares, instance, "hour {}", hour);
        }
    }
}

/// Millijoules of the shares and of the instance, from the rows of each hour.
fn by_hour(bench: &Bench) -> Vec<(i64, u128, u128)> {
    let mut statement = bench
        .db
        .prepare(
            "SELECT h.hour, a.kind, h.amounts FROM hour h JOIN account a ON a.id = h.account
             ORDER BY h.hour",
        )
        .unwrap();
    let mut hours: Vec<(i64, u128, u128)> = Vec::new();
    let mut rows = statement.query(()).unwrap();
    while let Some(row) = rows.next().unwrap() {
        let (hour, kind): (i64, String) = (row.get(0).unwrap(), row.get(1).unwrap());
        let amounts = decode(row.get_ref(2).unwrap().as_blob().unwrap()).unwrap();
        if hours.last().is_none_or(|it| it.0 != hour) {
            hours.push((hour, 0, 0));
        }
        let last = hours.last_mut().unwrap();
        if kind == "instance" {
            last.2 += amounts.get(CLASSES.len()).copied().unwrap_or(0);
        } else {
            last.1 += ShareAmounts::from_slice(&amounts).energy.total().unwrap_or(0);
        }
    }
    hours
}
