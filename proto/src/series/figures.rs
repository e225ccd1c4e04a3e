//! Series of a device's figures: one table from what was read to how it is shown.
//!
//! A figure that was not read has no series. Links are summed: a series per link would be twenty
//! times as many, and the driver keeps the sums.

use crate::exposition::{Labels, Text};
use crate::family::{FLAG, Family, Label, Subject, names};
use crate::names::instance_labels;
use crate::telemetry::v1::figure::Kind;
use crate::telemetry::v1::{Device, Figure};

/// One family and the figures in it.
#[derive(Clone, Copy, Debug)]
struct Row {
    family: Family,
    scale: Scale,
    /// Each with its value of the family's own label; one without where there is no such label.
    figures: &'static [(&'static str, Kind)],
}

/// From the unit of the figure to that of the series.
#[derive(Clone, Copy, Debug)]
enum Scale {
    Same,
    Nanoseconds,
    Millionths,
}

/// When there is no series.
const NOT_OFFERED: &str = "device or driver do not offer it";
const NO_PROFILE: &str = "no profiling counters of its own, or no two readings of them";

const ENGINES: [(&str, Kind); 4] = [
    ("encoder", Kind::EncoderBusy),
    ("decoder", Kind::DecoderBusy),
    ("jpeg", Kind::JpegBusy),
    ("optical_flow", Kind::OpticalFlowBusy),
];
const THROTTLE_REASONS: [(&str, Kind); 5] = [
    ("power_cap", Kind::HeldByPowerCap),
    ("sync_boost", Kind::HeldBySyncBoost),
    ("software_thermal", Kind::HeldBySoftwareThermal),
    ("hardware_thermal", Kind::HeldByHardwareThermal),
    ("power_brake", Kind::HeldByPowerBrake),
];
const PCIE_ERRORS: [(&str, Kind); 12] = [
    ("correctable", Kind::PcieCorrectable),
    ("non_fatal", Kind::PcieNonFatal),
    ("fatal", Kind::PcieFatal),
    ("unsupported_request", Kind::PcieUnsupportedRequests),
    ("bad_tlp", Kind::PcieBadTlp),
    ("bad_dllp", Kind::PcieBadDllp),
    ("lcrc", Kind::PcieLcrc),
    ("lane", Kind::PcieLane),
    ("receiver", Kind::PcieReceiver),
    ("nak_sent", Kind::PcieNaksSent),
    ("nak_received", Kind::PcieNaksReceived),
    ("replay_rollover", Kind::PcieReplayRollovers),
];
const NVLINK_ERRORS: [(&str, Kind); 12] = [
    ("crc_flit", Kind::NvlinkCrcFlit),
    ("crc_data", Kind::NvlinkCrcData),
    ("replay", Kind::NvlinkReplays),
    ("recovery", Kind::NvlinkRecoveries),
    ("ecc_data", Kind::NvlinkEccData),
    ("receive", Kind::NvlinkReceiveErrors),
    ("malformed_packet", Kind::NvlinkMalformedPackets),
    ("buffer_overrun", Kind::NvlinkBufferOverruns),
    ("link_integrity", Kind::NvlinkLinkIntegrity),
    ("link_recovered", Kind::NvlinkRecovered),
    ("link_recovery_failed", Kind::NvlinkRecoveryFailed),
    ("symbol", Kind::NvlinkSymbolErrors),
];
const ECC_WHEN: [(&str, Kind); 2] = [("now", Kind::EccOn), ("after_reset", Kind::EccOnAfterReset)];
const RETIRED_CAUSES: [(&str, Kind); 2] =
    [("single_bit", Kind::RetiredPagesSingleBit), ("double_bit", Kind::RetiredPagesDoubleBit)];
