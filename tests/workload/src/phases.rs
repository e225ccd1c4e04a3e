//! When to work and when not.

use std::str::FromStr;
use std::time::Duration;

/// Repeated for ever; empty = always busy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Phases(Vec<Phase>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Phase {
    busy: bool,
    length: Duration,
}

impl Phases {
    /// How long it is still idle, this long after the start; `None` = it is busy.
    pub(crate) fn idle_for(&self, elapsed: Duration) -> Option<Duration> {
        let period: Duration = self.0.iter().map(|it| it.length).sum();
        if period.is_zero() {
            return None;
        }
        let into = elapsed.as_nanos() % period.as_nanos();
        let mut end = 0;
        for phase in &self.0 {
            end += phase.length.as_nanos();
            if into < end {
                let left = u64::try_from(end - into).unwrap_or(u64::MAX);
                return (!phase.busy).then_some(Duration::from_nanos(left));
            }
        }
        None
    }
}

impl FromStr for Phases {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split(',').map(str::trim).filter(|it| !it.is_empty());
        parts.map(phase).collect::<Result<_, _>>().map(Self)
    }
}

fn phase(text: &str) -> Result<Phase, String> {
    let wrong = || format!("{text:?} is not a phase: expected `busy 10s` or `idle 500ms`");
    let (kind, length) = text.split_once(' ').ok_or_else(wrong)?;
    let busy = match kind {
        "busy" => true,
        "idle" => false,
        _ => return Err(wrong()),
    };
    Ok(Phase { busy, length: length_of(length).ok_or_else(wrong)? })
}

/// `10s` or `500ms`.
pub(crate) fn length(text: &str) -> Result<Duration, String> {
    length_of(text).ok_or_else(|| format!("{text:?} is not a time: expected `10s` or `500ms`"))
}

fn length_of(text: &str) -> Option<Duration> {
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 1),
        None => (text.strip_suffix('s')?, 1_000),
    };
    let number: u64 = number.trim().parse().ok()?;
    Some(Duration::from_millis(number.saturating_mul(unit)))
}

#[cfg(test)]
mod tests {
    use super::Phases;
    use std::time::Duration;

    fn check(text: &str, elapsed_ms: u64, expected_ms: Option<u64>) {
        let phases: Phases = text.parse().unwrap();
        let expected = expected_ms.map(Duration::from_millis);
        assert_eq!(
            phases.idle_for(Duration::from_millis(elapsed_ms)),
            expected,
            "{text} {elapsed_ms}"
        );
    }

    #[test]
    fn phases_repeat() {
        check("", 5, None);
        check("busy 1s, idle 500ms", 999, None);
        check("busy 1s, idle 500ms", 1_000, Some(500));
        check("busy 1s, idle 500ms", 1_499, Some(1));
        check("busy 1s, idle 500ms", 1_500, None);
        check("idle 2s", 500, Some(1_500));
    }

    #[test]
    fn what_is_not_a_phase_is_refused() {
        for text in ["busy", "busy 10", "rest 1s", "busy xs"] {
            assert!(text.parse::<Phases>().is_err(), "{text}");
        }
    }
}
