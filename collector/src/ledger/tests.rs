//! The ledger by its rules: what is applied, set aside, asked for again, refused.

use std::sync::Arc;

use proto::telemetry::v1::CudaCounter::{self, KernelLaunches as LAUNCHES};
use tempfile::tempdir;

use crate::ledger::accounts::encode;
use crate::ledger::clock_map::{HOUR_NS, Pair};
use crate::ledger::decide::Quarantine;
use crate::ledger::fixtures::{
    Bench, NOW, SECOND, active, activity_mut, batch_of, before_version_4, cuda_of, free, held_idle,
    hello_of, labels, of_boot, other_ledger, seal, tile_mut, tile_of,
};
use crate::ledger::totals::{OVERFLOW_TENANT, TenantSeries, Totals};
use crate::ledger::{Applied, Hello};
use crate::model::record::{Method, Record, TenantShare};

const HOUR: u64 = HOUR_NS.cast_unsigned();

fn ten_seconds(gpu: &str, start_s: u64) -> Record {
    tile_of("a", gpu, start_s * SECOND, &[(active("ml"), 7 * SECOND), (free(), 3 * SECOND)])
}

/// A ledger with the node `a` connected.
fn bench(path: &std::path::Path) -> Bench {
    let mut bench = Bench::open(path);
    assert_eq!(bench.hello(&hello_of("a")).epoch, 1);
    bench
}

fn unowned(bench: &Bench, share: &str, reason: &str) -> u128 {
    let key = (share.to_owned(), reason.to_owned());
    bench.usage().unowned.get(&key).map_or(0, |it| it.ns)
}

// === delivery ===

#[test]
fn a_repeat_is_success_and_counts_nothing() {
    let folder = tempdir().unwrap();
    let mut bench = bench(folder.path());
    let records = [ten_seconds("g", 0), ten_seconds("g", 10), ten_seconds("g", 20)];
    assert_eq!(bench.batch(&batch_of("a", 1, &records[..2])), Applied::Through(2));
    assert_eq!(bench.batch(&batch_of("a", 1, &records[..1])), Applied::Through(2));
    assert_eq!(bench.outcomes.duplicate, 1);
    assert_eq!(bench.batch(&batch_of("a", 2, &records[1..])), Applied::Through(3));
    assert_eq!((bench.outcomes.duplicate, bench.outcomes.applied), (1, 1));
    assert_eq!(bench.usage().tenants["ml"].active().ns, u128::from(21 * SECOND));
    assert_eq!(bench.usage().wall.ns, u128::from(30 * SECOND));
}