const REMAP_CAUSES: [(&str, Kind); 2] = [
    ("correctable", Kind::RemappedRowsCorrectable),
    ("uncorrectable", Kind::RemappedRowsUncorrectable),
];
const PIPES: [(&str, Kind); 5] = [
    ("tensor", Kind::TensorActive),
    ("integer", Kind::IntegerActive),
    ("fp64", Kind::Fp64Active),
    ("fp32", Kind::Fp32Active),
    ("fp16", Kind::Fp16Active),
];

const ROWS: [Row; 19] = [
    Row {
        family: Family::gauge(
            "gleaner_gpu_engine_busy_ratio",
            "Part of the last driver sample period in which a fixed-function engine worked.",
        )
        .of(Subject::Device)
        .by(&[Label::of("engine", &names(&ENGINES))])
        .absent(NOT_OFFERED)
        .note("NVML engine utilisation.")
        .experimental(),
        scale: Scale::Millionths,
        figures: &ENGINES,
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_bar1_total_bytes",
            "Device memory that can be mapped over PCIe.",
        )
        .of(Subject::Device)
        .absent(NOT_OFFERED)
        .experimental(),
        scale: Scale::Same,
        figures: &[("", Kind::Bar1Total)],
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_bar1_used_bytes",
            "Device memory that is mapped over PCIe.",
        )
        .of(Subject::Device)
        .absent(NOT_OFFERED)
        .experimental(),
        scale: Scale::Same,
        figures: &[("", Kind::Bar1Used)],
    },
    Row {
        family: Family::counter(
            "gleaner_gpu_throttle_seconds_total",
            "Time in which the clocks were held down, by reason; resets with the driver.",
        )
        .of(Subject::Device)
        .by(&[Label::of("reason", &names(&THROTTLE_REASONS))])
        .absent(NOT_OFFERED)
        .note("NVML fields 74, 76, 251–253 (269–271 from driver 580.82 on).")
        .experimental(),
        scale: Scale::Nanoseconds,
        figures: &THROTTLE_REASONS,
    },
    Row {
        family: Family::counter(
            "gleaner_gpu_pcie_transmit_bytes_total",
            "Bytes that the device sent over PCIe.",
        )
        .of(Subject::Device)
        .absent(NOT_OFFERED)
        .note("NVML field 197.")
        .experimental(),
        scale: Scale::Same,
        figures: &[("", Kind::PcieTransmitted)],
    },
    Row {
        family: Family::counter(
            "gleaner_gpu_pcie_receive_bytes_total",
            "Bytes that the device received over PCIe.",
        )
        .of(Subject::Device)
        .absent(NOT_OFFERED)
        .note("NVML field 198.")
        .experimental(),
        scale: Scale::Same,
        figures: &[("", Kind::PcieReceived)],
    },
    Row {
        family: Family::counter(
            "gleaner_gpu_pcie_replays_total",
            "Transfers over PCIe that were repeated.",
        )
        .of(Subject::Device)
        .in_unit("transfers")
        .absent(NOT_OFFERED)
        .note("NVML field 94.")
        .experimental(),
        scale: Scale::Same,
        figures: &[("", Kind::PcieReplays)],
    },
    Row {
        family: Family::counter(
            "gleaner_gpu_pcie_errors_total",
            "Errors on PCIe, by type. A type may be counted in another one too.",
        )
        .of(Subject::Device)
        .by(&[Label::of("type", &names(&PCIE_ERRORS))])
        .in_unit("errors")
        .absent(NOT_OFFERED)
        .note("NVML fields 95, 173–183.")
        .experimental(),
        scale: Scale::Same,
        figures: &PCIE_ERRORS,
    },
    Row {
        family: Family::counter(
            "gleaner_gpu_nvlink_transmit_bytes_total",
            "Data that the device sent over all NVLinks.",
        )
        .of(Subject::Device)
        .absent(NOT_OFFERED)
        .note("NVML field 202, or 138 before NVLink 5.")
        .experimental(),
        scale: Scale::Same,
        figures: &[("", Kind::NvlinkTransmitted)],
    },
    Row {
        family: Family::counter(
            "gleaner_gpu_nvlink_receive_bytes_total",
            "Data that the device received over all NVLinks.",
        )
        .of(Subject::Device)
        .absent(NOT_OFFERED)
        .note("NVML field 204, or 139 before NVLink 5.")
        .experimental(),
        scale: Scale::Same,
        figures: &[("", Kind::NvlinkReceived)],
    },
    Row {
        family: Family::counter(
            "gleaner_gpu_nvlink_errors_total",
            "Errors and recoveries of all NVLinks, by type.",
        )
        .of(Subject::Device)
        .by(&[Label::of("type", &names(&NVLINK_ERRORS))])
        .in_unit("events")
        .absent(NOT_OFFERED)
        .note("NVML fields 38, 45, 52, 59, 160, 206–214, 221; the first five types before NVLink 5, the others from it on.")
        .experimental(),
        scale: Scale::Same,
        figures: &NVLINK_ERRORS,
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_ecc_on",
            "1 where device memory has error correction, by when it has.",
        )
        .of(Subject::Device)
        .by(&[Label::of("when", &names(&ECC_WHEN))])
        .in_unit(FLAG)
        .absent(NOT_OFFERED)
        .note("NVML fields 1, 2.")
        .experimental(),
        scale: Scale::Same,
        figures: &ECC_WHEN,
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_retired_pages",
            "Pages of device memory that are not used any more, by cause.",
        )
        .of(Subject::Device)
        .by(&[Label::of("cause", &names(&RETIRED_CAUSES))])
        .in_unit("pages")
        .absent(NOT_OFFERED)
        .note("NVML fields 29, 30; before Ampere.")
        .experimental(),
        scale: Scale::Same,
        figures: &RETIRED_CAUSES,
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_retired_pages_pending",
            "1 while a page waits for a reboot to be retired.",
        )
        .of(Subject::Device)
        .in_unit(FLAG)
        .absent(NOT_OFFERED)
        .note("NVML field 31.")
        .experimental(),
        scale: Scale::Same,
        figures: &[("", Kind::RetiredPagesPending)],
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_remapped_rows",
            "Rows of device memory that spare rows stand in for, by cause.",
        )
        .of(Subject::Device)
        .by(&[Label::of("cause", &names(&REMAP_CAUSES))])
        .in_unit("rows")
        .absent(NOT_OFFERED)
        .note("NVML fields 142, 143; not with MIG on.")
        .experimental(),
        scale: Scale::Same,
        figures: &REMAP_CAUSES,
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_row_remap_pending",
            "1 while a row waits for a reset to be remapped.",
        )
        .of(Subject::Device)
        .in_unit(FLAG)
        .absent(NOT_OFFERED)
        .note("NVML field 144.")
        .experimental(),
        scale: Scale::Same,
        figures: &[("", Kind::RowRemapPending)],
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_row_remap_failed",
            "1 where a row could not be remapped: the device should be replaced.",
        )
        .of(Subject::Device)
        .in_unit(FLAG)
        .absent(NOT_OFFERED)
        .note("NVML field 145.")
        .experimental(),
        scale: Scale::Same,
        figures: &[("", Kind::RowRemapFailed)],
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_fabric_degraded",
            "1 while the NVLink fabric has less bandwidth than it should.",
        )
        .of(Subject::Device)
        .in_unit(FLAG)
        .absent(NOT_OFFERED)
        .experimental(),
        scale: Scale::Same,
        figures: &[("", Kind::FabricDegraded)],
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_accounting_on",
            "1 where the driver keeps accounts of processes; the agent never turns it on.",
        )
        .of(Subject::Device)
        .in_unit(FLAG)
        .absent(NOT_OFFERED)
        .experimental(),
        scale: Scale::Same,
        figures: &[("", Kind::AccountingOn)],
    },
];

