//! A whole scrape of a small, eventful fleet against `golden.prom`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use proto::cuda::counters;
use proto::exposition::Text;
use proto::telemetry::v1::{
    Class, CudaCounter, Device, DeviceReadings, Health, Holder, Instance, LiveHolder, NodeIdentity,
    TracedMemory, Tracing, TracingLoss,
};

use super::{write_fleet, write_offers, write_totals};
use crate::ledger::amounts::EnergyAmounts;
use crate::ledger::totals::{InstanceSeries, InstanceTotals, TenantSeries, Totals, UnownedSeries};
use crate::model::cuda::CudaSums;
use crate::model::ids::{InstanceId, NodeKey, TenantLabels};
use crate::model::record::{CLASSES, Method, Reason, TenantShare, UnownedShare};
use crate::state::Event;
use crate::state::fixtures::{LIMITS, collector_ns, gone, gpu, held_by, live};
use crate::state::fleet::Fleet;

fn full_readings() -> DeviceReadings {
    DeviceReadings {
        busy_ratio: Some(0.07),
        memory_total_bytes: Some(85_899_345_920),
        memory_used_bytes: Some(25_769_803_776),
        memory_reserved_bytes: Some(600_000_000),
        memory_free_bytes: Some(59_529_542_144),
        power_mw: Some(61_500),
        power_limit_mw: Some(700_000),
        energy_mj: Some(9_123_456_789),
        temperature_celsius: Some(-3),
        sm_clock_hz: Some(1_980_000_000),
        memory_clock_hz: Some(2_619_000_000),
        memory_busy_ratio: Some(0.0),
    }
}

/// Two holders, one without a known amount of memory; strange text in every free label.
fn held() -> Device {
    let mut device = held_by(gpu("GPU-1", Class::MemoryHeld, 100), &["ml \"quoted\\team\"", "b"]);
    device.index = Some(0);
    device.pci_bus_id = Some("00000000:0F:00.0".to_owned());
    device.model = Some("H100 \"80GB\"\\n".to_owned());
    device.driver_version = Some("580.95.05".to_owned());
    device.readings = Some(full_readings());
    let first: &mut LiveHolder = &mut device.instances[0].holders[0];
    first.memory_bytes = Some(25_769_803_776);
    device
}

fn mig() -> Device {
    let part = |name: &str, class: Class| Instance {
        mig_uuid: Some(name.to_owned()),
        class: class.into(),
        class_since_ns: 150_000_000_000,
        ..Instance::default()
    };
    let instances = vec![part("MIG-1", Class::Free), part("MIG-2", Class::Unknown)];
    Device { instances, ..gpu("GPU-2", Class::Free, 0) }
}

fn lost() -> Device {
    Device { readings: None, health: Health::Lost.into(), ..gpu("GPU-3", Class::Down, 190) }
}

fn holder(tenant: &str) -> Option<Holder> {
    Some(Holder { tenant: tenant.to_owned(), ..Holder::default() })
}

fn fleet() -> Fleet {
    let mut fleet = Fleet::new(LIMITS);
    let mut event = live("gpu-17", 200, vec![held(), mig(), lost()]);
    if let Event::Live { update, .. } = &mut event {
        let boot_id = "boot".to_owned();
        let agent_version = "0.1.0".to_owned();
        update.node = Some(NodeIdentity { boot_id, agent_version, ..NodeIdentity::default() });
        update.tracing = Some(Tracing {
            on: true,
            hooks_attached: 40,
            hooks_wanted: 42,
            hooks_slow: 3,
            lost: vec![TracingLoss { cause: "calls".to_owned(), count: 5 }],
            sampling_factor: Some(2.5),
            ..Tracing::default()
        });
        update.traced_memory = vec![
            TracedMemory {
                holder: holder("ml"),
                live_bytes: Some(1 << 30),
                peak_bytes: Some(1 << 31),
                host_bytes: Some(0),
            },
            TracedMemory { holder: holder("unknown"), ..TracedMemory::default() },
        ];
        update.spool_records = 3;
    }
    fleet.apply(event);
    fleet.apply(live("gpu-18", 190, vec![gpu("GPU-9", Class::Free, 0)]));
    fleet.apply(gone("gpu-18"));
    fleet
}

