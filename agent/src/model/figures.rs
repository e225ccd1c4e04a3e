//! Figures of a device that are shown and not metered: one name and one unit each.
//!
//! A set holds only what was read: a figure that is missing was not offered, not answered or not
//! believable, and is never zero.

use std::collections::BTreeMap;

/// What is counted or measured, with its unit. Counters start where the driver says they start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Figure {
    /// Part of the driver's last sample period in which the engine worked, in millionths.
    EncoderBusy,
    DecoderBusy,
    JpegBusy,
    OpticalFlowBusy,
    /// Hertz.
    VideoClock,
    /// °C.
    MemoryTemperature,
    /// Bytes.
    Bar1Total,
    Bar1Used,
    /// Nanoseconds in which the clocks were held down, by reason.
    HeldByPowerCap,
    HeldBySyncBoost,
    HeldBySoftwareThermal,
    HeldByHardwareThermal,
    HeldByPowerBrake,
    /// Bytes.
    PcieTransmitted,
    PcieReceived,
    PcieReplays,
    PcieReplayRollovers,
    PcieCorrectable,
    PcieNonFatal,
    PcieFatal,
    PcieUnsupportedRequests,
    PcieBadTlp,
    PcieBadDllp,
    PcieLcrc,
    PcieLane,
    PcieReceiver,
    PcieNaksSent,
    PcieNaksReceived,
    /// Bytes, of all links together, and so are the errors.
    NvlinkTransmitted,
    NvlinkReceived,
    NvlinkCrcFlit,
    NvlinkCrcData,
    NvlinkReplays,
    NvlinkRecoveries,
    NvlinkEccData,
    NvlinkReceiveErrors,
    NvlinkMalformedPackets,
    NvlinkBufferOverruns,
    NvlinkLinkIntegrity,
    NvlinkRecovered,
    NvlinkRecoveryFailed,
    NvlinkSymbolErrors,
    /// 0 or 1.
    EccOn,
    EccOnAfterReset,
    EccVolatileCorrected,
    EccVolatileUncorrected,
    EccAggregateCorrected,
    EccAggregateUncorrected,
    RetiredPagesSingleBit,
    RetiredPagesDoubleBit,
    /// 0 or 1.
    RetiredPagesPending,
    RemappedRowsCorrectable,
    RemappedRowsUncorrectable,
    /// 0 or 1.
    RowRemapPending,
    /// 0 or 1.
    RowRemapFailed,
    /// A code of `nvmlDeviceGpuRecoveryAction_t`.
    RecoveryAction,
    /// A code of `nvmlGpuFabricState_t`, or `FABRIC_FAILED`.
    FabricState,
    /// 0 or 1.
    FabricDegraded,
    /// 0 or 1.
    AccountingOn,
    /// Of an instance, between two ticks, in millionths: of the time in which anything ran,
    GraphicsActive,
    /// of the time in which a multiprocessor had work, averaged over them,
    SmActive,
    /// of the warps that could be there,
    SmOccupancy,
    /// of what each kind of unit could do.
    TensorActive,
    DramActive,
    IntegerActive,
    Fp64Active,
    Fp32Active,
    Fp16Active,
    /// Bytes per second, between two ticks.
    PcieTransmitRate,
    PcieReceiveRate,
    NvlinkTransmitRate,
    NvlinkReceiveRate,
}

/// The fabric's registration ended and did not succeed.
pub const FABRIC_FAILED: u64 = 4;

/// What was read, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures(BTreeMap<Figure, u64>);

// === impl Figures ===

impl Figures {
    #[must_use]
    pub fn get(&self, figure: Figure) -> Option<u64> {
        self.0.get(&figure).copied()
    }

    pub fn set(&mut self, figure: Figure, value: u64) {
        self.0.insert(figure, value);
    }

    pub fn iter(&self) -> impl Iterator<Item = (Figure, u64)> {
        self.0.iter().map(|(figure, value)| (*figure, *value))
    }
}

impl FromIterator<(Figure, u64)> for Figures {
    fn from_iter<I: IntoIterator<Item = (Figure, u64)>>(figures: I) -> Self {
        Self(figures.into_iter().collect())
    }
}
