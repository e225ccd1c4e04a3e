//! The fields of `nvmlDeviceGetFieldValues` that are read, in one call for all of them. No call here.

use nvml_wrapper::FieldIdScheme;
use nvml_wrapper_sys::bindings::field_id as id;

use crate::model::figures::Figure;

/// One field and what becomes of its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    /// As drivers before 580.82 number them.
    id: u32,
    pub(crate) figure: Figure,
    pub(crate) scope: u32,
    /// Into the figure's unit.
    pub(crate) factor: u64,
}

/// All links together.
const ALL_LINKS: u32 = u32::MAX;
const KIB: u64 = 1024;

/// Where two fields have one figure, a device that offers both is asked for the later one.
pub(crate) const FIELDS: [Field; 51] = [
    plain(id::NVML_FI_DEV_MEMORY_TEMP, Figure::MemoryTemperature),
    plain(id::NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_POWER_CAP, Figure::HeldByPowerCap),
    plain(id::NVML_FI_DEV_CLOCKS_EVENT_REASON_SYNC_BOOST, Figure::HeldBySyncBoost),
    plain(id::NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN, Figure::HeldBySoftwareThermal),
    plain(id::NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN, Figure::HeldByHardwareThermal),
    plain(id::NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN, Figure::HeldByPowerBrake),
    plain(id::NVML_FI_DEV_PCIE_COUNT_TX_BYTES, Figure::PcieTransmitted),
    plain(id::NVML_FI_DEV_PCIE_COUNT_RX_BYTES, Figure::PcieReceived),
    plain(id::NVML_FI_DEV_PCIE_REPLAY_COUNTER, Figure::PcieReplays),
    plain(id::NVML_FI_DEV_PCIE_REPLAY_ROLLOVER_COUNTER, Figure::PcieReplayRollovers),
    plain(id::NVML_FI_DEV_PCIE_COUNT_CORRECTABLE_ERRORS, Figure::PcieCorrectable),
    plain(id::NVML_FI_DEV_PCIE_COUNT_NON_FATAL_ERROR, Figure::PcieNonFatal),
    plain(id::NVML_FI_DEV_PCIE_COUNT_FATAL_ERROR, Figure::PcieFatal),
    plain(id::NVML_FI_DEV_PCIE_COUNT_UNSUPPORTED_REQ, Figure::PcieUnsupportedRequests),
    plain(id::NVML_FI_DEV_PCIE_COUNT_BAD_TLP, Figure::PcieBadTlp),
    plain(id::NVML_FI_DEV_PCIE_COUNT_BAD_DLLP, Figure::PcieBadDllp),
    plain(id::NVML_FI_DEV_PCIE_COUNT_LCRC_ERROR, Figure::PcieLcrc),
    plain(id::NVML_FI_DEV_PCIE_COUNT_LANE_ERROR, Figure::PcieLane),
    plain(id::NVML_FI_DEV_PCIE_COUNT_RECEIVER_ERROR, Figure::PcieReceiver),
    plain(id::NVML_FI_DEV_PCIE_COUNT_NAKS_SENT, Figure::PcieNaksSent),
    plain(id::NVML_FI_DEV_PCIE_COUNT_NAKS_RECEIVED, Figure::PcieNaksReceived),
    links(id::NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, Figure::NvlinkTransmitted, KIB),
    links(id::NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX, Figure::NvlinkReceived, KIB),
    links(id::NVML_FI_DEV_NVLINK_COUNT_XMIT_BYTES, Figure::NvlinkTransmitted, 1),
    links(id::NVML_FI_DEV_NVLINK_COUNT_RCV_BYTES, Figure::NvlinkReceived, 1),
    plain(id::NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL, Figure::NvlinkCrcFlit),
    plain(id::NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL, Figure::NvlinkCrcData),
    plain(id::NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL, Figure::NvlinkReplays),
    plain(id::NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL, Figure::NvlinkRecoveries),
    plain(id::NVML_FI_DEV_NVLINK_ECC_DATA_ERROR_COUNT_TOTAL, Figure::NvlinkEccData),
    links(id::NVML_FI_DEV_NVLINK_COUNT_RCV_ERRORS, Figure::NvlinkReceiveErrors, 1),
    links(id::NVML_FI_DEV_NVLINK_COUNT_MALFORMED_PACKET_ERRORS, Figure::NvlinkMalformedPackets, 1),
    links(id::NVML_FI_DEV_NVLINK_COUNT_BUFFER_OVERRUN_ERRORS, Figure::NvlinkBufferOverruns, 1),
    links(id::NVML_FI_DEV_NVLINK_COUNT_LOCAL_LINK_INTEGRITY_ERRORS, Figure::NvlinkLinkIntegrity, 1),
    links(id::NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_SUCCESSFUL_EVENTS, Figure::NvlinkRecovered, 1),
    links(
        id::NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_FAILED_EVENTS,
        Figure::NvlinkRecoveryFailed,
        1,
    ),
    links(id::NVML_FI_DEV_NVLINK_COUNT_SYMBOL_ERRORS, Figure::NvlinkSymbolErrors, 1),
    plain(id::NVML_FI_DEV_ECC_CURRENT, Figure::EccOn),
    plain(id::NVML_FI_DEV_ECC_PENDING, Figure::EccOnAfterReset),
    plain(id::NVML_FI_DEV_ECC_SBE_VOL_TOTAL, Figure::EccVolatileCorrected),
    plain(id::NVML_FI_DEV_ECC_DBE_VOL_TOTAL, Figure::EccVolatileUncorrected),
    plain(id::NVML_FI_DEV_ECC_SBE_AGG_TOTAL, Figure::EccAggregateCorrected),
    plain(id::NVML_FI_DEV_ECC_DBE_AGG_TOTAL, Figure::EccAggregateUncorrected),
    plain(id::NVML_FI_DEV_RETIRED_SBE, Figure::RetiredPagesSingleBit),
    plain(id::NVML_FI_DEV_RETIRED_DBE, Figure::RetiredPagesDoubleBit),
    plain(id::NVML_FI_DEV_RETIRED_PENDING, Figure::RetiredPagesPending),
    plain(id::NVML_FI_DEV_REMAPPED_COR, Figure::RemappedRowsCorrectable),
    plain(id::NVML_FI_DEV_REMAPPED_UNC, Figure::RemappedRowsUncorrectable),
    plain(id::NVML_FI_DEV_REMAPPED_PENDING, Figure::RowRemapPending),
    plain(id::NVML_FI_DEV_REMAPPED_FAILURE, Figure::RowRemapFailed),
    plain(id::NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, Figure::RecoveryAction),
];

