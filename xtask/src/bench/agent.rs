//! What the agent costs a node: CPU and memory at 8 simulated GPUs and 20 processes that launch.
//!
//! Built for release, with its collector, at its default tick. Time inside the stand-in for NVML
//! is the agent's time here; a real driver's is not in these figures.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};

use super::Row;
use crate::stage::folder::Folder;
use crate::stage::http;
use crate::stage::node::Node;
use crate::stage::ports;
use crate::stage::process::{self, Process};
use crate::{bpf, progress, shell};

const GPUS: u32 = 8;
const PROCESSES: u32 = 20;
const LAUNCHES_PER_SECOND: u32 = 100;
/// Start-up, the first readings and the first tiles are not in the figures.
const WARM_UP: Duration = Duration::from_secs(15);
const MEASURED: Duration = Duration::from_secs(60);

/// Of one core.
const CPU_PERCENT: f64 = 0.3;
const RSS_MIB: f64 = 25.0;

pub(super) fn run() -> anyhow::Result<Vec<Row>> {
    build()?;
    let folder = Folder::make("bench")?;
    let node = Node::make(&folder, &built(), GPUS, "")?;
    let (collector, agent) = start_daemons(&folder, &node)?;
    let workloads = (0..PROCESSES)
        .map(|it| Process::start(&format!("workload-{it}"), workload(&node, it), folder.path()))
        .collect::<anyhow::Result<Vec<_>>>()?;
    eprintln!("measuring for {} s", (WARM_UP + MEASURED).as_secs());
    std::thread::sleep(WARM_UP);
    let (began, before) = (process::now(), cpu_time(agent.pid())?);
    std::thread::sleep(MEASURED);
    let (span, after) = (began.elapsed(), cpu_time(agent.pid())?);
    let memory = Memory::of(agent.pid())?;
    drop((workloads, agent, collector));

    let share = (after.saturating_sub(before)).as_secs_f64() / span.as_secs_f64();
    Ok(vec![
        Row::new("CPU of the agent", share * 100.0, "% of a core").value_at_most(CPU_PERCENT),
        Row::new("resident memory", memory.resident_mib, "MiB").value_at_most(RSS_MIB),
        Row::new("resident memory, highest since the start", memory.highest_mib, "MiB"),
    ])
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

fn start_daemons(folder: &Folder, node: &Node) -> anyhow::Result<(Process, Process)> {
    let (page, grpc, own) = (ports::free(0)?, ports::free(0)?, ports::free(0)?);
    let collector = format!(
        "[http]\nlisten = \"127.0.0.1:{page}\"\n[grpc]\nlisten = \"127.0.0.1:{grpc}\"\n\
         [ledger]\npath = {:?}\n",
        folder.path().join("collector")
    );
    let agent = format!(
        "[http]\nlisten = \"127.0.0.1:{own}\"\n[collector]\naddress = \"http://127.0.0.1:{grpc}\"\n\
         [spool]\npath = {:?}\n[nvml]\nlibrary = {:?}\n[cuda]\nlibraries = [{:?}]\n",
        folder.path().join("agent"),
        node.nvml,
        node.cuda
    );
    let start = |name: &str, text: &str| {
        let configuration = folder.write(&format!("{name}.toml"), text)?;
        let mut command = Command::new(built().join(name));
        command.arg("--config").arg(configuration);
        Process::start(name, command, folder.path())
    };
    let mut daemons = (start("gleaner-collector", &collector)?, start("gleaner-agent", &agent)?);
    wait_for(&mut daemons.0, page)?;
    wait_for(&mut daemons.1, own)?;
    Ok(daemons)
}

fn wait_for(daemon: &mut Process, port: u16) -> anyhow::Result<()> {
    let deadline = process::now() + Duration::from_secs(20);
    while let Err(error) = http::get(port, "/healthz") {
        if daemon.ended().is_some() || process::now() > deadline {
            bail!("{} is not ready: {error:#}\n{}", daemon.name, daemon.last_lines());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn workload(node: &Node, number: u32) -> Command {
    let mut command = Command::new(built().join("workload"));
    command.arg("--library").arg(&node.cuda);
    command.arg(format!("--device={}", number % GPUS)).arg("--memory-mib=512");
    command.arg(format!("--launches-per-second={LAUNCHES_PER_SECOND}"));
    command
}

/// CPU time of all threads of a process that are alive, to the nanosecond.
fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let tasks = PathBuf::from(format!("/proc/{pid}/task"));
    let context = || format!("cannot read {}", tasks.display());
    let mut nanoseconds = 0;
    for task in std::fs::read_dir(&tasks).with_context(context)? {
        let schedstat = task.with_context(context)?.path().join("schedstat");
        // A thread may end between the two reads.
        let text = std::fs::read_to_string(&schedstat).unwrap_or_default();
        nanoseconds += text.split(' ').next().and_then(|it| it.parse().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanoseconds))
}

struct Memory {
    resident_mib: f64,
    highest_mib: f64,
}

impl Memory {
    fn of(pid: u32) -> anyhow::Result<Self> {
        let path = format!("/proc/{pid}/status");
        let text = std::fs::read_to_string(Path::new(&path))
            .with_context(|| format!("cannot read {path}"))?;
        let mib = |name: &str| {
            let line = text.lines().find_map(|it| it.strip_prefix(name));
            let kib = line.and_then(|it| it.trim().trim_end_matches(" kB").parse::<u32>().ok());
            kib.map(|it| f64::from(it) / 1024.0).with_context(|| format!("no {name} in {path}"))
        };
        Ok(Self { resident_mib: mib("VmRSS:")?, highest_mib: mib("VmHWM:")? })
    }
}
