//! What tracing costs a process that launches as fast as it can, and how near its counts are.
//!
//! The process runs by turns alone, with an agent that keeps the default budget, and with one that
//! has no bound. The machine's own speed drifts: a run with an agent is compared with the runs alone
//! before and after it, and how much those differ from each other is a row of its own.

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
    let stage = Stage { folder, node };
    let mut found = Found::default();
    found.alone.push(stage.alone()?);
    for round in 1..=ROUNDS {
        eprintln!("round {round} of {ROUNDS}, two minutes each");
        let unbounded = stage.traced(100.0, SHORT_WARM_UP, 1)?;
        found.alone.push(stage.alone()?);
        found.unbounded.push((unbounded, found.baseline()));
        let bounded = stage.traced(BUDGET_PERCENT, WARM_UP, WINDOWS)?;
        found.alone.push(stage.alone()?);
        found.bounded.push((bounded, found.baseline()));
    }
    found.rows()
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

struct Stage {
    folder: Folder,
    node: Node,
}

/// One run with an agent.
#[derive(Clone, Debug)]
struct Traced {
    /// Launches per second in each window.
    windows: Vec<f64>,
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
        launches: f64,
    },
    #[serde(other)]
    Other,
}

impl Stage {
    /// Launches per second without an agent.
    fn alone(&self) -> anyhow::Result<f64> {
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
        let said = shell::output(command)?;
        let slices: Vec<Slice> = said.lines().filter_map(slice).collect();
        anyhow::ensure!(!slices.is_empty(), "the workload told no rate:\n{said}");
        Ok(slices)
    }
}

#[derive(Clone, Copy, Debug)]
struct Slice {
    seconds: f64,
    launches: f64,
}

fn slice(line: &str) -> Option<Slice> {
    match serde_json::from_str(line) {
        Ok(Line::Slice { nanoseconds, launches }) => {
            Some(Slice { seconds: nanoseconds / 1e9, launches })
        }
        _ => None,
    }
}

/// Launches per second in `count` windows after the warm-up.
fn windows(slices: &[Slice], warm_up: Duration, count: u32) -> Vec<f64> {
    let mut sums = vec![Slice { seconds: 0.0, launches: 0.0 }; count as usize];
    let mut at = 0.0;
    for it in slices {
        let place = (at - warm_up.as_secs_f64()) / WINDOW.as_secs_f64();
        at += it.seconds;
        if let Some(sum) =
            (0..count).find(|n| (f64::from(*n)..f64::from(*n) + 1.0).contains(&place))
        {
            let sum = &mut sums[sum as usize];
            sum.seconds += it.seconds;
            sum.launches += it.launches;
        }
    }
    sums.iter().filter(|it| it.seconds > 0.0).map(|it| it.launches / it.seconds).collect()
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
    alone: Vec<f64>,
    unbounded: Vec<(Traced, f64)>,
    bounded: Vec<(Traced, f64)>,
}

impl Found {
    /// Mean of the last two runs alone.
    fn baseline(&self) -> f64 {
        match self.alone.as_slice() {
            [.., before, after] => f64::midpoint(*before, *after),
            [only] => *only,
            [] => f64::NAN,
        }
    }

    fn rows(&self) -> anyhow::Result<Vec<Row>> {
        let alone = median(self.alone.clone()).context("nothing was measured")?;
        let drift = self.alone.windows(2).map(|it| percent(it[0].max(it[1]), it[0].min(it[1])));
        let mut rows = vec![
            Row::new("launches a second, alone", alone / 1e6, "million"),
            Row::new("two runs alone, one after the other: median", of(drift.clone())?, "%"),
            Row::new("two runs alone, one after the other: worst", worst(drift)?, "%"),
        ];
        for (name, runs, bounded) in
            [("no bound", &self.unbounded, false), ("budget 1 %", &self.bounded, true)]
        {
            let slow = runs
                .iter()
                .flat_map(|(it, alone)| it.windows.iter().map(move |rate| percent(*alone, *rate)));
            let error = runs.iter().map(|(it, _)| percent(it.launches, it.counted).abs());
            let row = |what: &str, value, unit| Row::new(&format!("{name}: {what}"), value, unit);
            let median_slow = row("slow-down, median of 10 s windows", of(slow.clone())?, "%");
            let worst_slow = row("slow-down, worst window", worst(slow)?, "%");
            let median_error =
                row("counted launches off the truth, median", of(error.clone())?, "%");
            let worst_error = row("counted launches off the truth, worst", worst(error)?, "%");
            let factor = of(runs.iter().map(|(it, _)| it.factor))?;
            rows.extend(if bounded {
                [
                    median_slow.value_at_most(BUDGET_PERCENT),
                    worst_slow.value_at_most(BUDGET_PERCENT),
                    median_error.value_at_most(5.0),
                    worst_error.value_at_most(5.0),
                    row("counts scaled by", factor, "times"),
                    row("time watched", 100.0 / factor, "%"),
                ]
                .to_vec()
            } else {
                vec![median_slow, worst_slow, median_error, worst_error]
            });
        }
        Ok(rows)
    }
}

/// How much less than `whole` something is.
fn percent(whole: f64, part: f64) -> f64 {
    (1.0 - part / whole) * 100.0
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
    use super::{Slice, value, windows};
    use std::time::Duration;

    #[test]
    fn windows_begin_after_the_warm_up() {
        let slice = |launches| Slice { seconds: 1.0, launches };
        let slices: Vec<_> = (0..32).map(|at| slice(if at < 12 { 5.0 } else { 7.0 })).collect();
        assert_eq!(windows(&slices, Duration::from_secs(2), 3), [5.0, 7.0, 7.0]);
    }

    #[test]
    fn a_family_is_summed_and_no_other_one() {
        let text = "# HELP a x\na{b=\"c d\"} 2\na{b=\"e\"} 3.5\na_total 9\n";
        assert_eq!((value(text, "a"), value(text, "b")), (Some(5.5), None));
    }
}
