//! What tracing costs a process that launches as fast as it can, and how near its counts are.
//!
//! Two such processes: one that works a little between two launches, as everything that calls the
//! real driver does, and one that does nothing but call a stand-in that does nothing, which nothing
//! real comes near to. Each runs by turns alone, with an agent that has no bound, and with one that
//! keeps the default budget. The machine's own speed drifts: a run with an agent is compared with the
//! runs alone before and after it, and how much those differ from each other is a row of its own.
//!
//! A slow-down is in launches per second of the process's own CPU time, into which hits go and what
//! others do on the machine does not; and, as far as the machine is quiet, in launches per second.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::unistd::geteuid;
use serde::Deserialize;

use super::report::Row;
use crate::stage::folder::Folder;
use crate::stage::http;
use crate::stage::node::Node;
use crate::stage::ports;
use crate::stage::process::{self, Process};
use crate::{bpf, progress, shell};

const ROUNDS: usize = 3;
const BUDGET_PERCENT: f64 = 1.0;
/// Start-up, of the process and of sampling, is not in the figures.
const WARM_UP: Duration = Duration::from_secs(10);
const WINDOW: Duration = Duration::from_secs(10);
const WINDOWS: u32 = 3;
/// Work between two launches, in what the workload takes for nanoseconds: about a million a second.
const LOADS: [(&str, u64); 2] = [("1 M/s", 800), ("flat out", 0)];
/// Alone and without a bound there is nothing to settle.
const SHORT_WARM_UP: Duration = Duration::from_secs(2);

pub(super) fn run() -> anyhow::Result<Vec<Row>> {
    anyhow::ensure!(
        geteuid().is_root(),
        "attaching probes needs CAP_BPF and CAP_PERFMON; nothing was measured. \
         Run `sudo -E cargo xtask bench governor`"
    );
    build()?;
    let folder = Folder::make("bench")?;
    let node = Node::make(&folder, &built(), 1, "")?;
    let mut found = LOADS.map(|_| Found::default());
    let stages = LOADS.map(|(_, work_ns)| Stage { folder: &folder, node: &node, work_ns });
    for round in 1..=ROUNDS {
        eprintln!("round {round} of {ROUNDS}, three minutes each");
        for (stage, found) in stages.iter().zip(&mut found) {
            stage.round(found)?;
        }
    }
    let rows = LOADS.iter().zip(&found).map(|((name, _), found)| found.rows(name));
    Ok(rows.collect::<anyhow::Result<Vec<_>>>()?.concat())
}

fn built() -> PathBuf {
    shell::root().join("target/release")
}

fn build() -> anyhow::Result<()> {
    bpf::run()?;
    let mut cargo = shell::cargo(["build", "--release", "--locked"]);
    for it in ["agent", "nvml-stub", "cuda-stub-cmp", "workload"] {
        cargo.args(["--package", it]);
    }
    progress::build("agent and the stand-ins, for release", cargo)
}

struct Stage<'a> {
    folder: &'a Folder,
    node: &'a Node,
    work_ns: u64,
}

/// One run with an agent.
#[derive(Clone, Debug)]
struct Traced {
    windows: Vec<Rate>,
    launches: f64,
    counted: f64,
    factor: f64,
}

/// A line of the workload; others are not asked for.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line {
    Slice {
        nanoseconds: f64,
        cpu_ns: f64,
        launches: f64,
    },
    #[serde(other)]
    Other,
}

