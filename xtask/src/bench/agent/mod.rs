//! What the agent costs a node, beside what nvitop-exporter costs it, on the same simulated GPUs and
//! in the same windows: CPU and memory with few and many devices and processes.
//!
//! Built for release, with its collector, at its default tick; the peer reads at its default interval
//! of a second as well. Both are scraped once in a window. Time inside the stand-in for NVML is each
//! one's own here; a real driver's is not in these figures.

mod compare;
mod peer;
mod scrape;
mod usage;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::bail;

use super::Row;
use crate::stage::folder::Folder;
use crate::stage::http;
use crate::stage::node::Node;
use crate::stage::ports;
use crate::stage::process::{self, Process};
use crate::{bpf, progress, shell};

use peer::Peer;
use usage::Usage;

const GPUS: [u32; 3] = [1, 8, 16];
const PROCESSES: [u32; 3] = [0, 20, 200];
/// Of all processes together, so that what they cost the machine is the same in every case.
const LAUNCHES_PER_SECOND: u32 = 2_000;
/// Short kernels and small contexts, so that 200 processes fit one device.
const SCENARIO: &str = "kernel_us = 200\ncontext_mib = 100";
/// Start-up, the first readings and the first tiles are not in the figures.
const WARM_UP: Duration = Duration::from_secs(10);
/// Until both programs show everything that was started.
const SEEN_WITHIN: Duration = Duration::from_secs(60);
/// One scrape each.
const WINDOW: Duration = Duration::from_secs(10);
const WINDOWS: u32 = 3;

/// What the targets are for.
const TARGET: Case = Case { gpus: 8, processes: 20 };
/// Of one core.
const CPU_PERCENT: f64 = 0.3;
const RSS_MIB: f64 = 25.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Case {
    gpus: u32,
    processes: u32,
}

/// What runs in one case.
struct Stage {
    agent: Process,
    agent_port: u16,
    peer: Process,
    peer_port: u16,
    _others: Vec<Process>,
}

/// Medians over the windows of one case, and the two scrapes.
struct Measured {
    agent: Usage,
    peer: Usage,
    agent_series: usize,
    peer_series: usize,
}

pub(super) fn run() -> anyhow::Result<Vec<Row>> {
    build()?;
    let folder = Folder::make("bench")?;
    let peer = Peer::install(&folder)?;
    let cases =
        GPUS.iter().flat_map(|gpus| PROCESSES.map(|it| Case { gpus: *gpus, processes: it }));
    let mut rows = Vec::new();
    for case in cases {
        eprintln!("{}: {} s", case.name(), (WARM_UP + WINDOW * WINDOWS).as_secs());
        rows.extend(case.rows(&case.measure(&peer)?));
    }
    Ok(rows)
}

fn built() -> PathBuf {
    shell::root().join("target/release")
}

fn build() -> anyhow::Result<()> {
    bpf::run()?;
    let mut cargo = shell::cargo(["build", "--release", "--locked"]);
    for it in ["agent", "collector", "nvml-stub", "cuda-stub-cmp", "workload"] {
        cargo.args(["--package", it]);
    }
    progress::build("agent, collector and the stand-ins, for release", cargo)
}

// === impl Case ===

impl Case {
    fn name(self) -> String {
        format!("{} GPUs, {} processes", self.gpus, self.processes)
    }

    /// The baseline is the peer.
    fn rows(self, measured: &Measured) -> Vec<Row> {
        let (agent, peer) = (&measured.agent, &measured.peer);
        let row = |what: &str, own: f64, other: f64, unit: &str| {
            Row::new(&format!("{}: {what}", self.name()), own, unit).against(other)
        };
        let cpu = row("CPU", agent.cpu_percent, peer.cpu_percent, "% of a core");
        let memory = row("resident memory", agent.resident_mib, peer.resident_mib, "MiB");
        if self != TARGET {
            return vec![cpu, memory];
        }
        let series = |it: usize| f64::from(u32::try_from(it).unwrap_or(u32::MAX));
        let (own, other) = (series(measured.agent_series), series(measured.peer_series));
        vec![
            cpu.value_at_most(CPU_PERCENT),
            memory.value_at_most(RSS_MIB),
            row("memory, highest since the start", agent.highest_mib, peer.highest_mib, "MiB"),
            row("series of GPUs and their processes", own, other, ""),
        ]
    }

