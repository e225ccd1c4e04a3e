//! The names, units and labels of NVIDIA's dcgm-exporter, for dashboards that ask for them. Served on
//! demand only: beside dcgm-exporter every sum would be twice as high.
//!
//! A figure of a device is there once, whoever uses it. What is not known has no series, where
//! dcgm-exporter has 0 or repeats what it knew last. Nothing is read for this: it is a second way to
//! write what `proto::series` writes.

use proto::exposition::{Labels, Text};
use proto::family::{Family, Label};
use proto::telemetry::v1::figure::Kind;
use proto::telemetry::v1::{Device, Figure, Holder, Instance, LiveUpdate, holder};

/// When there is no series, and why.
const NOT_READ: &str = "the device was not read, or does not say";
const NOT_OFFERED: &str = "device or driver do not offer it";
const NO_PROFILE: &str = "no profiling counters of its own, or no two readings of them";

/// A label without a value is left out. The last three are those of the holder, where it is a pod and
/// nobody else holds the device or instance.
const OF_DEVICE: [Label; 10] = [
    Label::free("gpu"),
    Label::free("UUID"),
    Label::free("pci_bus_id"),
    Label::free("device"),
    Label::free("modelName"),
    Label::free("Hostname"),
    Label::free("DCGM_FI_DRIVER_VERSION"),
    Label::free("container"),
    Label::free("namespace"),
    Label::free("pod"),
];
/// Also which instance it is, where MIG is on.
const OF_INSTANCE: [Label; 12] = [
    Label::free("gpu"),
    Label::free("UUID"),
    Label::free("pci_bus_id"),
    Label::free("device"),
    Label::free("modelName"),
    Label::free("GPU_I_PROFILE"),
    Label::free("GPU_I_ID"),
    Label::free("Hostname"),
    Label::free("DCGM_FI_DRIVER_VERSION"),
    Label::free("container"),
    Label::free("namespace"),
    Label::free("pod"),
];

/// How a value is found: counts keep every digit.
#[derive(Clone, Copy, Debug)]
enum Read {
    Count(fn(&Device) -> Option<u64>),
    Real(fn(&Device) -> Option<f64>),
}