/// Of an instance: of the device itself where MIG is off.
const INSTANCE_ROWS: [Row; 9] = [
    Row {
        family: Family::gauge(
            "gleaner_gpu_graphics_active_ratio",
            "Part of the time since the reading before in which anything ran on the instance.",
        )
        .of(Subject::Instance)
        .absent(NO_PROFILE)
        .experimental(),
        scale: Scale::Millionths,
        figures: &[("", Kind::GraphicsActive)],
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_sm_active_ratio",
            "Part of the time in which a multiprocessor had work, averaged over them.",
        )
        .of(Subject::Instance)
        .absent(NO_PROFILE)
        .experimental(),
        scale: Scale::Millionths,
        figures: &[("", Kind::SmActive)],
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_sm_occupancy_ratio",
            "Warps on the multiprocessors, as a part of what fits.",
        )
        .of(Subject::Instance)
        .absent(NO_PROFILE)
        .experimental(),
        scale: Scale::Millionths,
        figures: &[("", Kind::SmOccupancy)],
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_pipe_active_ratio",
            "Part of what the multiprocessors' units of a kind could do, by pipe.",
        )
        .of(Subject::Instance)
        .by(&[Label::of("pipe", &names(&PIPES))])
        .absent(NO_PROFILE)
        .experimental(),
        scale: Scale::Millionths,
        figures: &PIPES,
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_dram_active_ratio",
            "Part of the bandwidth of device memory that was used.",
        )
        .of(Subject::Instance)
        .absent(NO_PROFILE)
        .experimental(),
        scale: Scale::Millionths,
        figures: &[("", Kind::DramActive)],
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_pcie_transmit_bytes_per_second",
            "Bytes per second that were sent over PCIe since the reading before.",
        )
        .of(Subject::Instance)
        .absent(NO_PROFILE)
        .experimental(),
        scale: Scale::Same,
        figures: &[("", Kind::PcieTransmitRate)],
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_pcie_receive_bytes_per_second",
            "Bytes per second that were received over PCIe since the reading before.",
        )
        .of(Subject::Instance)
        .absent(NO_PROFILE)
        .experimental(),
        scale: Scale::Same,
        figures: &[("", Kind::PcieReceiveRate)],
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_nvlink_transmit_bytes_per_second",
            "Bytes per second that were sent over NVLink since the reading before.",
        )
        .of(Subject::Instance)
        .absent(NO_PROFILE)
        .experimental(),
        scale: Scale::Same,
        figures: &[("", Kind::NvlinkTransmitRate)],
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_nvlink_receive_bytes_per_second",
            "Bytes per second that were received over NVLink since the reading before.",
        )
        .of(Subject::Instance)
        .absent(NO_PROFILE)
        .experimental(),
        scale: Scale::Same,
        figures: &[("", Kind::NvlinkReceiveRate)],
    },
];

