//! What the workload tells of its speed, put together to windows of ten seconds.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;

/// A line of the workload; others are not asked for.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line {
    Slice(Slice),
    Truth {
        calls: BTreeMap<String, Counted>,
    },
    #[serde(other)]
    Other,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct Counted {
    calls: f64,
}

/// One run of the workload.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) slices: Vec<Slice>,
    /// From its begin to its end.
    pub(super) launches: f64,
}

/// A tenth of a second, or the sum of many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
pub(super) struct Slice {
    pub(super) nanoseconds: f64,
    pub(super) cpu_ns: f64,
    pub(super) launches: f64,
    #[serde(default)]
    pub(super) took: Took,
}

/// What its milliseconds took, and what they would have taken had each been as quick as the middle one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
pub(super) struct Took {
    wall_ns: f64,
    wall_at_middle_ns: f64,
    cpu_ns: f64,
    cpu_at_middle_ns: f64,
}

/// How fast a program was in a window, in each of both ways to measure time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Speed {
    pub(super) wall: Pace,
    pub(super) cpu: Pace,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pace {
    /// Launches per second.
    pub(super) rate: f64,
    /// Percent of the speed that is missing because some milliseconds are slower than the middle one.
    pub(super) lost: f64,
}

// === impl Told ===

impl Told {
    pub(super) fn parse(said: &str) -> anyhow::Result<Self> {
        let (mut slices, mut launches) = (Vec::new(), None);
        for line in said.lines() {
            match serde_json::from_str(line) {
                Ok(Line::Slice(it)) => slices.push(it),
                Ok(Line::Truth { calls }) => launches = calls.get("cuLaunchKernel").copied(),
                Ok(Line::Other) | Err(_) => {}
            }
        }
        let launches = launches.with_context(|| format!("the workload told no truth:\n{said}"))?;
        Ok(Self { slices, launches: launches.calls })
    }
}

// === impl Slice ===

impl Slice {
    fn add(&mut self, next: &Self) {
        self.nanoseconds += next.nanoseconds;
        self.cpu_ns += next.cpu_ns;
        self.launches += next.launches;
        self.took.wall_ns += next.took.wall_ns;
        self.took.wall_at_middle_ns += next.took.wall_at_middle_ns;
        self.took.cpu_ns += next.took.cpu_ns;
        self.took.cpu_at_middle_ns += next.took.cpu_at_middle_ns;
    }

    fn speed(&self) -> Speed {
        let lost = |took: f64, at_middle: f64| (1.0 - at_middle / took) * 100.0;
        let Took { wall_ns, wall_at_middle_ns, cpu_ns, cpu_at_middle_ns } = self.took;
        Speed {
            wall: Pace {
                rate: self.launches / self.nanoseconds * 1e9,
                lost: lost(wall_ns, wall_at_middle_ns),
            },
            cpu: Pace {
                rate: self.launches / self.cpu_ns * 1e9,
                lost: lost(cpu_ns, cpu_at_middle_ns),
            },
        }
    }
}

/// `count` windows of this length after the warm-up.
pub(super) fn windows(
    slices: &[Slice],
    warm_up: Duration,
    length: Duration,
    count: usize,
) -> Vec<Speed> {
    let mut sums = vec![Slice::default(); count];
    let (mut at, warm_up, length) = (0.0, warm_up.as_secs_f64(), length.as_secs_f64());
    for it in slices {
        let begins = (0..).map(|n| warm_up + f64::from(n) * length);
        if let Some((sum, _)) = sums.iter_mut().zip(begins).find(|(_, begin)| at < begin + length)
            && at >= warm_up
        {
            sum.add(it);
        }
        at += it.nanoseconds / 1e9;
    }
    sums.iter().filter(|it| it.nanoseconds > 0.0).map(Slice::speed).collect()
}

#[cfg(test)]
mod tests {
    use super::{Pace, Slice, Speed, Told, Took, windows};
    use std::time::Duration;

    fn second(launches: f64) -> Slice {
        let took =
            Took { wall_ns: 8.0, wall_at_middle_ns: 8.0, cpu_ns: 5.0, cpu_at_middle_ns: 4.0 };
        Slice { nanoseconds: 1e9, cpu_ns: 5e8, launches, took }
    }

    #[test]
    fn windows_begin_after_the_warm_up() {
        let slices: Vec<_> = (0..32).map(|at| second(if at < 12 { 5.0 } else { 7.0 })).collect();
        let speeds = [5.0, 7.0, 7.0].map(|rate| Speed {
            wall: Pace { rate, lost: 0.0 },
            cpu: Pace { rate: 2.0 * rate, lost: (1.0 - 4.0 / 5.0) * 100.0 },
        });
        let found = windows(&slices, Duration::from_secs(2), Duration::from_secs(10), 3);
        assert_eq!(found, speeds);
    }

    #[test]
    fn the_truth_is_the_last_word() {
        let said = "{\"event\":\"ready\",\"pid\":1}\n\
             {\"event\":\"slice\",\"boot_ns\":1,\"nanoseconds\":2,\"cpu_ns\":3,\"launches\":4}\n\
             {\"event\":\"truth\",\"pid\":1,\"calls\":{\"cuLaunchKernel\":{\"calls\":5,\"failed\":0}}}\n";
        let told = Told::parse(said).unwrap();
        assert_eq!((told.slices.len(), told.launches), (1, 5.0));
        assert!(Told::parse("{\"event\":\"ready\",\"pid\":1}\n").is_err());
    }
}