#[test]
fn a_gap_is_asked_for_and_taken_when_there_is_nothing_to_send() {
    let folder = tempdir().unwrap();
    let mut bench = bench(folder.path());
    let mut later = batch_of("a", 5, &[ten_seconds("g", 0)]);
    assert_eq!(bench.batch(&later), Applied::Resume { next: 1 });
    assert_eq!(bench.usage().wall.ns, 0);
    later.accept_gap = true;
    assert_eq!(bench.batch(&later), Applied::Through(5));
    let gap: (i64, i64) = bench
        .db
        .query_row("SELECT first, last FROM gap", (), |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap();
    assert_eq!(gap, (1, 4));
}

#[test]
fn a_number_that_comes_with_other_content_is_refused_whole() {
    let folder = tempdir().unwrap();
    let mut bench = bench(folder.path());
    assert_eq!(bench.batch(&batch_of("a", 1, &[ten_seconds("g", 0)])), Applied::Through(1));
    let forged = [ten_seconds("g", 5), ten_seconds("g", 15)];
    let expected = Applied::SequenceReuse { seq: 1, first_received_ns: NOW };
    assert_eq!(bench.batch(&batch_of("a", 1, &forged)), expected);
    assert_eq!(bench.usage().wall.ns, u128::from(10 * SECOND));
}

#[test]
fn an_earlier_stream_is_fenced() {
    let folder = tempdir().unwrap();
    let mut bench = bench(folder.path());
    assert_eq!(bench.hello(&hello_of("a")).epoch, 2);
    let batch = batch_of("a", 1, &[ten_seconds("g", 0)]);
    assert_eq!(bench.batch(&batch), Applied::StaleEpoch { newest: 2 });
    assert_eq!(bench.batch(&batch_of("b", 1, &[])), Applied::StaleEpoch { newest: 0 });
}

#[test]
fn a_ledger_that_went_back_says_so() {
    let folder = tempdir().unwrap();
    let mut bench = bench(folder.path());
    let own = bench.memory.ledger_id;
    let mut check = |acked_through, ledger_seen, regressed| {
        let hello = Hello { acked_through, ledger_seen, ..hello_of("a") };
        assert_eq!(bench.hello(&hello).regressed, regressed);
    };
    check(0, None, false);
    check(9, Some(own), true);
    check(9, Some(other_ledger()), false);
}

// === what is set aside ===

/// `change` makes a good second tile bad: the record is kept with the reason, and no sum changes.
fn set_aside(change: impl FnOnce(&mut Record), expected: Quarantine) {
    let folder = tempdir().unwrap();
    let mut bench = bench(folder.path());
    bench.batch(&batch_of("a", 1, &[ten_seconds("g", 0)]));
    let mut bad = ten_seconds("g", 10);
    change(&mut bad);
    assert_eq!(bench.batch(&batch_of("a", 2, &[bad])), Applied::Through(2));
    assert_eq!(bench.outcomes.quarantined, [(expected.as_str(), 1)].into());
    let reason: String = bench
        .db
        .query_row("SELECT reason FROM record WHERE seq = 2", (), |row| row.get(0))
        .unwrap();
    assert_eq!(reason, expected.as_str());
    assert_eq!(bench.usage().wall.ns, u128::from(10 * SECOND));
    assert_eq!(bench.class_ns(), u128::from(10 * SECOND));
}

#[test]
fn a_tile_that_is_wrong_is_set_aside() {
    set_aside(|it| tile_mut(it).shares[0].1 += 1, Quarantine::SharesDoNotSum);
    set_aside(|it| tile_mut(it).classes[3] += 1, Quarantine::ClassesDoNotSum);
    set_aside(|it| tile_mut(it).end_ns = 1, Quarantine::Malformed);
    set_aside(|it| *it = ten_seconds("g", 9), Quarantine::Overlap);
    set_aside(
        |it| *it = tile_of("a", "g", 10 * SECOND - 1, &[(free(), SECOND)]),
        Quarantine::Overlap,
    );
    set_aside(|it| *it = ten_seconds("g", 1_000_100), Quarantine::Future);
    set_aside(
        |it| *it = tile_of("a", "g", 10 * SECOND, &[(active("ml"), HOUR + 1)]),
        Quarantine::TooLarge,
    );
}

#[test]
fn what_could_not_be_read_is_set_aside() {
    let folder = tempdir().unwrap();
    let mut bench = bench(folder.path());
    let mut batch = batch_of("a", 1, &[ten_seconds("g", 0), ten_seconds("g", 10)]);
    batch.records[0].content = Err(Quarantine::HashMismatch);
    assert_eq!(bench.batch(&batch), Applied::Through(2));
    assert_eq!(bench.outcomes.quarantined, [("hash_mismatch", 1)].into());
    assert_eq!(bench.outcomes.applied, 1);
}

// === holes and boots ===

#[test]
fn a_hole_is_posted_as_missing() {
    let folder = tempdir().unwrap();
    let mut bench = bench(folder.path());
    bench.batch(&batch_of("a", 1, &[ten_seconds("g", 0), ten_seconds("g", 25)]));
    assert_eq!(unowned(&bench, "unobserved", "missing"), u128::from(15 * SECOND));
    assert_eq!(bench.usage().wall.ns, u128::from(35 * SECOND));
    assert_eq!(bench.class_ns(), u128::from(35 * SECOND));
}

#[test]
fn the_time_between_two_boots_is_closed() {
    let folder = tempdir().unwrap();
    let mut bench = bench(folder.path());
    bench.batch(&batch_of("a", 1, &[ten_seconds("g", 0)]));
    // Booted 100 s after the end of the last tile, and the first tile starts 5 s into the boot.
    let utc_ns = NOW + 110_000_000_000;
    let clock = Pair { boot_ns: 0, utc_ns };
    let hello = Hello { boot_id: "second".into(), clock, ..hello_of("a") };
    let epoch = bench.hello(&hello).epoch;
    let mut batch = batch_of("a", 2, &[of_boot(ten_seconds("g", 5), "second")]);
    (batch.epoch, batch.boot_id) = (epoch, Arc::from("second"));
    assert_eq!(bench.batch(&batch), Applied::Through(2));
    assert_eq!(unowned(&bench, "unobserved", "node_reboot"), u128::from(105 * SECOND));

    let mut late = batch_of("a", 3, &[ten_seconds("g", 10)]);
    late.epoch = epoch;
    bench.batch(&late);
    assert_eq!(bench.outcomes.quarantined, [("superseded_boot", 1)].into());
}

#[test]
fn a_boot_that_never_met_the_collector_is_dated_by_its_own_clock() {
    let folder = tempdir().unwrap();
    let mut bench = bench(folder.path());
    let mut record = of_boot(ten_seconds("g", 0), "unmet");
    record.node_real_ns = NOW - 5 * HOUR_NS;
    bench.batch(&batch_of("a", 1, &[record]));
    let hours: Vec<i64> = bench.hours().into_iter().map(|it| it.0).collect();
    assert_eq!(hours, [480_000 - 6]);
    let source: i64 =
        bench.db.query_row("SELECT max(source) FROM clock", (), |row| row.get(0)).unwrap();
    assert_eq!(source, 1);
}

#[test]
fn a_tile_across_the_hour_is_cut_there() {
    let folder = tempdir().unwrap();
    let mut bench = bench(folder.path());
    let start = HOUR - 4 * SECOND;
    let shares = [(active("ml"), 3 * SECOND), (held_idle("etl"), 7 * SECOND)];
    bench.batch(&batch_of("a", 1, &[tile_of("a", "g", start, &shares)]));
    let (four, six) = (u128::from(4 * SECOND), u128::from(6 * SECOND));
    assert_eq!(bench.hours(), [(480_000, "g".to_owned(), four), (480_001, "g".to_owned(), six)]);
    assert_eq!(bench.usage().tenants["ml"].active().ns, u128::from(3 * SECOND));
    assert_eq!(bench.usage().tenants["etl"].held_idle.ns, u128::from(7 * SECOND));
}

// === devices ===

#[test]
fn a_device_belongs_to_the_connected_node_that_lists_it() {
    let folder = tempdir().unwrap();
    let mut bench = Bench::open(folder.path());
    let hello = Hello { devices: vec!["g".into()], ..hello_of("a") };
    bench.hello(&hello);
    bench.hello(&hello_of("b"));
    bench.batch(&batch_of("a", 1, &[ten_seconds("g", 0)]));
    let claim = of_boot(ten_seconds("g", 10), "boot of b");
    bench.batch(&batch_of("b", 1, std::slice::from_ref(&claim)));
    assert_eq!(bench.outcomes.quarantined, [("foreign_device", 1)].into());

    // The card moves: its old node connects again without it.
    let epoch = bench.hello(&hello_of("a")).epoch;
    assert_eq!(epoch, 2);
    bench.batch(&batch_of("b", 2, &[claim]));
    assert_eq!(bench.outcomes.applied, 1);
    assert_eq!(bench.usage().wall.ns, u128::from(20 * SECOND));

    // And back: the time in which the other node had it is not missing here.
    let mut back = batch_of("a", 2, &[ten_seconds("g", 500)]);
    back.epoch = epoch;
    bench.batch(&back);
    assert_eq!(bench.usage().wall.ns, u128::from(30 * SECOND));
}

#[test]
fn a_device_that_was_cut_into_instances_has_no_hole() {
    let folder = tempdir().unwrap();
    let mut bench = bench(folder.path());
    let mut part = ten_seconds("g", 10);
    tile_mut(&mut part).instance.mig_uuid = Some("m".into());
    bench.batch(&batch_of("a", 1, &[ten_seconds("g", 0), part, ten_seconds("g", 20)]));
    assert_eq!(bench.outcomes.applied, 3);
    assert_eq!(bench.usage().wall.ns, u128::from(30 * SECOND));
}

// === the view ===

#[test]
fn beyond_the_limit_tenants_count_for_the_overflow_series() {
    let folder = tempdir().unwrap();
    let path = folder.path();
    let mut bench = Bench::with_room_for(path, 2);
    bench.hello(&hello_of("a"));
    let tenants = ["t1", "t2", "t3", "t4"];
    let records: Vec<Record> = (0..)
        .zip(tenants)
        .map(|(index, it)| tile_of("a", "g", index * SECOND, &[(active(it), SECOND)]))
        .chain([cuda_of("a", "t4", 11, (0, SECOND))])
        .collect();
    bench.batch(&batch_of("a", 1, &records));
    let shown = |bench: &Bench, labels| {
        let method = Some(Method::Measured);
        let series = TenantSeries { labels, share: TenantShare::Active, method };
        bench.totals.tenants.get(&series).copied()
    };
    let mut overflow = labels(OVERFLOW_TENANT);
    overflow.namespace = None;
    assert_eq!(shown(&bench, labels("t1")), Some(u128::from(SECOND)));
    assert_eq!(shown(&bench, labels("t3")), None);
    assert_eq!(shown(&bench, overflow.clone()), Some(u128::from(2 * SECOND)));
    assert_eq!(bench.totals.cuda[&overflow][LAUNCHES], 11);
    assert_eq!(bench.usage().tenants["t4"].active().ns, u128::from(SECOND));

    let before = bench.totals.clone();
    drop(bench);
    assert_eq!(Bench::with_room_for(path, 2).totals, before);
}

#[test]
fn a_series_that_left_the_view_comes_back_where_it_was() {
    let folder = tempdir().unwrap();
    let mut bench = bench(folder.path());
    bench.batch(&batch_of("a", 1, &[ten_seconds("g", 0), cuda_of("a", "ml", 5, (0, SECOND))]));
    let shown = bench.totals.clone();
    let (tenants, instances) = bench.memory.view.retire(NOW / 1_000_000_000 + 3_600);
    tenants.iter().for_each(|it| bench.totals.retire_tenant(it));
    bench.totals.retire_instances(&instances);
    assert_eq!(bench.totals, Totals::default());

    bench.batch(&batch_of("a", 3, &[ten_seconds("g", 10)]));
    assert_eq!(bench.totals.instances.len(), 1);
    for (series, before) in &shown.tenants {
        assert_eq!(bench.totals.tenants[series], 2 * before);
    }
    assert_eq!(bench.usage().tenants["ml"].cuda.as_ref().unwrap()[LAUNCHES], 5);
}

#[test]
fn launches_are_exact_and_a_span_of_nothing_counts_too() {
    let folder = tempdir().unwrap();
    let mut bench = bench(folder.path());
    let across = (HOUR - SECOND, HOUR + 2 * SECOND);
    let records = [cuda_of("a", "ml", 10, across), cuda_of("a", "ml", 7, (SECOND, SECOND))];
    bench.batch(&batch_of("a", 1, &records));
    assert_eq!(bench.usage().tenants["ml"].cuda.as_ref().unwrap()[LAUNCHES], 17);
    assert_eq!(bench.totals.cuda[&labels("ml")][LAUNCHES], 17);
    assert_eq!(seal(&records[0]).hash.len(), 32);
}

#[test]
fn a_ledger_of_the_first_version_goes_on() {
    let folder = tempdir().unwrap();
    let mut bench = bench(folder.path());
    bench.batch(&batch_of("a", 1, &[cuda_of("a", "ml", 5, (0, SECOND))]));
    // As that version left it: eighteen amounts, launches first and allocations third.
    let mut old = vec![0_u128; 18];
    (old[0], old[2]) = (5, 7);
    for table in ["hour", "total"] {
        let sql = format!(
            "UPDATE {table} SET amounts = ?1
             WHERE account IN (SELECT id FROM account WHERE kind = 'cuda')"
        );
        bench.db.execute(&sql, [encode(&old)]).unwrap();
    }
    before_version_4(&bench.db, 1);
    drop(bench);

    let mut bench = Bench::open(folder.path());
    assert_eq!(bench.totals.cuda[&labels("ml")][LAUNCHES], 5);
    let epoch = bench.hello(&hello_of("a")).epoch;
    let mut more = cuda_of("a", "ml", 6, (SECOND, 2 * SECOND));
    activity_mut(&mut more).sums[CudaCounter::Streams] = 3;
    let mut batch = batch_of("a", 2, &[more]);
    batch.epoch = epoch;
    bench.batch(&batch);
    for sums in
        [&bench.totals.cuda[&labels("ml")], bench.usage().tenants["ml"].cuda.as_ref().unwrap()]
    {
        assert_eq!((sums[LAUNCHES], sums[CudaCounter::Streams]), (11, 3));
        assert_eq!(sums[CudaCounter::DeviceAllocations], 7);
    }
}

#[test]
fn calls_whose_device_is_known_count_for_it_too() {
    let folder = tempdir().unwrap();
    let mut bench = bench(folder.path());
    let on = |tenant: &str, gpu: Option<&str>, launches| {
        let mut record = cuda_of("a", tenant, launches, (0, SECOND));
        activity_mut(&mut record).gpu_uuid = gpu.map(Into::into);
        record
    };
    let records = [on("t1", Some("g"), 5), on("t2", Some("g"), 6), on("t1", None, 7)];
    bench.batch(&batch_of("a", 1, &records));
    let of_device = |bench: &Bench| {
        let devices = bench.totals.cuda_devices.iter();
        devices.map(|(it, sums)| (it.instance.gpu_uuid.to_string(), sums[LAUNCHES])).collect()
    };
    let found: Vec<_> = of_device(&bench);
    assert_eq!(found, [("g".to_owned(), 11)]);
    assert_eq!(bench.totals.cuda[&labels("t1")][LAUNCHES], 12);
    assert_eq!(bench.usage().tenants["t1"].cuda.as_ref().unwrap()[LAUNCHES], 12);
    drop(bench);
    assert_eq!(of_device(&Bench::open(folder.path())), found);
}

#[test]
fn counters_of_a_later_version_are_counted() {
    let folder = tempdir().unwrap();
    let mut bench = bench(folder.path());
    let mut record = cuda_of("a", "ml", 5, (0, SECOND));
    activity_mut(&mut record).unknown = 2;
    bench.batch(&batch_of("a", 1, &[record]));
    assert_eq!((bench.outcomes.unknown_counters, bench.outcomes.applied), (2, 1));
}

#[test]
fn more_watched_than_there_was_is_set_aside() {
    let folder = tempdir().unwrap();
    let mut bench = bench(folder.path());
    let mut record = cuda_of("a", "ml", 5, (0, SECOND));
    activity_mut(&mut record).sums.watched_ns += 1;
    bench.batch(&batch_of("a", 1, &[record]));
    assert_eq!(bench.outcomes.quarantined, [("malformed", 1)].into());
}