const DEVICE: [(Family, Read); 24] = [
    (
        gauge("DCGM_FI_DEV_SM_CLOCK", "Clock of the multiprocessors.", "MHz"),
        Read::Count(|it| it.readings?.sm_clock_hz.map(mega)),
    ),
    (
        gauge("DCGM_FI_DEV_MEM_CLOCK", "Clock of the memory.", "MHz"),
        Read::Count(|it| it.readings?.memory_clock_hz.map(mega)),
    ),
    (
        figure("DCGM_FI_DEV_MEMORY_TEMP", "Temperature of the memory.", "°C"),
        Read::Count(|it| of(it, Kind::MemoryTemperature)),
    ),
    (
        gauge("DCGM_FI_DEV_GPU_TEMP", "Temperature of the GPU.", "°C"),
        Read::Real(|it| it.readings?.temperature_celsius.map(f64::from)),
    ),
    (
        gauge("DCGM_FI_DEV_POWER_USAGE", "Power draw.", "watts"),
        Read::Real(|it| it.readings?.power_mw.map(thousandths)),
    ),
    (
        counter(
            "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
            "Energy since the driver was loaded.",
            "mJ",
        ),
        Read::Count(|it| it.readings?.energy_mj),
    ),
    (
        counter(
            "DCGM_FI_DEV_PCIE_REPLAY_COUNTER",
            "Transfers over PCIe that were repeated.",
            "transfers",
        ),
        Read::Count(|it| of(it, Kind::PcieReplays)),
    ),
    (
        gauge(
            "DCGM_FI_DEV_GPU_UTIL",
            "Part of the driver's sample period in which a kernel ran.",
            "%",
        ),
        Read::Real(|it| it.readings?.busy_ratio.map(percent)),
    ),
    (
        gauge(
            "DCGM_FI_DEV_MEM_COPY_UTIL",
            "Part of the driver's sample period in which memory was read or written.",
            "%",
        ),
        Read::Real(|it| it.readings?.memory_busy_ratio.map(percent)),
    ),
    (
        figure(
            "DCGM_FI_DEV_ENC_UTIL",
            "Part of the sample period in which the encoder worked.",
            "%",
        ),
        Read::Count(|it| of(it, Kind::EncoderBusy).map(hundredths)),
    ),
    (
        figure(
            "DCGM_FI_DEV_DEC_UTIL",
            "Part of the sample period in which the decoder worked.",
            "%",
        ),
        Read::Count(|it| of(it, Kind::DecoderBusy).map(hundredths)),
    ),
    (
        gauge(
            "DCGM_FI_DEV_XID_ERRORS",
            "Number of the newest error that the driver reported.",
            "number",
        )
        .absent("none was heard of, and errors are not listened for")
        .note("0: none since the agent started. 999: the driver did not know which."),
        Read::Count(newest_xid),
    ),
    (
        gauge("DCGM_FI_DEV_FB_TOTAL", "Device memory.", "MiB"),
        Read::Count(|it| it.readings?.memory_total_bytes.map(mebi)),
    ),
    (
        gauge("DCGM_FI_DEV_FB_FREE", "Device memory that is free.", "MiB"),
        Read::Count(|it| it.readings?.memory_free_bytes.map(mebi)),
    ),
    (
        gauge("DCGM_FI_DEV_FB_USED", "Device memory that is used.", "MiB"),
        Read::Count(|it| it.readings?.memory_used_bytes.map(mebi)),
    ),
    (
        gauge("DCGM_FI_DEV_FB_RESERVED", "Device memory that the driver keeps for itself.", "MiB"),
        Read::Count(|it| it.readings?.memory_reserved_bytes.map(mebi)),
    ),
    (
        figure_counter(
            "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL",
            "Data that was sent and received over all NVLinks.",
            "KiB",
        ),
        Read::Count(|it| {
            let sent = of(it, Kind::NvlinkTransmitted)?;
            Some(sent.saturating_add(of(it, Kind::NvlinkReceived)?) >> 10)
        }),
    ),
    (
        figure_counter(
            "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL",
            "Corrected errors since the driver was loaded.",
            "errors",
        ),
        Read::Count(|it| of(it, Kind::EccVolatileCorrected)),
    ),
    (
        figure_counter(
            "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL",
            "Uncorrected errors since the driver was loaded.",
            "errors",
        ),
        Read::Count(|it| of(it, Kind::EccVolatileUncorrected)),
    ),
    (
        figure_counter("DCGM_FI_DEV_ECC_SBE_AGG_TOTAL", "Corrected errors ever.", "errors"),
        Read::Count(|it| of(it, Kind::EccAggregateCorrected)),
    ),
    (
        figure_counter("DCGM_FI_DEV_ECC_DBE_AGG_TOTAL", "Uncorrected errors ever.", "errors"),
        Read::Count(|it| of(it, Kind::EccAggregateUncorrected)),
    ),
    (
        figure_counter(
            "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS",
            "Rows remapped for uncorrectable errors.",
            "rows",
        ),
        Read::Count(|it| of(it, Kind::RemappedRowsUncorrectable)),
    ),
    (
        figure_counter(
            "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS",
            "Rows remapped for correctable errors.",
            "rows",
        ),
        Read::Count(|it| of(it, Kind::RemappedRowsCorrectable)),
    ),
    (
        figure("DCGM_FI_DEV_ROW_REMAP_FAILURE", "1 where a row could not be remapped.", "0 or 1"),
        Read::Count(|it| of(it, Kind::RowRemapFailed)),
    ),
];