const MIG_INFO: Family =
    Family::gauge("gleaner_mig_info", "1; which part of its device a MIG instance is.")
        .of(Subject::Instance)
        .by(&[Label::free("profile"), Label::free("gpu_instance"), Label::free("compute_instance")])
        .absent("the device has MIG off")
        .experimental();

const ECC_ERRORS: Family =
    Family::counter("gleaner_gpu_ecc_errors_total", "Errors of device memory, by type and scope.")
        .of(Subject::Device)
        .by(&[
            Label::of("type", &["corrected", "uncorrected"]),
            Label::of("scope", &["volatile", "aggregate"]),
        ])
        .in_unit("errors")
        .absent(NOT_OFFERED)
        .note("NVML fields 3–6; `volatile` starts anew with the driver.")
        .experimental();
const ECC: [(Kind, &str, &str); 4] = [
    (Kind::EccVolatileCorrected, "corrected", "volatile"),
    (Kind::EccVolatileUncorrected, "uncorrected", "volatile"),
    (Kind::EccAggregateCorrected, "corrected", "aggregate"),
    (Kind::EccAggregateUncorrected, "uncorrected", "aggregate"),
];

const RECOVERY_ACTION: Family = Family::gauge(
    "gleaner_gpu_recovery_action",
    "1 for what the driver says the device needs, 0 for the others.",
)
.of(Subject::Device)
.by(&[Label::of("action", &ACTIONS)])
.in_unit(FLAG)
.absent(NOT_OFFERED)
.note("NVML field 230.")
.experimental();
/// By the numbers of `nvml.h`.
const ACTIONS: [&str; 5] = ["none", "reset", "reboot", "drain_p2p", "drain_and_reset"];

