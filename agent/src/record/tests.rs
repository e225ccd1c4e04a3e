//! What is written is read again, field for field.

use std::collections::BTreeMap;

use proptest::prelude::{Just, Strategy, any, prop, prop_assert_eq, proptest};
use prost::Message as _;

use super::{RecordError, Stamp, decode, encode};
use crate::attribution::fixtures;
use crate::model::ids::{DeviceId, Holder, HolderKind, InstanceId};
use crate::model::metering::{Energy, EnergyMethod, Seen, Slices, SmActivity};
use crate::model::readings::COUNTERS;
use crate::model::units::BootNs;
use crate::model::usage::{
    Class, CudaActivity, MemoryIntegral, Method, Reason, Record, Share, Tile,
};

fn holder() -> impl Strategy<Value = Holder> {
    let kind = prop::sample::select(vec![
        HolderKind::Pod,
        HolderKind::SlurmStep,
        HolderKind::Container,
        HolderKind::Unit,
        HolderKind::User,
    ]);
    let text = || prop::option::of("[a-z]{0,3}");
    (kind, "[a-z]{1,3}", "[a-z]{1,3}", text(), text(), text()).prop_map(
        |(kind, id, tenant, namespace, pod, container)| Holder {
            kind,
            id: id.into(),
            tenant: tenant.into(),
            namespace: namespace.map(Into::into),
            pod: pod.map(Into::into),
            container: container.map(Into::into),
        },
    )
}

fn share() -> impl Strategy<Value = Share> {
    let method = prop::sample::select(vec![
        Method::Exclusive,
        Method::Measured,
        Method::LaunchWeighted,
        Method::EqualSplit,
    ]);
    let reason = || {
        prop::sample::select(vec![
            Reason::AgentDown,
            Reason::NvmlFailed,
            Reason::GpuLost,
            Reason::GpuHung,
            Reason::ResetRequired,
            Reason::Released,
            Reason::NoProcessList,
            Reason::NoHolder,
            Reason::UnresolvedProcess,
        ])
    };
    proptest::prop_oneof![
        (holder(), method).prop_map(|(holder, method)| Share::Active(holder, method)),
        holder().prop_map(Share::HeldIdle),
        holder().prop_map(Share::HeldUnknown),
        Just(Share::Free),
        Just(Share::Unconfigured),
        reason().prop_map(Share::Unattributed),
        reason().prop_map(Share::Unobserved),
    ]
}

fn class() -> impl Strategy<Value = Class> {
    prop::sample::select(vec![
        Class::Unknown,
        Class::Free,
        Class::HeldNoProcess,
        Class::HeldNoContext,
        Class::MemoryHeld,
        Class::Stalled,
        Class::HostBound,
        Class::Active,
        Class::Down,
    ])
}

/// Some of everything that has a share or a class.
fn energy(
    mj: u64,
    method: Option<EnergyMethod>,
    shares: &BTreeMap<Share, u64>,
    classes: &BTreeMap<Class, u64>,
) -> Energy {
    Energy { mj, method, shares: thirds(shares), classes: thirds(classes) }
}

fn thirds<K: Ord + Clone>(times: &BTreeMap<K, u64>) -> BTreeMap<K, u64> {
    let thirds = times.iter().map(|(key, ns)| (key.clone(), ns / 3));
    thirds.filter(|it| it.1 > 0).collect()
}

fn sm() -> impl Strategy<Value = SmActivity> {
    prop::option::of((any::<u64>(), 1..u64::MAX)).prop_map(|it| {
        it.map_or_else(SmActivity::default, |(active_ns, measured_ns)| SmActivity {
            active_ns,
            measured_ns,
        })
    })
}

