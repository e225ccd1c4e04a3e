//! How long to wait before the next attempt. No clock and no sleeping: only lengths.
//!
//! Full jitter: uniform between nothing and a ceiling that doubles with each failure. A fleet that
//! lost its collector at one moment thus does not come back at one moment. There is no last attempt.

use std::time::Duration;

/// The first ceiling and the last. Neither is zero and the first is not above the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    first: Duration,
    last: Duration,
}

/// The waits of one retrying loop.
#[derive(Debug)]
pub(super) struct Backoff {
    bounds: Bounds,
    ceiling: Duration,
    random: fastrand::Rng,
}

// === impl Bounds ===

impl Bounds {
    /// `None` for a first wait of zero or above the last: such a loop would spin or shrink.
    #[must_use]
    pub const fn new(first: Duration, last: Duration) -> Option<Self> {
        if first.is_zero() || first.as_nanos() > last.as_nanos() {
            None
        } else {
            Some(Self { first, last })
        }
    }
}

// === impl Backoff ===

impl Backoff {
    pub(super) fn new(bounds: Bounds, random: fastrand::Rng) -> Self {
        Self { bounds, ceiling: bounds.first, random }
    }

    /// The wait after one more failure.
    pub(super) fn next(&mut self) -> Duration {
        let most = u64::try_from(self.ceiling.as_nanos()).unwrap_or(u64::MAX);
        self.ceiling = self.ceiling.saturating_mul(2).min(self.bounds.last);
        Duration::from_nanos(self.random.u64(0..=most))
    }

    /// What was tried worked: the next failure is a first one.
    pub(super) fn reset(&mut self) {
        self.ceiling = self.bounds.first;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::{Strategy, any, prop, proptest};

    use super::{Backoff, Bounds};

    fn bounds() -> impl Strategy<Value = Bounds> {
        (1_u64..=u64::MAX, any::<u64>()).prop_map(|(first, more)| {
            let (first, more) = (Duration::from_nanos(first), Duration::from_nanos(more));
            Bounds::new(first, first + more).expect("in order and not zero")
        })
    }

    proptest! {
        #[test]
        fn no_wait_is_above_its_ceiling(
            bounds in bounds(),
            seed in any::<u64>(),
            resets in prop::collection::vec(any::<bool>(), 1..100),
        ) {
            let mut backoff = Backoff::new(bounds, fastrand::Rng::with_seed(seed));
            let mut expected = bounds.first;
            for reset in resets {
                if reset {
                    backoff.reset();
                    expected = bounds.first;
                }
                assert!(backoff.next() <= expected);
                expected = expected.saturating_mul(2).min(bounds.last);
            }
        }
    }

    #[test]
    fn waits_grow_to_the_last_and_are_spread() {
        let bounds = Bounds::new(Duration::from_millis(200), Duration::from_secs(30)).unwrap();
        let mut backoff = Backoff::new(bounds, fastrand::Rng::with_seed(7));
        for _ in 0..20 {
            backoff.next();
        }
        let waits: Vec<Duration> = (0..1_000).map(|_| backoff.next()).collect();
        assert!(waits.iter().any(|it| *it > Duration::from_secs(29)));
        assert!(waits.iter().any(|it| *it < Duration::from_secs(1)));
    }

    #[test]
    fn bounds_that_would_spin_or_shrink_are_refused() {
        let seconds = Duration::from_secs;
        assert_eq!(Bounds::new(seconds(0), seconds(1)), None);
        assert_eq!(Bounds::new(seconds(2), seconds(1)), None);
        assert!(Bounds::new(seconds(1), seconds(1)).is_some());
    }
}