    fn measure(self, peer: &Peer) -> anyhow::Result<Measured> {
        let folder = Folder::make("bench-case")?;
        let node = Node::make(&folder, &built(), self.gpus, SCENARIO)?;
        let stage = self.start(&folder, &node, peer)?;
        self.until_both_see_it(&stage)?;
        std::thread::sleep(WARM_UP);
        let (own, other) = self.compared(&stage)?;
        let mut windows = (Vec::new(), Vec::new());
        for _ in 0..WINDOWS {
            let (began, pids) = (process::now(), [stage.agent.pid(), stage.peer.pid()]);
            let before = [usage::cpu_time(pids[0])?, usage::cpu_time(pids[1])?];
            std::thread::sleep(WINDOW / 2);
            stage.scrape_agent()?;
            stage.scrape_peer()?;
            std::thread::sleep(WINDOW.saturating_sub(began.elapsed()));
            let span = began.elapsed();
            windows.0.push(Usage::since(pids[0], before[0], span)?);
            windows.1.push(Usage::since(pids[1], before[1], span)?);
        }
        Ok(Measured {
            agent: Usage::median(&windows.0),
            peer: Usage::median(&windows.1),
            agent_series: scrape::of_gpus(
                &own,
                &["gleaner_gpu_", "gleaner_mig_", "gleaner_tenant_"],
            ),
            peer_series: scrape::of_gpus(&other, &["gpu_", "process_gpu_", "process_info"]),
        })
    }

    /// The two scrapes, which show the same node.
    fn compared(self, stage: &Stage) -> anyhow::Result<(String, String)> {
        let (own, other) = (stage.scrape_agent()?, stage.scrape_peer()?);
        compare::check(self.gpus, self.processes, &own, &other)?;
        Ok((own, other))
    }

    /// Many processes take their time to begin.
    fn until_both_see_it(self, stage: &Stage) -> anyhow::Result<()> {
        let deadline = process::now() + SEEN_WITHIN;
        while let Err(error) = self.compared(stage) {
            if process::now() > deadline {
                return Err(error);
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        Ok(())
    }

    fn start(self, folder: &Folder, node: &Node, peer: &Peer) -> anyhow::Result<Stage> {
        let (page, grpc, own) = (ports::free(0)?, ports::free(0)?, ports::free(0)?);
        let collector = format!(
            "[http]\nlisten = \"127.0.0.1:{page}\"\n[grpc]\nlisten = \"127.0.0.1:{grpc}\"\n\
             [ledger]\npath = {:?}\n",
            folder.path().join("collector")
        );
        let agent = format!(
            "[http]\nlisten = \"127.0.0.1:{own}\"\n[collector]\n\
             address = \"http://127.0.0.1:{grpc}\"\n[spool]\npath = {:?}\n[nvml]\nlibrary = {:?}\n\
             [cuda]\nlibraries = [{:?}]\n",
            folder.path().join("agent"),
            node.nvml,
            node.cuda
        );
        let mut collector = start_daemon(folder, "gleaner-collector", &collector)?;
        let mut agent = start_daemon(folder, "gleaner-agent", &agent)?;
        let port = ports::free(0)?;
        let mut exporter = peer.start(folder, node, port)?;
        wait_for(&mut collector, page, "/healthz")?;
        wait_for(&mut agent, own, "/readyz")?;
        wait_for(&mut exporter, port, "/metrics")?;
        let mut others = vec![collector];
        for number in 0..self.processes {
            let workload = self.workload(node, number);
            others.push(Process::start(&format!("workload-{number}"), workload, folder.path())?);
        }
        Ok(Stage { agent, agent_port: own, peer: exporter, peer_port: port, _others: others })
    }

    fn workload(self, node: &Node, number: u32) -> Command {
        let mut command = Command::new(built().join("workload"));
        command.arg("--library").arg(&node.cuda);
        command.arg(format!("--device={}", number % self.gpus)).arg("--memory-mib=64");
        let rate = LAUNCHES_PER_SECOND / self.processes;
        command.arg(format!("--launches-per-second={rate}"));
        command
    }
}

// === impl Stage ===

impl Stage {
    fn scrape_agent(&self) -> anyhow::Result<String> {
        http::get(self.agent_port, "/metrics")
    }

    fn scrape_peer(&self) -> anyhow::Result<String> {
        http::get(self.peer_port, "/metrics")
    }
}

fn start_daemon(folder: &Folder, name: &str, text: &str) -> anyhow::Result<Process> {
    let configuration = folder.write(&format!("{name}.toml"), text)?;
    let mut command = Command::new(built().join(name));
    command.arg("--config").arg(configuration);
    Process::start(name, command, folder.path())
}

fn wait_for(daemon: &mut Process, port: u16, path: &str) -> anyhow::Result<()> {
    let deadline = process::now() + Duration::from_secs(30);
    while let Err(error) = http::get(port, path) {
        if daemon.ended().is_some() || process::now() > deadline {
            bail!("{} is not ready: {error:#}\n{}", daemon.name, daemon.last_lines());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
