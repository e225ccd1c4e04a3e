//! When the sources are read besides the ticks: after process events, soon enough to see who came and
//! seldom enough that waking programs do not pay for it.

use std::time::Duration;

use tokio::time::Instant;

use crate::model::readings::Change;

/// A process that came or went is looked at this soon: long enough to read many at once, short
/// enough to find out whose a short one is.
const LIFE: Duration = Duration::from_millis(20);

/// A launch after a silence ends an idleness. With many programs that launch now and then this is
/// the distance of readings: four a second cost what four ticks cost.
const WAKE: Duration = Duration::from_millis(250);

/// After a process event the driver's view follows late: its utilisation is a sample of up to a
/// second, and memory comes back when it is done. Pauses after which it is looked at again.
const FOLLOW_UPS: [Duration; 3] =
    [Duration::from_millis(200), Duration::from_millis(400), Duration::from_millis(600)];

/// The next reading besides the ticks.
#[derive(Clone, Debug, Default)]
pub struct Pacing {
    due: Option<Instant>,
    /// How many of `FOLLOW_UPS` are still to come.
    follow_ups: usize,
}

// === impl Pacing ===

impl Pacing {
    /// An earlier reading that is planned already stays planned.
    pub fn note(&mut self, now: Instant, change: Change) {
        let wait = match change {
            Change::Life => {
                self.follow_ups = FOLLOW_UPS.len();
                LIFE
            }
            Change::Wake => WAKE,
        };
        let due = now + wait;
        self.due = Some(self.due.map_or(due, |it| it.min(due)));
    }

    /// A planned reading begins; plans the one that follows it.
    pub fn begin(&mut self, now: Instant) {
        let next = FOLLOW_UPS.len() - self.follow_ups;
        self.due = FOLLOW_UPS.get(next).map(|it| now + *it);
        self.follow_ups = self.follow_ups.saturating_sub(1);
    }

    /// Resolves when the planned reading is due; never when none is.
    pub async fn due(&self) {
        match self.due {
            Some(due) => tokio::time::sleep_until(due).await,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::Pacing;
    use crate::model::readings::Change;

    #[tokio::test]
    async fn a_life_is_looked_at_soon_and_three_times_more() {
        let (start, mut pacing) = (Instant::now(), Pacing::default());
        pacing.note(start, Change::Wake);
        pacing.note(start, Change::Life);
        let mut waits = Vec::new();
        let mut now = start;
        while let Some(due) = pacing.due {
            waits.push((due - now).as_millis());
            now = due;
            pacing.begin(now);
        }
        assert_eq!(waits, [20, 200, 400, 600]);
    }

    #[tokio::test]
    async fn waking_programs_are_read_four_times_a_second() {
        let (start, mut pacing) = (Instant::now(), Pacing::default());
        let mut readings = 0;
        for step in 0..1_000 {
            let now = start + Duration::from_millis(step);
            if pacing.due.is_some_and(|it| it <= now) {
                pacing.begin(now);
                readings += 1;
            }
            pacing.note(now, Change::Wake);
        }
        assert_eq!(readings, 3);
    }
}
