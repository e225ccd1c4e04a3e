//! How long to wait before the next attempt. There is no last one.

use std::time::Duration;

/// Ceiling of the first wait.
const FIRST: Duration = Duration::from_millis(200);
/// Ceiling of every later one.
const MOST: Duration = Duration::from_secs(30);
/// Not even by chance is a collector that refuses asked more often than this.
const LEAST: Duration = Duration::from_millis(50);

/// Waits with exponential ceilings and full jitter, so that a fleet that lost its collector does not
/// come back as one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    attempts: u32,
}

// === impl Backoff ===

impl Backoff {
    /// The next wait. `random` is uniform in `[0, 1)`.
    pub fn next(&mut self, random: f64) -> Duration {
        let ceiling = 2_u32
            .checked_pow(self.attempts)
            .and_then(|it| FIRST.checked_mul(it))
            .map_or(MOST, |it| it.min(MOST));
        self.attempts = self.attempts.saturating_add(1);
        ceiling.mul_f64(random.clamp(0.0, 1.0)).max(LEAST)
    }

    /// After a connection that was of use.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Backoff, FIRST, LEAST, MOST};
    use proptest::prelude::{any, prop_assert, proptest};

    proptest! {
        #[test]
        fn a_wait_is_never_out_of_bounds(attempts in any::<u32>(), random in 0.0..1.0) {
            let wait = Backoff { attempts }.next(random);
            prop_assert!((LEAST..=MOST).contains(&wait));
        }
    }

    #[test]
    fn ceilings_double_until_the_most() {
        let mut backoff = Backoff::default();
        let ceilings: Vec<u128> = (0..10).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(ceilings, [200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000]);
        backoff.reset();
        assert_eq!(backoff.next(0.5), FIRST / 2);
        assert_eq!(backoff.next(0.0), Duration::from_millis(50));
    }
}