/// Of an instance, from its profiling counters: a device's own where MIG is off.
const INSTANCE: [(Family, Kind, Scale); 12] = [
    (
        ratio("DCGM_FI_PROF_GR_ENGINE_ACTIVE", "Part of the time in which anything ran."),
        Kind::GraphicsActive,
        Scale::Millionths,
    ),
    (
        ratio("DCGM_FI_PROF_SM_ACTIVE", "Part of the time in which a multiprocessor had work."),
        Kind::SmActive,
        Scale::Millionths,
    ),
    (
        ratio("DCGM_FI_PROF_SM_OCCUPANCY", "Warps on the multiprocessors, as a part of what fits."),
        Kind::SmOccupancy,
        Scale::Millionths,
    ),
    (
        ratio("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", "Part of what the tensor cores could do."),
        Kind::TensorActive,
        Scale::Millionths,
    ),
    (
        ratio("DCGM_FI_PROF_PIPE_FP64_ACTIVE", "Part of what the fp64 units could do."),
        Kind::Fp64Active,
        Scale::Millionths,
    ),
    (
        ratio("DCGM_FI_PROF_PIPE_FP32_ACTIVE", "Part of what the fp32 units could do."),
        Kind::Fp32Active,
        Scale::Millionths,
    ),
    (
        ratio("DCGM_FI_PROF_PIPE_FP16_ACTIVE", "Part of what the fp16 units could do."),
        Kind::Fp16Active,
        Scale::Millionths,
    ),
    (
        ratio("DCGM_FI_PROF_DRAM_ACTIVE", "Part of the bandwidth of device memory that was used."),
        Kind::DramActive,
        Scale::Millionths,
    ),
    (rate("DCGM_FI_PROF_PCIE_TX_BYTES", "Sent over PCIe."), Kind::PcieTransmitRate, Scale::Same),
    (rate("DCGM_FI_PROF_PCIE_RX_BYTES", "Received over PCIe."), Kind::PcieReceiveRate, Scale::Same),
    (
        rate("DCGM_FI_PROF_NVLINK_TX_BYTES", "Sent over NVLink."),
        Kind::NvlinkTransmitRate,
        Scale::Same,
    ),
    (
        rate("DCGM_FI_PROF_NVLINK_RX_BYTES", "Received over NVLink."),
        Kind::NvlinkReceiveRate,
        Scale::Same,
    ),
];

#[derive(Clone, Copy, Debug)]
enum Scale {
    Same,
    Millionths,
}

const fn gauge(name: &'static str, help: &'static str, unit: &'static str) -> Family {
    Family::gauge(name, help).by(&OF_DEVICE).in_unit(unit).absent(NOT_READ)
}

const fn counter(name: &'static str, help: &'static str, unit: &'static str) -> Family {
    Family::counter(name, help).by(&OF_DEVICE).in_unit(unit).absent(NOT_READ)
}

const fn figure(name: &'static str, help: &'static str, unit: &'static str) -> Family {
    gauge(name, help, unit).absent(NOT_OFFERED)
}

const fn figure_counter(name: &'static str, help: &'static str, unit: &'static str) -> Family {
    counter(name, help, unit).absent(NOT_OFFERED)
}

const fn ratio(name: &'static str, help: &'static str) -> Family {
    gauge(name, help, "0–1").by(&OF_INSTANCE).absent(NO_PROFILE)
}

const fn rate(name: &'static str, help: &'static str) -> Family {
    gauge(name, help, "bytes per second").by(&OF_INSTANCE).absent(NO_PROFILE)
}

pub(super) fn families() -> Vec<Family> {
    let device = DEVICE.map(|(family, _)| family);
    [&device[..], &INSTANCE.map(|(family, ..)| family)].concat()
}

pub(super) fn write(text: &mut Text, node: &str, live: &LiveUpdate) {
    let devices: Vec<(Labels, &Device)> =
        live.devices.iter().map(|it| (device_labels(node, it), it)).collect();
    for (family, read) in DEVICE {
        text.family(family);
        for (labels, device) in &devices {
            match read {
                Read::Count(read) => text.count(labels, read(device)),
                Read::Real(read) => text.sample(labels, read(device)),
            };
        }
    }
    let instances: Vec<(Labels, &Instance)> = live
        .devices
        .iter()
        .flat_map(|device| {
            device.instances.iter().map(|it| (instance_labels(node, device, it), it))
        })
        .collect();
    for (family, kind, scale) in INSTANCE {
        text.family(family);
        for (labels, instance) in &instances {
            let value = value(&instance.figures, kind);
            match scale {
                Scale::Same => text.count(labels, value),
                Scale::Millionths => text.sample(labels, value.map(millionths)),
            };
        }
    }
}

