//! Series of a device's figures: one table from what was read to how it is shown.
//!
//! A figure that was not read has no series. Links are summed: a series per link would be twenty
//! times as many, and the driver keeps the sums.

use crate::exposition::{Family, Labels, Text};
use crate::names::instance_labels;
use crate::telemetry::v1::figure::Kind;
use crate::telemetry::v1::{Device, Figure};

/// One family and the figures in it.
#[derive(Debug)]
struct Row {
    family: Family,
    unit: Unit,
    /// The label that tells its figures apart, and each one's value; "" where there is one figure.
    label: &'static str,
    figures: &'static [(Kind, &'static str)],
}

/// From the unit of the figure to that of the series.
#[derive(Clone, Copy, Debug)]
enum Unit {
    Same,
    Nanoseconds,
    Millionths,
}

const ROWS: [Row; 19] = [
    Row {
        family: Family::gauge(
            "gleaner_gpu_engine_busy_ratio",
            "Part of the last driver sample period in which a fixed-function engine worked.",
        ),
        unit: Unit::Millionths,
        label: "engine",
        figures: &[
            (Kind::EncoderBusy, "encoder"),
            (Kind::DecoderBusy, "decoder"),
            (Kind::JpegBusy, "jpeg"),
            (Kind::OpticalFlowBusy, "optical_flow"),
        ],
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_bar1_total_bytes",
            "Device memory that can be mapped over PCIe.",
        ),
        unit: Unit::Same,
        label: "",
        figures: &[(Kind::Bar1Total, "")],
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_bar1_used_bytes",
            "Device memory that is mapped over PCIe.",
        ),
        unit: Unit::Same,
        label: "",
        figures: &[(Kind::Bar1Used, "")],
    },
    Row {
        family: Family::counter(
            "gleaner_gpu_throttle_seconds_total",
            "Time in which the clocks were held down, by reason; resets with the driver.",
        ),
        unit: Unit::Nanoseconds,
        label: "reason",
        figures: &[
            (Kind::HeldByPowerCap, "power_cap"),
            (Kind::HeldBySyncBoost, "sync_boost"),
            (Kind::HeldBySoftwareThermal, "software_thermal"),
            (Kind::HeldByHardwareThermal, "hardware_thermal"),
            (Kind::HeldByPowerBrake, "power_brake"),
        ],
    },
    Row {
        family: Family::counter(
            "gleaner_gpu_pcie_transmit_bytes_total",
            "Bytes that the device sent over PCIe.",
        ),
        unit: Unit::Same,
        label: "",
        figures: &[(Kind::PcieTransmitted, "")],
    },
    Row {
        family: Family::counter(
            "gleaner_gpu_pcie_receive_bytes_total",
            "Bytes that the device received over PCIe.",
        ),
        unit: Unit::Same,
        label: "",
        figures: &[(Kind::PcieReceived, "")],
    },
    Row {
        family: Family::counter(
            "gleaner_gpu_pcie_replays_total",
            "Transfers over PCIe that were repeated.",
        ),
        unit: Unit::Same,
        label: "",
        figures: &[(Kind::PcieReplays, "")],
    },
    Row {
        family: Family::counter(
            "gleaner_gpu_pcie_errors_total",
            "Errors on PCIe, by type. A type may be counted in another one too.",
        ),
        unit: Unit::Same,
        label: "type",
        figures: &[
            (Kind::PcieCorrectable, "correctable"),
            (Kind::PcieNonFatal, "non_fatal"),
            (Kind::PcieFatal, "fatal"),
            (Kind::PcieUnsupportedRequests, "unsupported_request"),
            (Kind::PcieBadTlp, "bad_tlp"),
            (Kind::PcieBadDllp, "bad_dllp"),
            (Kind::PcieLcrc, "lcrc"),
            (Kind::PcieLane, "lane"),
            (Kind::PcieReceiver, "receiver"),
            (Kind::PcieNaksSent, "nak_sent"),
            (Kind::PcieNaksReceived, "nak_received"),
            (Kind::PcieReplayRollovers, "replay_rollover"),
        ],
    },
    Row {
        family: Family::counter(
            "gleaner_gpu_nvlink_transmit_bytes_total",
            "Data that the device sent over all NVLinks.",
        ),
        unit: Unit::Same,
        label: "",
        figures: &[(Kind::NvlinkTransmitted, "")],
    },
    Row {
        family: Family::counter(
            "gleaner_gpu_nvlink_receive_bytes_total",
            "Data that the device received over all NVLinks.",
        ),
        unit: Unit::Same,
        label: "",
        figures: &[(Kind::NvlinkReceived, "")],
    },
    Row {
        family: Family::counter(
            "gleaner_gpu_nvlink_errors_total",
            "Errors and recoveries of all NVLinks, by type.",
        ),
        unit: Unit::Same,
        label: "type",
        figures: &[
            (Kind::NvlinkCrcFlit, "crc_flit"),
            (Kind::NvlinkCrcData, "crc_data"),
            (Kind::NvlinkReplays, "replay"),
            (Kind::NvlinkRecoveries, "recovery"),
            (Kind::NvlinkEccData, "ecc_data"),
            (Kind::NvlinkReceiveErrors, "receive"),
            (Kind::NvlinkMalformedPackets, "malformed_packet"),
            (Kind::NvlinkBufferOverruns, "buffer_overrun"),
            (Kind::NvlinkLinkIntegrity, "link_integrity"),
            (Kind::NvlinkRecovered, "link_recovered"),
            (Kind::NvlinkRecoveryFailed, "link_recovery_failed"),
            (Kind::NvlinkSymbolErrors, "symbol"),
        ],
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_ecc_on",
            "1 where device memory has error correction, by when (now, after_reset).",
        ),
        unit: Unit::Same,
        label: "when",
        figures: &[(Kind::EccOn, "now"), (Kind::EccOnAfterReset, "after_reset")],
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_retired_pages",
            "Pages of device memory that are not used any more, by cause.",
        ),
        unit: Unit::Same,
        label: "cause",
        figures: &[
            (Kind::RetiredPagesSingleBit, "single_bit"),
            (Kind::RetiredPagesDoubleBit, "double_bit"),
        ],
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_retired_pages_pending",
            "1 while a page waits for a reboot to be retired.",
        ),
        unit: Unit::Same,
        label: "",
        figures: &[(Kind::RetiredPagesPending, "")],
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_remapped_rows",
            "Rows of device memory that spare rows stand in for, by cause.",
        ),
        unit: Unit::Same,
        label: "cause",
        figures: &[
            (Kind::RemappedRowsCorrectable, "correctable"),
            (Kind::RemappedRowsUncorrectable, "uncorrectable"),
        ],
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_row_remap_pending",
            "1 while a row waits for a reset to be remapped.",
        ),
        unit: Unit::Same,
        label: "",
        figures: &[(Kind::RowRemapPending, "")],
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_row_remap_failed",
            "1 where a row could not be remapped: the device should be replaced.",
        ),
        unit: Unit::Same,
        label: "",
        figures: &[(Kind::RowRemapFailed, "")],
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_fabric_degraded",
            "1 while the NVLink fabric has less bandwidth than it should.",
        ),
        unit: Unit::Same,
        label: "",
        figures: &[(Kind::FabricDegraded, "")],
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_accounting_on",
            "1 where the driver keeps accounts of processes; the agent never turns it on.",
        ),
        unit: Unit::Same,
        label: "",
        figures: &[(Kind::AccountingOn, "")],
    },
];

