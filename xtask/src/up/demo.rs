//! What runs in the demo, from its first process to its last.

use std::time::Duration;

use anyhow::bail;

use super::configuration::{self, Ports};
use super::gpus::{self, Gpus};
use super::parts::Parts;
use super::program;
use super::signals::{Signals, Wake};
use super::tenants::TENANTS;
use super::words::{Introduction, introduce};
use crate::stage::cgroups::Cgroups;
use crate::stage::folder::Folder;
use crate::stage::http;
use crate::stage::node::Node;
use crate::stage::process::{self, Process};

/// A daemon that is not ready by then will not be.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// The fields are dropped in this order: client, tenants, agent, collector, then what they lived in.
#[derive(Debug)]
pub(super) struct Demo {
    stream: Option<Process>,
    tenants: Vec<Process>,
    agent: Process,
    collector: Process,
    cgroups: Option<Cgroups>,
    folder: Folder,
    ports: Ports,
}

impl Demo {
    /// `None` when somebody stopped it before it was up.
    pub(super) fn start(signals: &mut Signals) -> anyhow::Result<Option<Self>> {
        let folder = Folder::make("up")?;
        let ports = Ports::choose()?;
        let gpus = gpus::find(program("gleaner-agent"), &folder)?;
        let simulated = match &gpus {
            Gpus::Real => None,
            Gpus::Simulated { node, .. } => Some(node),
        };
        let collector = configuration::collector(folder.path(), ports);
        let agent = configuration::agent(folder.path(), ports, simulated);
        let collector = start("gleaner-collector", "collector.toml", &collector, &folder)?;
        let agent = start("gleaner-agent", "agent.toml", &agent, &folder)?;
        let (stream, tenants, cgroups) = (None, Vec::new(), None);
        let mut demo = Self { stream, tenants, agent, collector, cgroups, folder, ports };
        if !demo.wait_until_ready(signals)? {
            return Ok(None);
        }
        let ungrouped = simulated.map(|it| demo.start_tenants(it)).transpose()?.flatten();
        demo.introduce(&gpus, ungrouped)?;
        demo.start_stream()?;
        Ok(Some(demo))
    }

    /// Both daemons serve; false when somebody stopped it first.
    fn wait_until_ready(&mut self, signals: &mut Signals) -> anyhow::Result<bool> {
        let deadline = process::now() + READY_WITHIN;
        loop {
            let waiting = [
                (self.ports.page, "/healthz", "collector"),
                (self.ports.agent, "/readyz", "agent"),
            ]
            .into_iter()
            .find_map(|(port, path, name)| Some((name, http::get(port, path).err()?)));
            let Some((name, error)) = waiting else { return Ok(true) };
            self.fail_if_a_daemon_ended()?;
            if process::now() >= deadline {
                bail!("the {name} is not ready after {} s: {error:#}", READY_WITHIN.as_secs());
            }
            if signals.rest(Duration::from_millis(50)) == Some(Wake::Stop) {
                return Ok(false);
            }
        }
    }

    /// Why the tenants have no cgroups of their own, where they have none.
    fn start_tenants(&mut self, node: &Node) -> anyhow::Result<Option<String>> {
        let ungrouped = match Cgroups::make() {
            Ok(groups) => {
                self.cgroups = Some(groups);
                None
            }
            Err(error) => Some(format!("{error:#}")),
        };
        for tenant in &TENANTS {
            let mut command = tenant.command(program("workload"), node);
            if let Some(groups) = &mut self.cgroups {
                command = groups.place(tenant.name, &command)?;
            }
            self.tenants.push(Process::start(tenant.name, command, self.folder.path())?);
        }
        Ok(ungrouped)
    }

    fn introduce(&self, gpus: &Gpus, ungrouped: Option<String>) -> anyhow::Result<()> {
        let status = Parts::read(&http::get(self.ports.agent, "/status")?)?;
        introduce(&Introduction {
            ports: self.ports,
            gpus,
            tenants: self.tenants.iter().map(|it| (it.name.as_str(), it.pid())).collect(),
            ungrouped,
            untraced: status.without_tracing(),
            agent: self.agent.pid(),
            client: program("gleaner").get_program().to_string_lossy().into_owned(),
            folder: self.folder.path(),
        });
        Ok(())
    }

    fn start_stream(&mut self) -> anyhow::Result<()> {
        let mut client = program("gleaner");
        client.arg("--collector").arg(format!("http://127.0.0.1:{}", self.ports.grpc));
        client.args(["idle", "watch"]);
        self.stream = Some(Process::start_in_view("gleaner idle watch", client)?);
        Ok(())
    }

    /// Returns when somebody stops it; an error when something ended that should not have.
    pub(super) fn run_until_stopped(&mut self, signals: &mut Signals) -> anyhow::Result<()> {
        loop {
            if signals.wait() == Some(Wake::Stop) {
                return Ok(());
            }
            self.fail_if_a_daemon_ended()?;
            if let Some(status) = self.stream.as_mut().and_then(Process::ended) {
                bail!("the idle stream ended ({status})");
            }
            self.tenants.retain_mut(|it| match it.ended() {
                None => true,
                Some(status) => {
                    println!("-- {} ended ({status})", it.name);
                    if !status.success() {
                        print!("{}", it.last_lines());
                    }
                    false
                }
            });
        }
    }

    fn fail_if_a_daemon_ended(&mut self) -> anyhow::Result<()> {
        for it in [&mut self.collector, &mut self.agent] {
            if let Some(status) = it.ended() {
                bail!("{} ended ({status}); it said last:\n{}", it.name, it.last_lines());
            }
        }
        Ok(())
    }
}

fn start(name: &str, file: &str, text: &str, folder: &Folder) -> anyhow::Result<Process> {
    let configuration = folder.write(file, text)?;
    let mut command = program(name);
    command.arg("--config").arg(configuration);
    Process::start(name, command, folder.path())
}