fn totals() -> Totals {
    let labels_of = |tenant: &str| TenantLabels {
        tenant: tenant.into(),
        namespace: Some("ml".into()),
        pod: Some("train-0".into()),
        container: None,
    };
    let labels = labels_of("ml");
    let tenant = |share, method| TenantSeries { labels: labels.clone(), share, method };
    let instance = InstanceSeries {
        node: Arc::new(NodeKey { cluster: "c".to_owned(), node: "gpu-17".to_owned() }),
        instance: InstanceId { gpu_uuid: "GPU-1".into(), mig_uuid: None },
    };
    let nobody = |share, reason| UnownedSeries { instance: instance.clone(), share, reason };
    let mut class_ns = [0; CLASSES.len()];
    class_ns[1] = 1_000_000_001;
    let mut class_mj = [0; CLASSES.len()];
    (class_mj[1], class_mj[7]) = (1_503, 60_000);
    let drawn = |mj| EnergyAmounts { known_ns: 1, mj };
    let mut cuda = CudaSums::default();
    (cuda.span_ns, cuda.watched_ns, cuda.memory_ns) = (20, 13, 20);
    for (value, counter) in (104_729..).zip(counters()) {
        cuda[counter] = value;
    }
    let quiet = labels_of("quiet");
    let mut device = CudaSums::default();
    device[CudaCounter::GraphLaunches] = 7;
    Totals {
        tenants: BTreeMap::from([
            (tenant(TenantShare::Active, Some(Method::Measured)), 1_000_000_000_000_000_000_001),
            (tenant(TenantShare::HeldIdle, None), 7),
        ]),
        unowned: BTreeMap::from([
            (nobody(UnownedShare::Free, Reason::NONE), 1_000_000_001),
            (nobody(UnownedShare::Unobserved, Reason::MISSING), 5_000_000_000),
        ]),
        tenant_energy: BTreeMap::from([
            (tenant(TenantShare::Active, Some(Method::Exclusive)), drawn([40_000, 0, 0])),
            (tenant(TenantShare::Active, Some(Method::Measured)), drawn([19_000, 7, 0])),
            (tenant(TenantShare::HeldIdle, None), drawn([993, 0, 0])),
        ]),
        unowned_energy: BTreeMap::from([(
            nobody(UnownedShare::Free, Reason::of_free("unconfigured")),
            drawn([0, 0, 1_503]),
        )]),
        cuda: BTreeMap::from([(labels.clone(), cuda), (quiet, CudaSums::default())]),
        cuda_devices: BTreeMap::from([(instance.clone(), device)]),
        instances: BTreeMap::from([(
            instance.clone(),
            InstanceTotals {
                class_ns,
                energy_mj: Some(61_503),
                class_mj: Some(class_mj),
                memory_byte_seconds: None,
                sm_ns: Some((433_000_000, 1_000_000_000)),
                seen_ns: Some((0, 1_000_000_001)),
            },
        )]),
    }
}

fn scrape() -> String {
    let mut text = Text::default();
    write_fleet(&mut text, &fleet().snapshot(), collector_ns(202));
    write_offers(&mut text, &BTreeMap::from([(Class::Free, 1)]));
    write_totals(&mut text, &totals());
    text.into_body()
}

/// A difference rewrites the file and fails: look at it, check it with promtool, commit it.
#[test]
fn a_scrape_is_as_it_was() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/outputs/prometheus/golden.prom");
    let fresh = scrape();
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    if fresh != golden {
        std::fs::write(&path, &fresh).expect("the file can be rewritten");
    }
    assert_eq!(fresh, golden, "{} was rewritten", path.display());
}

#[test]
fn a_node_that_has_gone_keeps_no_gauge_of_its_devices() {
    let scrape = scrape();
    assert!(!scrape.contains("GPU-9"));
    assert!(scrape.contains("gleaner_node_up{node=\"gpu-18\"} 0\n"));
}

#[test]
fn no_series_is_there_twice() {
    let scrape = scrape();
    let names = scrape.lines().filter(|it| !it.starts_with('#'));
    let mut names: Vec<_> = names.filter_map(|it| it.rsplit_once(' ')).map(|it| it.0).collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all);
}

#[test]
fn nodes_of_one_name_in_two_clusters_are_told_apart() {
    let mut fleet = Fleet::new(LIMITS);
    for cluster in ["north", "south"] {
        let Event::Live { node, update, received_ns } = live("gpu-1", 1, Vec::new()) else {
            unreachable!("`live` makes a live event")
        };
        let node = NodeKey { cluster: cluster.to_owned(), ..node };
        fleet.apply(Event::Live { node, update, received_ns });
    }
    let mut text = Text::default();
    write_fleet(&mut text, &fleet.snapshot(), collector_ns(2));
    let body = text.into_body();
    assert!(body.contains("gleaner_node_up{node=\"north/gpu-1\"} 1\n"));
    assert!(body.contains("gleaner_node_up{node=\"south/gpu-1\"} 1\n"));
}