const FABRIC_STATE: Family = Family::gauge(
    "gleaner_gpu_fabric_state",
    "1 for the state of the device's registration with the NVLink fabric, 0 for the others.",
)
.of(Subject::Device)
.by(&[Label::of("state", &FABRIC_STATES)])
.in_unit(FLAG)
.absent("the device is in no NVLink fabric")
.experimental();
/// By the numbers of `nvml.h`; what comes before the first of them is "not supported", which has no
/// series.
const FABRIC_STATES: [&str; 4] = ["not_started", "in_progress", "completed", "failed"];

/// Of a device.
pub(super) fn families() -> Vec<Family> {
    let rows = ROWS.map(|it| it.family);
    [&rows[..], &[ECC_ERRORS, RECOVERY_ACTION, FABRIC_STATE]].concat()
}

/// Of an instance.
pub(super) fn instance_families() -> Vec<Family> {
    [&INSTANCE_ROWS.map(|it| it.family)[..], &[MIG_INFO]].concat()
}

/// One figure of a device; `None` when it was not read.
pub(super) fn of(device: &Device, kind: Kind) -> Option<u64> {
    value(&device.figures, kind)
}

fn value(figures: &[Figure], kind: Kind) -> Option<u64> {
    figures.iter().find(|it| it.kind() == kind).map(|it| it.value)
}

pub(super) fn write(text: &mut Text, devices: &[(Labels, &Device)]) {
    for row in &ROWS {
        text.family(row.family);
        for (labels, device) in devices {
            write_row(text, row, labels, &device.figures);
        }
    }
    for row in &INSTANCE_ROWS {
        text.family(row.family);
        for (labels, device) in devices {
            for instance in &device.instances {
                write_row(text, row, &instance_labels(labels, instance), &instance.figures);
            }
        }
    }
    write_mig(text, devices);
    text.family(ECC_ERRORS);
    for (labels, device) in devices {
        for (kind, error, scope) in ECC {
            let labels = labels.with("type", error).with("scope", scope);
            text.count(&labels, of(device, kind));
        }
    }
    write_states(text, devices, RECOVERY_ACTION, (Kind::RecoveryAction, 0));
    write_states(text, devices, FABRIC_STATE, (Kind::FabricState, 1));
}

fn write_row(text: &mut Text, row: &Row, labels: &Labels, figures: &[Figure]) {
    for (name, kind) in row.figures {
        if let Some(value) = value(figures, *kind) {
            write_value(text, &labels.with_own(&row.family, name), row.scale, value);
        }
    }
}

fn write_mig(text: &mut Text, devices: &[(Labels, &Device)]) {
    text.family(MIG_INFO);
    for (labels, device) in devices {
        for instance in device.instances.iter().filter(|it| it.mig_uuid.is_some()) {
            let mut labels = instance_labels(labels, instance);
            let number = |id: Option<u32>| id.map(|it| it.to_string());
            for (name, value) in [
                ("profile", instance.mig_profile.clone()),
                ("gpu_instance", number(instance.gpu_instance)),
                ("compute_instance", number(instance.compute_instance)),
            ] {
                if let Some(value) = value {
                    labels.push(name, &value);
                }
            }
            text.count(&labels, Some(1));
        }
    }
}