// === labels ===

/// Who holds a device that is one instance is who holds that. A device with MIG on is nobody's.
fn device_labels(node: &str, device: &Device) -> Labels {
    let whole = device.instances.first().filter(|it| it.mig_uuid.is_none());
    labels(node, device, None, whole.and_then(only_pod))
}

fn instance_labels(node: &str, device: &Device, instance: &Instance) -> Labels {
    let mig = instance.mig_uuid.is_some().then_some(instance);
    labels(node, device, mig, only_pod(instance))
}

fn labels(node: &str, device: &Device, mig: Option<&Instance>, pod: Option<&Holder>) -> Labels {
    let index = device.index.map(|it| it.to_string());
    let name = index.as_ref().map(|it| format!("nvidia{it}"));
    let id = mig.and_then(|it| it.gpu_instance).map(|it| it.to_string());
    let values = [
        ("gpu", index.as_deref()),
        ("UUID", Some(device.gpu_uuid.as_str())),
        ("pci_bus_id", device.pci_bus_id.as_deref()),
        ("device", name.as_deref()),
        ("modelName", device.model.as_deref()),
        ("GPU_I_PROFILE", mig.and_then(|it| it.mig_profile.as_deref())),
        ("GPU_I_ID", id.as_deref()),
        ("Hostname", Some(node)),
        ("DCGM_FI_DRIVER_VERSION", device.driver_version.as_deref()),
        ("container", pod.and_then(|it| it.tenant_container.as_deref())),
        ("namespace", pod.and_then(|it| it.tenant_namespace.as_deref())),
        ("pod", pod.and_then(|it| it.tenant_pod.as_deref())),
    ];
    Labels::new(values.into_iter().filter_map(|(label, value)| Some((label, value?))))
}

/// The pod's container that holds the instance, where nobody else does.
fn only_pod(instance: &Instance) -> Option<&Holder> {
    let mut holders = instance.holders.iter().map(|it| it.holder.as_ref());
    let first = holders.next()??;
    let is_alone = holders.all(|it| it == Some(first));
    (is_alone && first.kind() == holder::Kind::Pod).then_some(first)
}

// === values ===

fn of(device: &Device, kind: Kind) -> Option<u64> {
    value(&device.figures, kind)
}

fn value(figures: &[Figure], kind: Kind) -> Option<u64> {
    figures.iter().find(|it| it.kind() == kind).map(|it| it.value)
}

/// That there was none is known only while errors are listened for.
fn newest_xid(device: &Device) -> Option<u64> {
    let newest = device.xids.iter().max_by_key(|it| it.last_real_ns).map(|it| it.code);
    newest.or_else(|| device.hears_xids.then_some(0))
}

fn mega(hertz: u64) -> u64 {
    hertz / 1_000_000
}

fn mebi(bytes: u64) -> u64 {
    bytes >> 20
}

/// From millionths.
fn hundredths(value: u64) -> u64 {
    value / 10_000
}

/// The driver says whole percents.
fn percent(ratio: f64) -> f64 {
    (ratio * 100.0).round()
}

fn thousandths(value: u64) -> f64 {
    f64::from(u32::try_from(value).unwrap_or(u32::MAX)) / 1e3
}

fn millionths(value: u64) -> f64 {
    f64::from(u32::try_from(value).unwrap_or(u32::MAX)) / 1e6
}

#[cfg(test)]
mod tests {
    use proto::exposition::Text;
    use proto::telemetry::v1::figure::Kind;
    use proto::telemetry::v1::{
        Device, DeviceReadings, Figure, Holder, Instance, LiveHolder, LiveUpdate, Xid, holder,
    };

    use super::write;

    fn body(device: Device) -> String {
        let live = LiveUpdate { devices: vec![device], ..LiveUpdate::default() };
        let mut text = Text::default();
        write(&mut text, "n", &live);
        text.into_body()
    }