/// Of an instance: of the device itself where MIG is off.
const INSTANCE_ROWS: [Row; 9] = [
    Row {
        family: Family::gauge(
            "gleaner_gpu_graphics_active_ratio",
            "Part of the time since the reading before in which anything ran on the instance.",
        ),
        unit: Unit::Millionths,
        label: "",
        figures: &[(Kind::GraphicsActive, "")],
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_sm_active_ratio",
            "Part of the time in which a multiprocessor had work, averaged over them.",
        ),
        unit: Unit::Millionths,
        label: "",
        figures: &[(Kind::SmActive, "")],
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_sm_occupancy_ratio",
            "Warps on the multiprocessors, as a part of what fits.",
        ),
        unit: Unit::Millionths,
        label: "",
        figures: &[(Kind::SmOccupancy, "")],
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_pipe_active_ratio",
            "Part of what the multiprocessors' units of a kind could do, by pipe.",
        ),
        unit: Unit::Millionths,
        label: "pipe",
        figures: &[
            (Kind::TensorActive, "tensor"),
            (Kind::IntegerActive, "integer"),
            (Kind::Fp64Active, "fp64"),
            (Kind::Fp32Active, "fp32"),
            (Kind::Fp16Active, "fp16"),
        ],
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_dram_active_ratio",
            "Part of the bandwidth of device memory that was used.",
        ),
        unit: Unit::Millionths,
        label: "",
        figures: &[(Kind::DramActive, "")],
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_pcie_transmit_bytes_per_second",
            "Bytes per second that were sent over PCIe since the reading before.",
        ),
        unit: Unit::Same,
        label: "",
        figures: &[(Kind::PcieTransmitRate, "")],
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_pcie_receive_bytes_per_second",
            "Bytes per second that were received over PCIe since the reading before.",
        ),
        unit: Unit::Same,
        label: "",
        figures: &[(Kind::PcieReceiveRate, "")],
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_nvlink_transmit_bytes_per_second",
            "Bytes per second that were sent over NVLink since the reading before.",
        ),
        unit: Unit::Same,
        label: "",
        figures: &[(Kind::NvlinkTransmitRate, "")],
    },
    Row {
        family: Family::gauge(
            "gleaner_gpu_nvlink_receive_bytes_per_second",
            "Bytes per second that were received over NVLink since the reading before.",
        ),
        unit: Unit::Same,
        label: "",
        figures: &[(Kind::NvlinkReceiveRate, "")],
    },
];