/// A series for each value of the family's label, by the driver's number for it.
fn write_states(
    text: &mut Text,
    devices: &[(Labels, &Device)],
    family: Family,
    (kind, first): (Kind, u64),
) {
    text.family(family);
    let states = family.labels.iter().flat_map(|it| it.values);
    for (labels, device) in devices {
        let Some(now) = of(device, kind).filter(|it| *it >= first) else { continue };
        for (number, name) in (first..).zip(states.clone()) {
            text.count(&labels.with_own(&family, name), Some(u64::from(number == now)));
        }
    }
}

fn write_value(text: &mut Text, labels: &Labels, scale: Scale, value: u64) {
    match scale {
        Scale::Same => text.count(labels, Some(value)),
        Scale::Nanoseconds => text.seconds(labels, u128::from(value)),
        Scale::Millionths => {
            let millionths = u32::try_from(value).unwrap_or(u32::MAX);
            text.sample(labels, Some(f64::from(millionths) / 1e6))
        }
    };
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{ECC, INSTANCE_ROWS, ROWS, write};
    use crate::exposition::{Labels, Text};
    use crate::telemetry::v1::figure::Kind;
    use crate::telemetry::v1::{Device, Figure};

    fn body(figures: &[(Kind, u64)]) -> String {
        let figure = |it: &(Kind, u64)| Figure { kind: it.0.into(), value: it.1 };
        let device = Device { figures: figures.iter().map(figure).collect(), ..Device::default() };
        let mut text = Text::default();
        write(&mut text, &[(Labels::new([("gpu_uuid", "GPU-1")]), &device)]);
        text.into_body()
    }

    #[test]
    fn a_figure_is_shown_in_base_units() {
        let body = body(&[
            (Kind::DecoderBusy, 370_000),
            (Kind::HeldByPowerCap, 1_500_000_001),
            (Kind::EccAggregateCorrected, 7),
            (Kind::RecoveryAction, 1),
        ]);
        for line in [
            "gleaner_gpu_engine_busy_ratio{gpu_uuid=\"GPU-1\",engine=\"decoder\"} 0.37\n",
            "gleaner_gpu_throttle_seconds_total{gpu_uuid=\"GPU-1\",reason=\"power_cap\"} 1.500000001\n",
            "gleaner_gpu_ecc_errors_total{gpu_uuid=\"GPU-1\",type=\"corrected\",scope=\"aggregate\"} 7\n",
            "gleaner_gpu_recovery_action{gpu_uuid=\"GPU-1\",action=\"reset\"} 1\n",
            "gleaner_gpu_recovery_action{gpu_uuid=\"GPU-1\",action=\"none\"} 0\n",
        ] {
            assert!(body.contains(line), "{line} is not in\n{body}");
        }
        assert_eq!(body.matches("# TYPE").count(), 4, "what was not read has no family\n{body}");
    }

    /// Shown elsewhere: in the families that a gauge of every tick is in too, or by name.
    const ELSEWHERE: [Kind; 5] = [
        Kind::Unspecified,
        Kind::VideoClock,
        Kind::MemoryTemperature,
        Kind::RecoveryAction,
        Kind::FabricState,
    ];

    #[test]
    fn every_figure_is_shown_once() {
        let rows =
            ROWS.iter().chain(&INSTANCE_ROWS).flat_map(|it| it.figures).map(|(_, kind)| *kind);
        let shown: Vec<Kind> = rows.chain(ECC.map(|it| it.0)).chain(ELSEWHERE).collect();
        let once: BTreeSet<&str> = shown.iter().map(|it| it.as_str_name()).collect();
        assert_eq!(once.len(), shown.len());
        let all = (0..).map_while(|it| Kind::try_from(it).ok());
        for kind in all {
            assert!(once.contains(kind.as_str_name()), "{kind:?} is not shown");
        }
    }
}
