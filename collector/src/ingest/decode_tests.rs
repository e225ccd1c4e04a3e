//! `decode`: every field once right, then wrong one at a time.

use prost::Message as _;
use proto::telemetry::v1 as pb;

use crate::ingest::decode::{MAX_NAME, hello, live, name, node, sealed};
use crate::ledger::decide::Quarantine;
use crate::model::metering::{Energy, EnergyMethod, Seen, SmActivity, WHOLE};
use crate::model::record::{CudaActivity, Record, RecordKind};

fn holder() -> pb::Holder {
    pb::Holder {
        kind: pb::holder::Kind::Pod.into(),
        id: "uid".to_owned(),
        tenant: "ml".to_owned(),
        tenant_namespace: Some("ml".to_owned()),
        tenant_pod: Some(String::new()),
        tenant_container: None,
    }
}

fn tile() -> pb::Tile {
    pb::Tile {
        instance: Some(pb::InstanceId { gpu_uuid: "GPU-1".to_owned(), mig_uuid: None }),
        start_ns: 10,
        end_ns: 20,
        shares: vec![pb::HolderShare {
            holder: Some(holder()),
            kind: pb::holder_share::Kind::Active.into(),
            method: pb::holder_share::Method::Measured.into(),
            ns: 7,
            energy_mj: 60,
        }],
        remainders: vec![pb::Remainder {
            kind: pb::remainder::Kind::Unobserved.into(),
            reason: "a reason of a later version".to_owned(),
            ns: 3,
            energy_mj: 10,
        }],
        classes: vec![pb::ClassTime { class: pb::Class::Active.into(), ns: 10, energy_mj: 70 }],
        energy_mj: Some(70),
        memory: None,
        energy_method: pb::tile::EnergyMethod::FloorDynamic.into(),
        sm: Some(pb::SmActivity { active_ns: 2, measured_ns: 9 }),
        seen: Some(pb::Seen { process_ns: 7, healthy_ns: 10 }),
        slices: None,
    }
}

/// As an agent wrote it that did not cut energy.
fn of_older_agent(tile: &mut pb::Tile) {
    tile.shares[0].energy_mj = 0;
    tile.remainders[0].energy_mj = 0;
    tile.classes[0].energy_mj = 0;
    tile.energy_method = 0;
    (tile.sm, tile.seen) = (None, None);
}

fn activity() -> pb::CudaActivity {
    pb::CudaActivity {
        holder: Some(holder()),
        start_ns: 10,
        end_ns: 20,
        gpu_uuid: None,
        counts: Some(pb::CudaCounts {
            counts: vec![
                count(pb::CudaCounter::KernelLaunches.into(), 11),
                count(pb::CudaCounter::PeerBytes.into(), 1_009),
            ],
        }),
        watched_ns: 7,
        memory_known: true,
    }
}

fn count(counter: i32, value: u64) -> pb::CudaCount {
    pb::CudaCount { counter, value }
}

fn seal(kind: pb::record::Kind) -> pb::SealedRecord {
    let record = pb::Record { boot_id: "b".to_owned(), node_real_ns: 5, kind: Some(kind) };
    let payload = record.encode_to_vec();
    pb::SealedRecord { hash: blake3::hash(&payload).as_bytes().to_vec(), payload }
}

fn read_tile(change: impl FnOnce(&mut pb::Tile)) -> Result<Record, Quarantine> {
    let mut tile = tile();
    change(&mut tile);
    sealed(seal(pb::record::Kind::Tile(tile))).content
}

fn refused(change: impl FnOnce(&mut pb::Tile), expected: Quarantine) {
    assert_eq!(read_tile(change), Err(expected));
}

#[test]
fn a_tile_is_read() {
    let record = read_tile(|_| {}).unwrap();
    let RecordKind::Tile(tile) = record.kind else { panic!("a tile was sealed") };
    assert_eq!((tile.span(), tile.shares.len(), tile.classes[7]), (10, 2, 10));
    let text = format!("{:?}", tile.shares);
    assert!(text.contains("Some(Measured)"), "{text}");
    assert!(text.contains("pod: None"), "an empty name is absent: {text}");
    assert!(text.contains("\"other\""), "an unknown reason is other: {text}");
}