impl Stage<'_> {
    fn round(&self, found: &mut Found) -> anyhow::Result<()> {
        found.alone.push(self.alone()?);
        let unbounded = self.traced(100.0, SHORT_WARM_UP, 1)?;
        found.alone.push(self.alone()?);
        found.unbounded.push((unbounded, found.baseline()));
        let bounded = self.traced(BUDGET_PERCENT, WARM_UP, WINDOWS)?;
        found.alone.push(self.alone()?);
        found.bounded.push((bounded, found.baseline()));
        Ok(())
    }

    /// Without an agent.
    fn alone(&self) -> anyhow::Result<Rate> {
        let slices = self.work(SHORT_WARM_UP + WINDOW)?;
        windows(&slices, SHORT_WARM_UP, 1).pop().context("the workload told no rate")
    }

    fn traced(&self, percent: f64, warm_up: Duration, count: u32) -> anyhow::Result<Traced> {
        let port = ports::free(0)?;
        let mut agent = self.agent(percent, port)?;
        wait_for(&mut agent, port)?;
        let before = launches_counted(port)?;
        let slices = self.work(warm_up + WINDOW * count)?;
        let factor = value(&http::get(port, "/metrics")?, "gleaner_tracing_sampling_factor");
        // The exit of the process is read at once, and an estimate at the next tick.
        std::thread::sleep(Duration::from_secs(3));
        Ok(Traced {
            windows: windows(&slices, warm_up, count),
            launches: slices.iter().map(|it| it.launches).sum(),
            counted: launches_counted(port)? - before,
            factor: factor.unwrap_or(1.0),
        })
    }

    fn agent(&self, percent: f64, port: u16) -> anyhow::Result<Process> {
        let text = format!(
            "[http]\nlisten = \"127.0.0.1:{port}\"\n[collector]\naddress = \"\"\n\
             [spool]\npath = {:?}\n[nvml]\nlibrary = {:?}\n\
             [cuda]\nlibraries = [{:?}]\npin_root = \"\"\nbudget_percent = {percent:.1}\n",
            self.folder.path().join("agent"),
            self.node.nvml,
            self.node.cuda
        );
        let configuration = self.folder.write("gleaner-agent.toml", &text)?;
        let mut command = Command::new(built().join("gleaner-agent"));
        command.arg("--config").arg(configuration);
        Process::start("gleaner-agent", command, self.folder.path())
    }

    fn work(&self, length: Duration) -> anyhow::Result<Vec<Slice>> {
        let mut command = Command::new(built().join("workload"));
        command.arg("--library").arg(&self.node.cuda);
        command.arg(format!("--flat-out={}s", length.as_secs()));
        command.arg(format!("--work-ns={}", self.work_ns));
        let said = shell::output(command)?;
        let slices: Vec<Slice> = said.lines().filter_map(slice).collect();
        anyhow::ensure!(!slices.is_empty(), "the workload told no rate:\n{said}");
        Ok(slices)
    }
}

#[derive(Clone, Copy, Debug)]
struct Slice {
    seconds: f64,
    cpu_seconds: f64,
    launches: f64,
}

/// Launches per second of the clock, and of the process's CPU time.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Rate {
    wall: f64,
    cpu: f64,
}

impl Slice {
    fn rate(self) -> Rate {
        Rate { wall: self.launches / self.seconds, cpu: self.launches / self.cpu_seconds }
    }
}

fn slice(line: &str) -> Option<Slice> {
    match serde_json::from_str(line) {
        Ok(Line::Slice { nanoseconds, cpu_ns, launches }) => {
            Some(Slice { seconds: nanoseconds / 1e9, cpu_seconds: cpu_ns / 1e9, launches })
        }
        _ => None,
    }
}

/// Rates in `count` windows after the warm-up.
fn windows(slices: &[Slice], warm_up: Duration, count: u32) -> Vec<Rate> {
    let none = Slice { seconds: 0.0, cpu_seconds: 0.0, launches: 0.0 };
    let mut sums = vec![none; count as usize];
    let mut at = 0.0;
    for it in slices {
        let place = (at - warm_up.as_secs_f64()) / WINDOW.as_secs_f64();
        at += it.seconds;
        if let Some(sum) =
            (0..count).find(|n| (f64::from(*n)..f64::from(*n) + 1.0).contains(&place))
        {
            let sum = &mut sums[sum as usize];
            sum.seconds += it.seconds;
            sum.cpu_seconds += it.cpu_seconds;
            sum.launches += it.launches;
        }
    }
    sums.into_iter().filter(|it| it.seconds > 0.0).map(Slice::rate).collect()
}

