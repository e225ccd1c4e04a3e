//! What the demo says before it shows the stream.

use std::path::Path;

use super::configuration::Ports;
use super::gpus::Gpus;
use super::tenants::{TENANTS, Tenant};

/// Everything that the reader may need.
#[derive(Debug)]
pub(super) struct Introduction<'a> {
    pub(super) ports: Ports,
    pub(super) gpus: &'a Gpus,
    /// Name and pid.
    pub(super) tenants: Vec<(&'a str, u32)>,
    /// Why the tenants have no cgroup of their own.
    pub(super) ungrouped: Option<String>,
    /// Why CUDA calls are not traced.
    pub(super) untraced: Option<&'a str>,
    pub(super) agent: u32,
    /// Path of the client.
    pub(super) client: String,
    pub(super) folder: &'a Path,
}

pub(super) fn introduce(it: &Introduction<'_>) {
    let parts = [it.page(), it.gpus(), it.missing(), it.to_try()];
    println!("\n{}\n", parts.into_iter().flatten().collect::<Vec<_>>().join("\n\n"));
    let begins = match it.gpus {
        Gpus::Real => "",
        Gpus::Simulated { .. } => " At first every GPU is free, then the tenants take theirs.",
    };
    println!("The idle stream, as a scheduler receives it.{begins} Ctrl-C ends everything.\n");
}

impl Introduction<'_> {
    fn page(&self) -> Option<String> {
        let Ports { page, grpc, agent } = self.ports;
        let moved = (self.ports != Ports::DEFAULT).then_some(
            "\n  Default ports are taken by somebody else, so other free ones are used.",
        );
        Some(format!(
            "  Page      http://127.0.0.1:{page}/\n  Metrics   http://127.0.0.1:{page}/metrics \
             (fleet), http://127.0.0.1:{agent}/metrics (this node)\n  gRPC      127.0.0.1:{grpc}{}",
            moved.unwrap_or_default()
        ))
    }

    fn gpus(&self) -> Option<String> {
        let Gpus::Simulated { why, .. } = self.gpus else {
            return Some(
                "The GPUs are this machine's own. Whether something else allocates them is not \
                 known here, so one without a process is `unknown` and not offered."
                    .to_owned(),
            );
        };
        // What the agent adds about its own node is not true of the simulated one.
        let why = why.split(';').next().unwrap_or(why);
        let tenants: Vec<String> = TENANTS.iter().map(|it| self.tenant(it)).collect();
        Some(format!(
            "The GPUs are simulated ({why}).\nStand-ins for libnvidia-ml and libcuda show a node with \
             4 GPUs. Programs launch on them through\nthe stand-in libcuda; a GPU is busy because \
             a program launches. Everything else is real: agent,\nkernel probes where the kernel \
             allows them, collector, ledger, stream.\n\n{}\n  gpu 3  nobody",
            tenants.join("\n")
        ))
    }

    fn tenant(&self, tenant: &Tenant) -> String {
        let pid = self.tenants.iter().find(|(name, _)| *name == tenant.name).map(|(_, pid)| pid);
        let pid = pid.map(|it| format!(" (pid {it})")).unwrap_or_default();
        format!("  gpu {}  {}{pid} {}", tenant.gpu, tenant.name, tenant.does)
    }

    fn missing(&self) -> Option<String> {
        let mut missing = Vec::new();
        if let Some(why) = self.untraced {
            missing.push(format!(
                "CUDA calls are not traced: {why}.\nLaunches, copies and allocations are absent \
                 (not zero), and the exit of a process shows at the next tick.\nAs root: \
                 `sudo -E cargo xtask up`."
            ));
        }
        if let Some(why) = &self.ungrouped {
            missing.push(format!(
                "No cgroups for the tenants ({why}): they run, and count as one tenant, the user."
            ));
        }
        (!missing.is_empty()).then(|| missing.join("\n"))
    }

    fn to_try(&self) -> Option<String> {
        let client = format!("{} --collector http://127.0.0.1:{}", self.client, self.ports.grpc);
        let mut lines = vec![
            "Free capacity is offered at once. Held capacity must be idle for a while first: 60 s \
             here (profile\n`blink`), 5 min by default. In another terminal:\n"
                .to_owned(),
            format!("  {client} top"),
            format!("  {client} usage"),
        ];
        if let Some((name, pid)) = self.tenants.first() {
            lines.push(format!(
                "  kill {pid}          ends {name}: its GPU changes class at once, and is offered \
                 when the driver has its memory back"
            ));
        }
        lines.push(format!(
            "  kill -STOP {agent}    silences the agent: its offers are withdrawn; kill -CONT {agent} \
             brings them back",
            agent = self.agent
        ));
        lines.push(format!("  less {}/*.log", self.folder.display()));
        Some(lines.join("\n"))
    }
}