#[test]
fn what_a_tile_says_besides_time_is_read() {
    let tile_of = |change: &dyn Fn(&mut pb::Tile)| match read_tile(change).unwrap().kind {
        RecordKind::Tile(tile) => tile,
        RecordKind::Cuda(_) => panic!("a tile was sealed"),
    };
    let tile = tile_of(&|_| {});
    let energy = tile.energy.clone().unwrap();
    let split = energy.split.unwrap();
    assert_eq!((energy.mj, split.method), (70, EnergyMethod::FloorDynamic));
    assert_eq!((split.shares, split.classes[7]), (vec![60, 10], 70));
    assert_eq!(tile.sm, Some(SmActivity { active_ns: 2, measured_ns: 9 }));
    assert_eq!(tile.seen, Some(Seen { process_ns: 7, healthy_ns: 10 }));
    assert_eq!((tile.slices, tile.weight()), (None, Some(WHOLE)));

    let older = tile_of(&of_older_agent);
    assert_eq!(older.energy, Some(Energy { mj: 70, split: None }));
    assert_eq!((older.sm, older.seen), (None, None));
    let mig = |it: &mut pb::Tile| {
        it.instance.as_mut().unwrap().mig_uuid = Some("MIG-1".to_owned());
    };
    assert_eq!(tile_of(&mig).weight(), None, "its size is not known");
    let sized = tile_of(&|it| {
        mig(it);
        it.slices = Some(pb::Slices { instance: 1, device: 7 });
    });
    assert_eq!(sized.weight(), Some(WHOLE / 7));
}

#[test]
fn energy_has_parts_and_a_method_or_neither() {
    let malformed = Quarantine::Malformed;
    refused(|it| it.energy_method = 0, malformed);
    refused(|it| it.energy_method = 99, malformed);
    refused(|it| it.energy_mj = None, malformed);
    refused(
        |it| {
            it.classes[0].energy_mj = u64::MAX;
            it.classes.push(it.classes[0]);
        },
        malformed,
    );
}

#[test]
fn tiles_without_meaning_are_set_aside() {
    let malformed = Quarantine::Malformed;
    refused(|it| it.instance = None, malformed);
    refused(|it| it.instance.as_mut().unwrap().gpu_uuid = String::new(), malformed);
    refused(|it| it.instance.as_mut().unwrap().mig_uuid = Some("\n".to_owned()), malformed);
    refused(|it| it.shares[0].kind = 99, malformed);
    refused(|it| it.shares[0].method = 0, malformed);
    refused(|it| it.shares[0].kind = 2, malformed);
    refused(|it| it.shares[0].holder = None, malformed);
    refused(|it| it.shares[0].holder.as_mut().unwrap().tenant = String::new(), malformed);
    refused(|it| it.remainders[0].kind = 0, malformed);
    refused(|it| it.classes[0].class = 10, malformed);
    refused(|it| it.classes[0].class = -1, malformed);
    refused(|it| it.shares = vec![it.shares[0].clone(); 400], Quarantine::TooLarge);
}

fn read_activity(
    change: impl FnOnce(&mut pb::CudaActivity),
) -> Result<Box<CudaActivity>, Quarantine> {
    let mut activity = activity();
    change(&mut activity);
    let content = sealed(seal(pb::record::Kind::Cuda(activity))).content?;
    let RecordKind::Cuda(read) = content.kind else { panic!("activity was sealed") };
    Ok(read)
}

#[test]
fn activity_is_read() {
    let read = read_activity(|_| {}).unwrap();
    let sums = &read.sums;
    assert_eq!(sums[pb::CudaCounter::KernelLaunches], 11);
    assert_eq!(sums[pb::CudaCounter::PeerBytes], 1_009);
    assert_eq!((sums.span_ns, sums.watched_ns, sums.memory_ns), (10, 7, 10));
    assert_eq!(read_activity(|it| it.memory_known = false).unwrap().sums.memory_ns, 0);
}

#[test]
fn a_counter_of_a_later_version_is_counted_and_the_others_kept() {
    let counts = |it: &mut pb::CudaActivity, counter| {
        it.counts.as_mut().unwrap().counts.push(count(counter, 5));
    };
    let read = read_activity(|it| counts(it, 9_999)).unwrap();
    assert_eq!((read.unknown, read.sums[pb::CudaCounter::KernelLaunches]), (1, 11));
    for bad in [0, -1] {
        assert_eq!(read_activity(|it| counts(it, bad)), Err(Quarantine::Malformed));
    }
    let many = |it: &mut pb::CudaActivity| (0..1_100).for_each(|_| counts(it, 1));
    assert_eq!(read_activity(many), Err(Quarantine::TooLarge));
}

