//! What a value of GPM means. Values in, values out: no call, no clock.

use crate::model::figures::{Figure, Figures};
use crate::model::units::Percent;

/// Between two samples of one value: less is not measured, more says nothing of now.
const SHORTEST_NS: u64 = 100_000_000;
const LONGEST_NS: u64 = 600_000_000_000;

/// Rounding of the driver; what is further above the whole is not a part of it.
const MOST_PERCENT: f64 = 100.5;
const MIB: f64 = 1_048_576.0;

/// What to do with the sample before, so long after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Window {
    /// The two are too close: it is kept for the next tick.
    Early,
    Good,
    /// It is replaced, and says nothing.
    Stale,
}

pub(crate) fn window(elapsed_ns: u64) -> Window {
    match elapsed_ns {
        ..SHORTEST_NS => Window::Early,
        SHORTEST_NS..=LONGEST_NS => Window::Good,
        _ => Window::Stale,
    }
}

/// Figures in their units; what cannot be true is left out.
pub(crate) fn figures(values: &[(Figure, f64)]) -> Figures {
    values.iter().filter_map(|(figure, value)| Some((*figure, meaning(*figure, *value)?))).collect()
}

fn meaning(figure: Figure, value: f64) -> Option<u64> {
    match figure {
        Figure::PcieTransmitRate
        | Figure::PcieReceiveRate
        | Figure::NvlinkTransmitRate
        | Figure::NvlinkReceiveRate => whole(value * MIB),
        _ if value <= MOST_PERCENT => whole(value.min(100.0) * 10_000.0),
        _ => None,
    }
}

/// The part of the time in which anything ran, rounded up: what ran at all is not idle.
pub(crate) fn busy(figures: &Figures) -> Option<Percent> {
    let millionths = figures.get(Figure::GraphicsActive)?;
    Percent::new(u32::try_from(millionths.div_ceil(10_000)).ok()?)
}

/// `None` for what is negative, not finite or not a number.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked before")]
fn whole(value: f64) -> Option<u64> {
    let bounded = value.is_finite() && (0.0..1e18).contains(&value);
    bounded.then(|| value.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::{Window, busy, figures, window};
    use crate::model::figures::Figure;
    use crate::model::units::Percent;

    fn check(figure: Figure, value: f64, expected: Option<u64>) {
        assert_eq!(figures(&[(figure, value)]).get(figure), expected, "{figure:?} {value}");
    }

    #[test]
    fn what_cannot_be_true_is_left_out() {
        check(Figure::SmActive, 43.5, Some(435_000));
        check(Figure::SmActive, 0.0, Some(0));
        check(Figure::SmActive, 100.2, Some(1_000_000));
        // DCGM#152: more than all of an instance.
        check(Figure::SmActive, 114.0, None);
        check(Figure::SmActive, -1.0, None);
        check(Figure::DramActive, f64::NAN, None);
        check(Figure::NvlinkReceiveRate, 2.5, Some(2_621_440));
        check(Figure::NvlinkReceiveRate, f64::INFINITY, None);
    }

    #[test]
    fn what_ran_at_all_is_not_idle() {
        let percent = |value| busy(&figures(&[(Figure::GraphicsActive, value)]));
        assert_eq!(percent(0.0), Percent::new(0));
        assert_eq!(percent(0.01), Percent::new(1));
        assert_eq!(percent(99.2), Percent::new(100));
        assert_eq!(percent(200.0), None);
        assert_eq!(busy(&figures(&[])), None);
    }

    #[test]
    fn a_window_is_neither_short_nor_old() {
        assert_eq!(window(99_999_999), Window::Early);
        assert_eq!(window(1_000_000_000), Window::Good);
        assert_eq!(window(600_000_000_001), Window::Stale);
    }
}