const MIG_INFO: Family =
    Family::gauge("gleaner_mig_info", "1; which part of its device a MIG instance is.");

const ECC_ERRORS: Family = Family::counter(
    "gleaner_gpu_ecc_errors_total",
    "Errors of device memory, by type and scope (volatile: since the driver was loaded).",
);
const ECC: [(Kind, &str, &str); 4] = [
    (Kind::EccVolatileCorrected, "corrected", "volatile"),
    (Kind::EccVolatileUncorrected, "uncorrected", "volatile"),
    (Kind::EccAggregateCorrected, "corrected", "aggregate"),
    (Kind::EccAggregateUncorrected, "uncorrected", "aggregate"),
];

const RECOVERY_ACTION: Family = Family::gauge(
    "gleaner_gpu_recovery_action",
    "1 for what the driver says the device needs, 0 for the others.",
);
/// By the numbers of `nvml.h`.
const ACTIONS: [&str; 5] = ["none", "reset", "reboot", "drain_p2p", "drain_and_reset"];

const FABRIC_STATE: Family = Family::gauge(
    "gleaner_gpu_fabric_state",
    "1 for the state of the device's registration with the NVLink fabric, 0 for the others.",
);
/// By the numbers of `nvml.h`; the first is "not supported", which has no series.
const FABRIC_STATES: [&str; 5] = ["", "not_started", "in_progress", "completed", "failed"];

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
    write_states(text, devices, RECOVERY_ACTION, (Kind::RecoveryAction, "action", &ACTIONS));
    write_states(text, devices, FABRIC_STATE, (Kind::FabricState, "state", &FABRIC_STATES));
}

fn write_row(text: &mut Text, row: &Row, labels: &Labels, figures: &[Figure]) {
    for (kind, name) in row.figures {
        if let Some(value) = value(figures, *kind) {
            write_value(text, &labelled(labels, row.label, name), row.unit, value);
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

/// A series for each state, by the state's number.
fn write_states(
    text: &mut Text,
    devices: &[(Labels, &Device)],
    family: Family,
    (kind, label, states): (Kind, &str, &[&str]),
) {
    text.family(family);
    for (labels, device) in devices {
        let Some(now) = of(device, kind).and_then(|it| usize::try_from(it).ok()) else { continue };
        for (number, name) in states.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
            text.count(&labels.with(label, name), Some(u64::from(number == now)));
        }
    }
}

fn labelled(labels: &Labels, label: &str, value: &str) -> Labels {
    if label.is_empty() { labels.clone() } else { labels.with(label, value) }
}

fn write_value(text: &mut Text, labels: &Labels, unit: Unit, value: u64) {
    match unit {
        Unit::Same => text.count(labels, Some(value)),
        Unit::Nanoseconds => text.seconds(labels, u128::from(value)),
        Unit::Millionths => {
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
            ROWS.iter().chain(&INSTANCE_ROWS).flat_map(|it| it.figures).map(|(kind, _)| *kind);
        let shown: Vec<Kind> = rows.chain(ECC.map(|it| it.0)).chain(ELSEWHERE).collect();
        let once: BTreeSet<&str> = shown.iter().map(|it| it.as_str_name()).collect();
        assert_eq!(once.len(), shown.len());
        let all = (0..).map_while(|it| Kind::try_from(it).ok());
        for kind in all {
            assert!(once.contains(kind.as_str_name()), "{kind:?} is not shown");
        }
    }
}