#[test]
fn activity_that_counts_nothing_has_another_form() {
    let empty = Some(pb::CudaCounts::default());
    assert_eq!(read_activity(|it| it.counts = empty), Err(Quarantine::Malformed));
    assert_eq!(read_activity(|it| it.counts = None), Err(Quarantine::Malformed));
}

#[test]
fn damage_and_nonsense_are_set_aside_with_their_content() {
    let good = seal(pb::record::Kind::Tile(tile()));
    for bit in 0..good.payload.len() * 8 {
        let mut damaged = good.clone();
        damaged.payload[bit / 8] ^= 1 << (bit % 8);
        let read = sealed(damaged.clone());
        assert_eq!(read.content, Err(Quarantine::HashMismatch));
        assert_eq!(read.payload, damaged.payload);
    }
    for length in 0..good.payload.len() {
        let payload = good.payload[..length].to_vec();
        let hash = blake3::hash(&payload).as_bytes().to_vec();
        assert!(sealed(pb::SealedRecord { payload, hash }).content.is_err());
    }
}

#[test]
fn names_are_printable_and_bounded() {
    let check = |text: &str, most: usize, expected: &str| assert_eq!(&*name(text, most), expected);
    check("ml", 8, "ml");
    check("a\nb\0", 64, "a\\u{a}b\\u{0}");
    check("abcdef", 4, "abcd");
    check("äääää", 5, "ää");
    check("abc\n", 6, "abc");
}

#[test]
fn nodes_are_never_cut() {
    let identity = |cluster: &str, node: &str| pb::NodeIdentity {
        cluster: cluster.to_owned(),
        node: node.to_owned(),
        ..pb::NodeIdentity::default()
    };
    assert_eq!(node(&identity("", "n"), "home").unwrap().to_string(), "home/n");
    assert_eq!(node(&identity("far", "n"), "home").unwrap().to_string(), "far/n");
    for bad in ["", "a\nb", &"x".repeat(MAX_NAME + 1)] {
        assert!(node(&identity("c", bad), "home").is_err());
    }
}

#[test]
fn a_hello_is_read_or_says_what_is_wrong() {
    let good = pb::Hello {
        node: Some(pb::NodeIdentity {
            node: "n".to_owned(),
            boot_id: "b".to_owned(),
            ..pb::NodeIdentity::default()
        }),
        spool_id: vec![1; 16],
        clock: Some(pb::ClockReading { boot_ns: 5, real_ns: 6 }),
        ..pb::Hello::default()
    };
    let read = hello(good.clone(), "home", 77).unwrap();
    assert_eq!((read.clock.boot_ns, read.clock.utc_ns, read.ledger_seen), (5, 77, None));
    let check = |change: fn(&mut pb::Hello), expected: &str| {
        let mut bad = good.clone();
        change(&mut bad);
        assert_eq!(hello(bad, "home", 77).unwrap_err().to_string(), expected);
    };
    check(|it| it.node = None, "node is missing");
    check(|it| it.spool_id = vec![1; 15], "spool_id is not 16 bytes long");
    check(|it| it.clock = None, "clock is missing");
    check(
        |it| it.clock.as_mut().unwrap().boot_ns = u64::MAX,
        "clock.boot_ns is more than 50 years",
    );
    check(|it| it.device_uuids = vec![String::new(); 257], "device_uuids is longer than 256");
}

#[test]
fn what_is_not_a_ratio_is_absent() {
    for (value, expected) in
        [(0.5, Some(0.5)), (f64::NAN, None), (-0.1, None), (1.1, None), (f64::INFINITY, None)]
    {
        let readings =
            Some(pb::DeviceReadings { busy_ratio: Some(value), ..pb::DeviceReadings::default() });
        let devices = vec![pb::Device { readings, ..pb::Device::default() }];
        let update = live(pb::LiveUpdate { devices, ..pb::LiveUpdate::default() });
        assert_eq!(update.devices[0].readings.as_ref().unwrap().busy_ratio, expected);
    }
}