fn tile() -> impl Strategy<Value = Tile> {
    let memory = (any::<u32>(), any::<u64>()).prop_map(|(byte_seconds, peak_bytes)| {
        MemoryIntegral { byte_ns: u128::from(byte_seconds) * 1_000_000_000, peak_bytes }
    });
    let method = prop::sample::select(vec![
        None,
        Some(EnergyMethod::FloorDynamic),
        Some(EnergyMethod::Time),
        Some(EnergyMethod::Slices),
    ]);
    let seen = (any::<u64>(), any::<u64>())
        .prop_map(|(process_ns, healthy_ns)| Seen { process_ns, healthy_ns });
    let slices =
        (any::<u32>(), any::<u32>()).prop_map(|(instance, device)| Slices { instance, device });
    (
        ("[A-Z]{3}", prop::option::of("[A-Z]{3}"), any::<u64>(), any::<u64>()),
        prop::collection::btree_map(share(), any::<u64>(), 0..5),
        prop::collection::btree_map(class(), any::<u64>(), 0..4),
        prop::option::of((any::<u64>(), method)),
        (prop::option::of(memory), sm(), prop::option::of(seen), prop::option::of(slices)),
    )
        .prop_map(|((device, mig, start, end), shares, classes, drawn, rest)| Tile {
            id: InstanceId { device: DeviceId(device.into()), mig: mig.map(Into::into) },
            start: BootNs(start),
            end: BootNs(end),
            energy: drawn.map(|(mj, method)| energy(mj, method, &shares, &classes)),
            shares,
            classes,
            memory: rest.0,
            sm: rest.1,
            seen: rest.2,
            slices: rest.3,
        })
}

fn activity() -> impl Strategy<Value = CudaActivity> {
    let counts = prop::collection::vec(1..u64::MAX, COUNTERS);
    let place = (holder(), any::<u64>(), any::<u64>(), prop::option::of("[A-Z]{3}"));
    (place, counts, any::<u64>(), any::<bool>()).prop_map(
        |((holder, start, end, device), counts, watched_ns, memory_known)| CudaActivity {
            holder,
            start: BootNs(start),
            end: BootNs(end),
            device: device.map(|it| DeviceId(it.into())),
            counts: <[u64; COUNTERS]>::try_from(counts).expect("as many as asked for").into(),
            watched_ns,
            memory_known,
        },
    )
}

fn record() -> impl Strategy<Value = Record> {
    proptest::prop_oneof![
        tile().prop_map(|it| Record::Tile(Box::new(it))),
        activity().prop_map(|it| Record::Cuda(Box::new(it)))
    ]
}

fn stamp() -> Stamp {
    Stamp { boot_id: "boot".into(), real_ns: -5 }
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(record in record()) {
        let read = decode(&encode(&record, &stamp())).unwrap();
        prop_assert_eq!(read, (record, stamp()));
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let accepted = decode(&bytes).is_ok();
        prop_assert_eq!(accepted, decode(&bytes).is_ok());
    }
}

#[test]
fn memory_is_rounded_down_to_byte_seconds() {
    let memory = MemoryIntegral { byte_ns: 2_999_999_999, peak_bytes: 3 };
    let nothing = fixtures::tile((0, 0), BTreeMap::new(), BTreeMap::new());
    let tile = Tile { memory: Some(memory), ..nothing };
    let (read, _) = decode(&encode(&Record::Tile(Box::new(tile)), &stamp())).unwrap();
    let Record::Tile(read) = read else { panic!("a tile was written") };
    assert_eq!(read.memory.map(|it| it.byte_ns), Some(2_000_000_000));
}

/// Written before there were methods, sizes and the rest: what an upgrade finds in the spool.
#[test]
fn a_tile_of_an_older_agent_says_as_much_as_before() {
    use proto::telemetry::v1;
    let tile = v1::Tile {
        instance: Some(v1::InstanceId { gpu_uuid: "A".to_owned(), mig_uuid: None }),
        end_ns: 9,
        energy_mj: Some(70),
        ..v1::Tile::default()
    };
    let kind = Some(v1::record::Kind::Tile(tile));
    let record = v1::Record { kind, ..v1::Record::default() };
    let (read, _) = decode(&record.encode_to_vec()).unwrap();
    let Record::Tile(read) = read else { panic!("a tile was written") };
    let energy = read.energy.unwrap();
    assert_eq!((energy.mj, energy.method, energy.shares.len()), (70, None, 0));
    assert_eq!((read.seen, read.slices, read.sm), (None, None, SmActivity::default()));
}

#[test]
fn what_is_missing_is_named() {
    assert!(matches!(decode(&[]), Err(RecordError::Missing("kind"))));
    assert!(matches!(decode(&[0xff]), Err(RecordError::Malformed(_))));
}
