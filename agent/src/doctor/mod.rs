//! `gleaner-agent doctor`: what can and cannot be seen here, and what each missing thing costs.
//!
//! It starts the real sources, reads them once and stops them: what it says is what the agent would
//! find. A running agent is not disturbed: the spool is not opened, and of tracing it is asked.

mod findings;
mod running;

use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use tokio::net::TcpStream;

use crate::clock;
use crate::config::{self, Allocations, Config};
use crate::health::{self, Part, State};
use crate::model::units::BootNs;
use crate::samplers::cuda::pins;
use crate::samplers::process::driver::Proc;
use crate::samplers::sources::Sources;
use crate::status::{self, Library};
use findings::Finding;
use running::Running;

/// Long enough for a collector on the other side of a site.
const CONNECT: Duration = Duration::from_secs(3);

/// Later than any reading of this run.
const FOR_GOOD: BootNs = BootNs(u64::MAX);

#[derive(Debug, Serialize)]
pub struct Report {
    pub parts: Vec<Part>,
    pub libraries: Vec<Library>,
    /// What could be better.
    pub findings: Vec<Finding>,
}

/// Looks at everything once.
pub async fn examine(config: &Config) -> Report {
    let running = running::ask(config.http_listen).await;
    let told = running.as_ref().and_then(Running::tracing_part);
    let released = running.as_ref().and_then(Running::released_part);
    let mut sources = Sources::start(&undisturbing(config, told.is_some()), None);
    let at = clock::boot();
    if released.is_some() {
        sources.nvml.release(at, FOR_GOOD, "released".to_owned()).await;
    }
    let readings = sources.read(at).await;
    let (tracing_part, tracing, libraries) = match (running, told) {
        (Some(running), Some(part)) => (part, running.tracing(), running.libraries),
        _ => {
            let mut tracing = readings.cuda.tracing;
            // Nothing was pinned here on purpose: see below.
            tracing.unpinned = None;
            let libraries = status::libraries(&sources.cuda.coverage());
            (health::of_tracing(&tracing, config.cuda.enabled), tracing, libraries)
        }
    };
    let mut findings = findings::of_devices(at, &readings.nvml);
    findings.extend(findings::of_tracing(&tracing, &libraries));
    findings.extend(pins(&config.cuda));
    let parts = vec![
        released.unwrap_or_else(|| health::of_nvml(&readings.nvml)),
        tracing_part,
        health::of_attribution(&readings.nvml),
        holders(config),
        allocations(config.allocations),
        spool(&config.spool.path),
        collector(config.collector.as_deref()).await,
    ];
    sources.stop();
    Report { parts, libraries, findings }
}

/// What a running agent has pinned and hooked is its own.
fn undisturbing(config: &Config, is_traced: bool) -> Config {
    let mut config = config.clone();
    config.cuda.pin_root = None;
    config.cuda.enabled &= !is_traced;
    config
}

/// Whether hooks and counts could outlive the agent.
fn pins(config: &config::Cuda) -> Option<Finding> {
    if !config.enabled {
        return None;
    }
    let why = match &config.pin_root {
        None => "cuda.pin_root is empty".to_owned(),
        Some(root) => pins::driver::check_file_system(root).err()?.to_string(),
    };
    Some(Finding::new(
        format!("calls that are made while no agent runs are not counted: {why}"),
        "give the agent a folder in a bpf file system (cuda.pin_root)",
    ))
}

fn holders(config: &Config) -> Part {
    let (state, message) = match Proc::new(&config.proc_root).check_readable() {
        Ok(()) => (State::Active, "cgroups and users of processes are readable".to_owned()),
        Err((own, error)) => (
            State::Failed,
            format!(
                "cannot read {}: {error}; GPU time cannot be given to tenants and counts as \
                 unattributed. Set proc_root to where the host's /proc is mounted",
                own.display()
            ),
        ),
    };
    Part { name: "holders", state, message }
}

fn allocations(allocations: Allocations) -> Part {
    let (state, message) = match allocations {
        Allocations::None => (
            State::Active,
            "this node has no allocator: a device without a process is free".to_owned(),
        ),
        Allocations::Unknown => (
            State::Disabled,
            "nothing tells what is allocated: a device without a process is unknown and never \
             offered. On a node without an allocator set holders.allocations = \"none\""
                .to_owned(),
        ),
    };
    Part { name: "allocations", state, message }
}

fn spool(path: &Path) -> Part {
    let existing = path.ancestors().find(|it| it.exists()).unwrap_or(Path::new("/"));
    let writable = nix::unistd::access(existing, nix::unistd::AccessFlags::W_OK);
    let (state, message) = match writable {
        Ok(()) => (State::Active, format!("{} can be written", path.display())),
        Err(error) => (
            State::Failed,
            format!(
                "{} cannot be written ({error}): the agent starts and keeps usage in memory only, \
                 nothing is sent, and a stop would lose it. Create the folder for the agent's \
                 user, or set spool.path",
                path.display()
            ),
        ),
    };
    Part { name: "spool", state, message }
}

async fn collector(address: Option<&str>) -> Part {
    let Some(address) = address else {
        let message = "none configured: usage stays in the spool, /metrics works".to_owned();
        return Part { name: "collector", state: State::Disabled, message };
    };
    let host = address.trim_start_matches("http://").trim_end_matches('/');
    let problem = match tokio::time::timeout(CONNECT, TcpStream::connect(host)).await {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("no answer within {} s", CONNECT.as_secs())),
    };
    let (state, message) = match problem {
        None => (State::Active, format!("{address} accepts connections")),
        Some(problem) => (
            State::Failed,
            format!(
                "{address}: {problem}; usage is kept in the spool and sent later. Start the \
                 collector, or correct collector.address"
            ),
        ),
    };
    Part { name: "collector", state, message }
}

impl Report {
    /// Nothing that is switched on is missing.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.parts.iter().all(|it| it.state != State::Failed)
    }

    /// For people; with every function of every library where `hooks` are asked for.
    #[must_use]
    pub fn text(&self, hooks: bool) -> String {
        let mut text = String::new();
        for part in &self.parts {
            let state = match part.state {
                State::Active => "ok",
                State::Disabled => "off",
                State::Failed => "MISSING",
            };
            text += &format!("{state:<8} {:<12} {}\n", part.name, part.message);
        }
        for library in &self.libraries {
            text += &format!("\n{library}");
            for hook in library.hooks.iter().filter(|_| hooks) {
                text += &format!("{hook}\n");
            }
        }
        for it in &self.findings {
            text += &format!("\n{}\n  to do: {}\n", it.what, it.fix);
        }
        text
    }
}
