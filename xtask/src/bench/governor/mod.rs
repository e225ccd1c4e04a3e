//! What tracing costs a process that launches as fast as it can, and how near its counts are.
//!
//! Two such processes: one that works a little between two launches, as everything that calls the
//! real driver does, and one that does nothing but call a stand-in that does nothing, which nothing
//! real comes near to. Each runs by turns alone, with an agent that has no bound, and with one that
//! keeps the default budget.

mod found;
mod slices;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::unistd::geteuid;

use super::report::Row;
use crate::stage::folder::Folder;
use crate::stage::http;
use crate::stage::node::Node;
use crate::stage::ports;
use crate::stage::process::{self, Process};
use crate::{bpf, progress, shell};
use found::{Found, Traced};
use slices::{Speed, Told, windows};

const ROUNDS: usize = 1;
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
    let rows = LOADS.iter().zip(&found).map(|((name, _), found)| found.rows(name, BUDGET_PERCENT));
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

impl Stage<'_> {
    fn round(&self, found: &mut Found) -> anyhow::Result<()> {
        let before = self.alone()?;
        let unbounded = self.traced(100.0, SHORT_WARM_UP, 1)?;
        let between = self.alone()?;
        let bounded = self.traced(BUDGET_PERCENT, WARM_UP, WINDOWS)?;
        found.add([before, between, self.alone()?], unbounded, bounded);
        Ok(())
    }

    /// Without an agent.
    fn alone(&self) -> anyhow::Result<Speed> {
        let told = self.work(SHORT_WARM_UP + WINDOW)?;
        windows(&told.slices, SHORT_WARM_UP, WINDOW, 1).pop().context("the workload told no rate")
    }

    fn traced(&self, percent: f64, warm_up: Duration, count: u32) -> anyhow::Result<Traced> {
        let port = ports::free(0)?;
        let mut agent = self.agent(percent, port)?;
        wait_for(&mut agent, port)?;
        let before = launches_counted(port)?;
        let told = self.work(warm_up + WINDOW * count)?;
        let factor = value(&http::get(port, "/metrics")?, "gleaner_tracing_sampling_factor");
        // The exit of the process is read at once, and an estimate at the next tick.
        std::thread::sleep(Duration::from_secs(3));
        Ok(Traced {
            windows: windows(&told.slices, warm_up, WINDOW, count as usize),
            launches: told.launches,
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

    fn work(&self, length: Duration) -> anyhow::Result<Told> {
        let mut command = Command::new(built().join("workload"));
        command.arg("--library").arg(&self.node.cuda);
        command.arg(format!("--flat-out={}s", length.as_secs()));
        command.arg(format!("--work-ns={}", self.work_ns));
        Told::parse(&shell::output(command)?)
    }
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

#[cfg(test)]
mod tests {
    use super::value;

    #[test]
    fn a_family_is_summed_and_no_other_one() {
        let text = "# HELP a x\na{b=\"c d\"} 2\na{b=\"e\"} 3.5\na_total 9\n";
        assert_eq!((value(text, "a"), value(text, "b")), (Some(5.5), None));
    }
}