const fn plain(id: u32, figure: Figure) -> Field {
    Field { id, figure, scope: 0, factor: 1 }
}

const fn links(id: u32, figure: Figure, factor: u64) -> Field {
    Field { id, figure, scope: ALL_LINKS, factor }
}

impl Field {
    /// The field's number in this driver. 580.82 gave the numbers of some fields to others, so that
    /// the wrong scheme reads a wrong value and no error.
    pub(crate) fn number(self, scheme: FieldIdScheme) -> u32 {
        match self.id {
            251..=255 if scheme == FieldIdScheme::V13Update1 => self.id + 18,
            id => id,
        }
    }
}

/// Of the fields that a device offers, one for each figure.
pub(crate) fn one_for_each_figure(offered: &[Field]) -> Vec<Field> {
    let better =
        |at: usize, it: &Field| offered[at + 1..].iter().any(|later| later.figure == it.figure);
    let kept = offered.iter().enumerate().filter(|(at, it)| !better(*at, it));
    kept.map(|(_, it)| *it).collect()
}

#[cfg(test)]
mod tests {
    use nvml_wrapper::FieldIdScheme;

    use super::{FIELDS, one_for_each_figure};
    use crate::model::figures::Figure;

    fn number(figure: Figure, scheme: FieldIdScheme) -> u32 {
        let kept = one_for_each_figure(&FIELDS);
        kept.iter().find(|it| it.figure == figure).unwrap().number(scheme)
    }

    /// Numbers of `nvml.h`: these fields moved in CUDA 13.0 Update 1, and others took their places.
    #[test]
    fn each_driver_is_asked_by_its_own_numbers() {
        for (figure, before, after) in [
            (Figure::HeldBySoftwareThermal, 251, 269),
            (Figure::HeldByHardwareThermal, 252, 270),
            (Figure::HeldByPowerBrake, 253, 271),
            (Figure::HeldByPowerCap, 74, 74),
            (Figure::RecoveryAction, 230, 230),
        ] {
            assert_eq!(number(figure, FieldIdScheme::V12), before);
            assert_eq!(number(figure, FieldIdScheme::V13Update1), after);
        }
    }

    #[test]
    fn one_field_is_asked_for_a_figure() {
        let kept = one_for_each_figure(&FIELDS);
        let nvlink: Vec<_> =
            kept.iter().filter(|it| it.figure == Figure::NvlinkTransmitted).collect();
        assert_eq!((nvlink.len(), nvlink[0].factor), (1, 1));
        // A device of the fourth generation has the older field only.
        let older: Vec<_> = FIELDS.into_iter().filter(|it| it.id != 202).collect();
        let kept = one_for_each_figure(&older);
        assert!(kept.iter().any(|it| it.figure == Figure::NvlinkTransmitted && it.factor == 1024));
    }
}
