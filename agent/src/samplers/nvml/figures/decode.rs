//! What the value of a figure means. Values in, values out: no call, no clock.

use crate::model::figures::{FABRIC_FAILED, Figure, Figures};
use crate::samplers::nvml::figures::Raw;

/// No GPU runs this hot; a driver that says so is not speaking of degrees.
pub(crate) const MAX_CELSIUS: u64 = 200;
const MAX_RECOVERY_ACTION: u64 = 4;

/// Figures in their units; what cannot be true is left out.
pub(crate) fn figures(raw: &Raw) -> Figures {
    let believable = |(figure, value): (&Figure, &u64)| Some((*figure, meaning(*figure, *value)?));
    let within = |(figure, _): &(&Figure, &u64)| match figure {
        Figure::Bar1Used => raw.get(&Figure::Bar1Used) <= raw.get(&Figure::Bar1Total),
        _ => true,
    };
    raw.iter().filter(within).filter_map(believable).collect()
}

fn meaning(figure: Figure, value: u64) -> Option<u64> {
    // A driver that does not know sets all bits.
    if value == u64::MAX {
        return None;
    }
    let at_most = |most: u64| (value <= most).then_some(value);
    match figure {
        Figure::EncoderBusy | Figure::DecoderBusy | Figure::JpegBusy | Figure::OpticalFlowBusy => {
            at_most(100).map(|it| it * 10_000)
        }
        Figure::VideoClock => Some(value.saturating_mul(1_000_000)),
        Figure::MemoryTemperature => at_most(MAX_CELSIUS),
        Figure::EccOn
        | Figure::EccOnAfterReset
        | Figure::RetiredPagesPending
        | Figure::RowRemapPending
        | Figure::RowRemapFailed
        | Figure::FabricDegraded
        | Figure::AccountingOn => at_most(1),
        Figure::RecoveryAction => at_most(MAX_RECOVERY_ACTION),
        Figure::FabricState => at_most(FABRIC_FAILED),
        _ => Some(value),
    }
}

#[cfg(test)]
mod tests {
    use super::figures;
    use crate::model::figures::Figure;

    fn check(figure: Figure, raw: u64, expected: Option<u64>) {
        assert_eq!(figures(&[(figure, raw)].into()).get(figure), expected, "{figure:?} {raw}");
    }

    #[test]
    fn what_cannot_be_true_is_left_out() {
        check(Figure::EncoderBusy, 37, Some(370_000));
        check(Figure::DecoderBusy, 2_147_483_632, None);
        check(Figure::MemoryTemperature, 255, None);
        check(Figure::MemoryTemperature, 0, Some(0));
        check(Figure::VideoClock, 1_500, Some(1_500_000_000));
        check(Figure::RowRemapPending, 2, None);
        check(Figure::RecoveryAction, 5, None);
        check(Figure::PcieReplays, u64::MAX, None);
        check(Figure::NvlinkTransmitted, 0, Some(0));
        // More is used than there is, or than is known.
        check(Figure::Bar1Used, 5, None);
    }
}
