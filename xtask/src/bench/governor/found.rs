//! What all runs together say: how much slower launches are under an agent, and how near its counts are.
//!
//! Two runs one after the other differ by many percent, because the machine does. What the governor
//! costs comes and goes in the midst of a run, so it is told by what is missing in that run against its
//! own middle milliseconds; and since other things disturb a program too, by how much more is missing
//! than in the runs alone before and after.

use anyhow::Context;

use super::super::report::Row;
use super::slices::{Pace, Speed};

/// One run with an agent.
#[derive(Clone, Debug)]
pub(super) struct Traced {
    pub(super) windows: Vec<Speed>,
    pub(super) launches: f64,
    pub(super) counted: f64,
    pub(super) factor: f64,
}

/// All rounds of one load: each run with an agent beside those alone before and after it.
#[derive(Debug, Default)]
pub(super) struct Found {
    alone: Vec<Speed>,
    unbounded: Vec<(Traced, [Speed; 2])>,
    bounded: Vec<(Traced, [Speed; 2])>,
}

/// One of both ways to measure time.
type Way = fn(&Speed) -> Pace;

const WAYS: [(&str, Way); 2] = [("CPU time", |it| it.cpu), ("the clock", |it| it.wall)];

impl Found {
    pub(super) fn add(&mut self, alone: [Speed; 3], unbounded: Traced, bounded: Traced) {
        self.alone.extend(alone);
        self.unbounded.push((unbounded, [alone[0], alone[1]]));
        self.bounded.push((bounded, [alone[1], alone[2]]));
    }

    pub(super) fn rows(&self, load: &str, budget_percent: f64) -> anyhow::Result<Vec<Row>> {
        let rate = self.alone.iter().map(|it| it.wall.rate);
        let mut rows = vec![Row::new(
            &format!("{load}, alone: launches a second"),
            median(rate)? / 1e6,
            "million",
        )];
        for (way, pace) in WAYS {
            let name = format!("{load}, alone: missing against the middle by {way}");
            rows.extend(spread(&name, self.alone.iter().map(|it| pace(it).lost))?);
        }
        rows.extend(unbounded_rows(&format!("{load}, no bound"), &self.unbounded)?);
        rows.extend(bounded_rows(
            &format!("{load}, budget {budget_percent} %"),
            &self.bounded,
            budget_percent,
        )?);
        Ok(rows)
    }
}

/// Every hit costs, so that the middle is as slow as the rest: the rates alone are the measure.
fn unbounded_rows(name: &str, runs: &[(Traced, [Speed; 2])]) -> anyhow::Result<Vec<Row>> {
    let slower = runs.iter().flat_map(|(it, alone)| {
        let rate = mean(alone, |it| it.cpu.rate);
        it.windows.iter().map(move |window| (1.0 - window.cpu.rate / rate) * 100.0)
    });
    let mut rows = spread(&format!("{name}: slow-down by CPU time"), slower)?;
    rows.extend(counted_rows(name, runs)?);
    Ok(rows)
}

fn bounded_rows(
    name: &str,
    runs: &[(Traced, [Speed; 2])],
    budget_percent: f64,
) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (way, pace) in WAYS {
        let more = runs.iter().flat_map(|(it, alone)| {
            let usual = mean(alone, |it| pace(it).lost);
            it.windows.iter().map(move |window| pace(window).lost - usual)
        });
        let spread = spread(&format!("{name}: slow-down of 10 s by {way}"), more)?;
        rows.extend(spread.into_iter().map(|it| it.value_at_most(budget_percent)));
    }
    let mut counted = counted_rows(name, runs)?;
    if let Some(worst) = counted.pop() {
        counted.push(worst.value_at_most(5.0));
    }
    rows.extend(counted);
    let factor = median(runs.iter().map(|(it, _)| it.factor))?;
    rows.push(Row::new(&format!("{name}: counts scaled by"), factor, "times"));
    Ok(rows)
}

fn counted_rows(name: &str, runs: &[(Traced, [Speed; 2])]) -> anyhow::Result<Vec<Row>> {
    let error = runs.iter().map(|(it, _)| (it.counted / it.launches - 1.0) * 100.0);
    let worst = error.clone().map(f64::abs).fold(0.0, f64::max);
    let name = format!("{name}: counted off the truth");
    Ok(vec![
        Row::new(&format!("{name}, median"), median(error)?, "%"),
        Row::new(&format!("{name}, worst"), worst, "%"),
    ])
}

/// Median and worst.
fn spread(name: &str, values: impl Iterator<Item = f64> + Clone) -> anyhow::Result<Vec<Row>> {
    let worst = values.clone().reduce(f64::max).context("a run told nothing")?;
    Ok(vec![
        Row::new(&format!("{name}, median"), median(values)?, "%"),
        Row::new(&format!("{name}, worst"), worst, "%"),
    ])
}

fn mean(alone: &[Speed; 2], of: impl Fn(&Speed) -> f64) -> f64 {
    f64::midpoint(of(&alone[0]), of(&alone[1]))
}

fn median(values: impl Iterator<Item = f64>) -> anyhow::Result<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().context("a run told nothing")
}

#[cfg(test)]
mod tests {
    use super::super::slices::{Pace, Speed};
    use super::{Found, Traced};

    fn speed(rate: f64, lost: f64) -> Speed {
        Speed { wall: Pace { rate, lost }, cpu: Pace { rate, lost } }
    }

    #[test]
    fn what_disturbs_a_program_alone_is_not_the_governors() {
        let traced = |rate, lost| Traced {
            windows: vec![speed(rate, lost); 3],
            launches: 100.0,
            counted: 98.0,
            factor: 20.0,
        };
        let mut found = Found::default();
        found.add(
            [speed(10.0, 0.5), speed(10.0, 1.5), speed(12.0, 2.5)],
            traced(4.0, 9.0),
            traced(11.0, 2.75),
        );
        let rows = found.rows("load", 1.0).unwrap();
        let value = |name: &str| rows.iter().find(|it| it.name == name).unwrap().value;
        assert!((value("load, no bound: slow-down by CPU time, median") - 60.0).abs() < 1e-9);
        let bounded = value("load, budget 1 %: slow-down of 10 s by CPU time, worst");
        assert!((bounded - 0.75).abs() < 1e-9, "{bounded}");
        let off = value("load, budget 1 %: counted off the truth, worst");
        assert!((off - 2.0).abs() < 1e-9, "{off}");
    }
}