fn wait_for(agent: &mut Process, port: u16) -> anyhow::Result<()> {
    let deadline = process::now() + Duration::from_secs(20);
    while launches_counted(port).is_err() {
        if agent.ended().is_some() || process::now() > deadline {
            bail!("the agent traces nothing:\n{}", agent.last_lines());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Of all tenants; an error where nothing is traced.
fn launches_counted(port: u16) -> anyhow::Result<f64> {
    let text = http::get(port, "/metrics")?;
    anyhow::ensure!(value(&text, "gleaner_tracing_on") == Some(1.0), "nothing is traced");
    Ok(value(&text, "gleaner_tenant_cuda_launches_total").unwrap_or(0.0))
}

/// Sum of a family's samples; `None` = there are none.
fn value(text: &str, family: &str) -> Option<f64> {
    let samples = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(family)?;
        let rest = rest.starts_with(['{', ' ']).then_some(rest)?;
        rest.rsplit(' ').next()?.parse::<f64>().ok()
    });
    samples.fold(None, |sum, it| Some(sum.unwrap_or(0.0) + it))
}

/// All rounds: each run with an agent beside the rate alone at that time.
#[derive(Debug, Default)]
struct Found {
    alone: Vec<Rate>,
    unbounded: Vec<(Traced, Rate)>,
    bounded: Vec<(Traced, Rate)>,
}

impl Found {
    /// Mean of the last two runs alone.
    fn baseline(&self) -> Rate {
        match self.alone.as_slice() {
            [.., before, after] => Rate {
                wall: f64::midpoint(before.wall, after.wall),
                cpu: f64::midpoint(before.cpu, after.cpu),
            },
            [only] => *only,
            [] => Rate { wall: f64::NAN, cpu: f64::NAN },
        }
    }

    fn rows(&self, load: &str) -> anyhow::Result<Vec<Row>> {
        let row = |what: &str, value, unit| Row::new(&format!("{load}, {what}"), value, unit);
        let drift = self.alone.windows(2).map(|it| off(it[0].cpu, it[1].cpu).abs());
        let mut rows = vec![
            row(
                "alone: launches a second",
                of(self.alone.iter().map(|it| it.wall))? / 1e6,
                "million",
            ),
            row(
                "alone: launches a CPU second",
                of(self.alone.iter().map(|it| it.cpu))? / 1e6,
                "million",
            ),
            row("alone: two runs differ by, median", of(drift.clone())?, "%"),
            row("alone: two runs differ by, worst", worst(drift)?, "%"),
        ];
        rows.extend(traced_rows(&format!("{load}, no bound"), &self.unbounded)?);
        rows.extend(bounded_rows(&format!("{load}, budget 1 %"), &self.bounded)?);
        Ok(rows)
    }
}

/// Slow-down and error of runs with an agent.
fn traced_rows(name: &str, runs: &[(Traced, Rate)]) -> anyhow::Result<Vec<Row>> {
    let row = |what: &str, value, unit| Row::new(&format!("{name}: {what}"), value, unit);
    let slow = |rate: fn(&Rate) -> f64| {
        runs.iter().flat_map(move |(it, alone)| {
            it.windows.iter().map(move |window| -off(rate(alone), rate(window)))
        })
    };
    let error = runs.iter().map(|(it, _)| off(it.launches, it.counted));
    Ok(vec![
        row("slow-down of a 10 s window by CPU time, median", of(slow(|it| it.cpu))?, "%"),
        row("slow-down of a 10 s window by CPU time, worst", worst(slow(|it| it.cpu))?, "%"),
        row("slow-down of a 10 s window by the clock, median", of(slow(|it| it.wall))?, "%"),
        row("launches made, median", of(runs.iter().map(|(it, _)| it.launches))? / 1e6, "million"),
        row(
            "launches counted, median",
            of(runs.iter().map(|(it, _)| it.counted))? / 1e6,
            "million",
        ),
        row("counted off the truth, median", of(error.clone())?, "%"),
        row("counted off the truth, worst", worst(error.map(f64::abs))?, "%"),
    ])
}

fn bounded_rows(name: &str, runs: &[(Traced, Rate)]) -> anyhow::Result<Vec<Row>> {
    let mut rows = traced_rows(name, runs)?;
    let factor = of(runs.iter().map(|(it, _)| it.factor))?;
    rows[0] = rows[0].clone().value_at_most(BUDGET_PERCENT);
    rows[1] = rows[1].clone().value_at_most(BUDGET_PERCENT);
    rows[6] = rows[6].clone().value_at_most(5.0);
    rows.push(Row::new(&format!("{name}: counts scaled by"), factor, "times"));
    rows.push(Row::new(&format!("{name}: time watched"), 100.0 / factor, "%"));
    Ok(rows)
}

/// How far a value is above what it should be.
fn off(should: f64, is: f64) -> f64 {
    (is / should - 1.0) * 100.0
}

fn of(values: impl Iterator<Item = f64>) -> anyhow::Result<f64> {
    median(values.collect()).context("a run told nothing")
}

fn worst(values: impl Iterator<Item = f64>) -> anyhow::Result<f64> {
    values.reduce(f64::max).context("a run told nothing")
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::{Rate, Slice, value, windows};
    use std::time::Duration;

    #[test]
    fn windows_begin_after_the_warm_up() {
        let slice = |launches| Slice { seconds: 1.0, cpu_seconds: 0.5, launches };
        let slices: Vec<_> = (0..32).map(|at| slice(if at < 12 { 5.0 } else { 7.0 })).collect();
        let rates = [5.0, 7.0, 7.0].map(|wall| Rate { wall, cpu: 2.0 * wall });
        assert_eq!(windows(&slices, Duration::from_secs(2), 3), rates);
    }

    #[test]
    fn a_family_is_summed_and_no_other_one() {
        let text = "# HELP a x\na{b=\"c d\"} 2\na{b=\"e\"} 3.5\na_total 9\n";
        assert_eq!((value(text, "a"), value(text, "b")), (Some(5.5), None));
    }
}