    fn device(instances: Vec<Instance>) -> Device {
        let readings = DeviceReadings { power_mw: Some(61_500), ..DeviceReadings::default() };
        Device {
            gpu_uuid: "GPU-1".to_owned(),
            index: Some(0),
            model: Some("X\"1".to_owned()),
            readings: Some(readings),
            instances,
            ..Device::default()
        }
    }

    fn pod(name: &str) -> LiveHolder {
        let holder = Holder {
            kind: holder::Kind::Pod.into(),
            tenant: "team".to_owned(),
            tenant_namespace: Some("ml".to_owned()),
            tenant_pod: Some(name.to_owned()),
            ..Holder::default()
        };
        LiveHolder { holder: Some(holder), ..LiveHolder::default() }
    }

    fn held_by(holders: Vec<LiveHolder>) -> String {
        body(device(vec![Instance { holders, ..Instance::default() }]))
    }

    const POWER: &str = "DCGM_FI_DEV_POWER_USAGE{gpu=\"0\",UUID=\"GPU-1\",device=\"nvidia0\",\
                         modelName=\"X\\\"1\",Hostname=\"n\"";

    #[test]
    fn only_what_is_known_is_there() {
        let body = held_by(Vec::new());
        assert_eq!(body.lines().filter(|it| !it.starts_with('#')).count(), 1, "{body}");
        assert!(body.contains(&format!("{POWER}}} 61.5\n")), "{body}");
    }

    #[test]
    fn a_pod_is_named_where_it_is_alone() {
        let alone = held_by(vec![pod("a"), pod("a")]);
        assert!(alone.contains(&format!("{POWER},namespace=\"ml\",pod=\"a\"}} 61.5\n")), "{alone}");
        let shared = held_by(vec![pod("a"), pod("b")]);
        assert!(shared.contains(&format!("{POWER}}} 61.5\n")), "{shared}");
        let unit = LiveHolder { holder: Some(Holder::default()), ..LiveHolder::default() };
        for others in [vec![unit.clone()], vec![pod("a"), unit], vec![LiveHolder::default()]] {
            let body = held_by(others);
            assert!(body.contains(&format!("{POWER}}} 61.5\n")), "{body}");
        }
    }

    #[test]
    fn a_device_with_mig_on_is_there_once_and_its_instances_by_their_own_counters() {
        let part = |id| Instance {
            mig_uuid: Some(format!("MIG-{id}")),
            mig_profile: Some("1g.10gb".to_owned()),
            gpu_instance: Some(id),
            figures: vec![Figure { kind: Kind::SmActive.into(), value: 250_000 }],
            holders: vec![pod("a")],
            ..Instance::default()
        };
        let body = body(device(vec![part(7), part(9)]));
        assert!(body.contains(&format!("{POWER}}} 61.5\n")), "{body}");
        assert_eq!(body.matches("\nDCGM_FI_DEV_POWER_USAGE{").count(), 1);
        let sample = "DCGM_FI_PROF_SM_ACTIVE{gpu=\"0\",UUID=\"GPU-1\",device=\"nvidia0\",\
                      modelName=\"X\\\"1\",GPU_I_PROFILE=\"1g.10gb\",GPU_I_ID=\"9\",Hostname=\"n\",\
                      namespace=\"ml\",pod=\"a\"} 0.25\n";
        assert!(body.contains(sample), "{body}");
    }

    #[test]
    fn no_error_is_known_only_while_somebody_listens() {
        let xid = |code, last_real_ns| Xid { code, count: 1, last_real_ns };
        let check = |xids: Vec<Xid>, hears_xids, expected: Option<&str>| {
            let body = body(Device { xids, hears_xids, ..device(Vec::new()) });
            let line = body.lines().find(|it| it.starts_with("DCGM_FI_DEV_XID_ERRORS{"));
            assert_eq!(line.and_then(|it| it.rsplit(' ').next()), expected);
        };
        check(Vec::new(), false, None);
        check(Vec::new(), true, Some("0"));
        check(vec![xid(79, 5), xid(31, 4)], false, Some("79"));
    }
}
