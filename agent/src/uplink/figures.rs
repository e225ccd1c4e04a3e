//! Figures as the live lane carries them: a list of names.

use proto::telemetry::v1;
use proto::telemetry::v1::figure::Kind;
use proto::telemetry::v1::source_state::Source as WireSource;

use crate::model::figures::{Figure, Figures};
use crate::model::readings::{Source, SourceState, Xid};

pub(super) fn wire_figures(figures: &Figures) -> Vec<v1::Figure> {
    let wire = |(figure, value)| v1::Figure { kind: wire_kind(figure).into(), value };
    figures.iter().map(wire).collect()
}

pub(super) fn wire_xid(xid: &Xid) -> v1::Xid {
    v1::Xid { code: xid.code, count: xid.count, last_real_ns: xid.last_real_ns }
}

pub(super) fn wire_source((source, state): (&Source, &SourceState)) -> v1::SourceState {
    let source = match source {
        Source::Utilization => WireSource::Utilization,
        Source::Memory => WireSource::Memory,
        Source::Power => WireSource::Power,
        Source::Energy => WireSource::Energy,
        Source::Processes => WireSource::Processes,
        Source::ProcessUtilization => WireSource::ProcessUtilization,
        Source::Instances => WireSource::Instances,
        Source::Gpm => WireSource::Gpm,
        Source::Fields => WireSource::Fields,
        Source::Events => WireSource::Events,
    };
    let last_real_ms = state.last_us.map(|it| it / 1_000);
    v1::SourceState { source: source.into(), success: state.success, last_real_ms }
}

#[expect(clippy::too_many_lines, reason = "a list")]
fn wire_kind(figure: Figure) -> Kind {
    match figure {
        Figure::EncoderBusy => Kind::EncoderBusy,
        Figure::DecoderBusy => Kind::DecoderBusy,
        Figure::JpegBusy => Kind::JpegBusy,
        Figure::OpticalFlowBusy => Kind::OpticalFlowBusy,
        Figure::VideoClock => Kind::VideoClock,
        Figure::MemoryTemperature => Kind::MemoryTemperature,
        Figure::Bar1Total => Kind::Bar1Total,
        Figure::Bar1Used => Kind::Bar1Used,
        Figure::HeldByPowerCap => Kind::HeldByPowerCap,
        Figure::HeldBySyncBoost => Kind::HeldBySyncBoost,
        Figure::HeldBySoftwareThermal => Kind::HeldBySoftwareThermal,
        Figure::HeldByHardwareThermal => Kind::HeldByHardwareThermal,
        Figure::HeldByPowerBrake => Kind::HeldByPowerBrake,
        Figure::PcieTransmitted => Kind::PcieTransmitted,
        Figure::PcieReceived => Kind::PcieReceived,
        Figure::PcieReplays => Kind::PcieReplays,
        Figure::PcieReplayRollovers => Kind::PcieReplayRollovers,
        Figure::PcieCorrectable => Kind::PcieCorrectable,
        Figure::PcieNonFatal => Kind::PcieNonFatal,
        Figure::PcieFatal => Kind::PcieFatal,
        Figure::PcieUnsupportedRequests => Kind::PcieUnsupportedRequests,
        Figure::PcieBadTlp => Kind::PcieBadTlp,
        Figure::PcieBadDllp => Kind::PcieBadDllp,
        Figure::PcieLcrc => Kind::PcieLcrc,
        Figure::PcieLane => Kind::PcieLane,
        Figure::PcieReceiver => Kind::PcieReceiver,
        Figure::PcieNaksSent => Kind::PcieNaksSent,
        Figure::PcieNaksReceived => Kind::PcieNaksReceived,
        Figure::NvlinkTransmitted => Kind::NvlinkTransmitted,
        Figure::NvlinkReceived => Kind::NvlinkReceived,
        Figure::NvlinkCrcFlit => Kind::NvlinkCrcFlit,
        Figure::NvlinkCrcData => Kind::NvlinkCrcData,
        Figure::NvlinkReplays => Kind::NvlinkReplays,
        Figure::NvlinkRecoveries => Kind::NvlinkRecoveries,
        Figure::NvlinkEccData => Kind::NvlinkEccData,
        Figure::NvlinkReceiveErrors => Kind::NvlinkReceiveErrors,
        Figure::NvlinkMalformedPackets => Kind::NvlinkMalformedPackets,
        Figure::NvlinkBufferOverruns => Kind::NvlinkBufferOverruns,
        Figure::NvlinkLinkIntegrity => Kind::NvlinkLinkIntegrity,
        Figure::NvlinkRecovered => Kind::NvlinkRecovered,
        Figure::NvlinkRecoveryFailed => Kind::NvlinkRecoveryFailed,
        Figure::NvlinkSymbolErrors => Kind::NvlinkSymbolErrors,
        Figure::EccOn => Kind::EccOn,
        Figure::EccOnAfterReset => Kind::EccOnAfterReset,
        Figure::EccVolatileCorrected => Kind::EccVolatileCorrected,
        Figure::EccVolatileUncorrected => Kind::EccVolatileUncorrected,
        Figure::EccAggregateCorrected => Kind::EccAggregateCorrected,
        Figure::EccAggregateUncorrected => Kind::EccAggregateUncorrected,
        Figure::RetiredPagesSingleBit => Kind::RetiredPagesSingleBit,
        Figure::RetiredPagesDoubleBit => Kind::RetiredPagesDoubleBit,
        Figure::RetiredPagesPending => Kind::RetiredPagesPending,
        Figure::RemappedRowsCorrectable => Kind::RemappedRowsCorrectable,
        Figure::RemappedRowsUncorrectable => Kind::RemappedRowsUncorrectable,
        Figure::RowRemapPending => Kind::RowRemapPending,
        Figure::RowRemapFailed => Kind::RowRemapFailed,
        Figure::RecoveryAction => Kind::RecoveryAction,
        Figure::FabricState => Kind::FabricState,
        Figure::FabricDegraded => Kind::FabricDegraded,
        Figure::AccountingOn => Kind::AccountingOn,
        Figure::GraphicsActive => Kind::GraphicsActive,
        Figure::SmActive => Kind::SmActive,
        Figure::SmOccupancy => Kind::SmOccupancy,
        Figure::TensorActive => Kind::TensorActive,
        Figure::DramActive => Kind::DramActive,
        Figure::IntegerActive => Kind::IntegerActive,
        Figure::Fp64Active => Kind::Fp64Active,
        Figure::Fp32Active => Kind::Fp32Active,
        Figure::Fp16Active => Kind::Fp16Active,
        Figure::PcieTransmitRate => Kind::PcieTransmitRate,
        Figure::PcieReceiveRate => Kind::PcieReceiveRate,
        Figure::NvlinkTransmitRate => Kind::NvlinkTransmitRate,
        Figure::NvlinkReceiveRate => Kind::NvlinkReceiveRate,
    }
}
