//! Who uses the simulated GPUs, and how.

use std::process::Command;

use crate::stage::node::Node;

/// A program that runs on one simulated GPU under a name of its own.
#[derive(Debug)]
pub(super) struct Tenant {
    pub(super) name: &'static str,
    pub(super) gpu: u32,
    /// Continues a sentence that begins with its name.
    pub(super) does: &'static str,
    arguments: &'static [&'static str],
}

/// The fourth GPU stays free.
pub(super) const TENANTS: [Tenant; 4] = [
    Tenant {
        name: "train-llm",
        gpu: 0,
        does: "works",
        arguments: &[
            "--memory-mib=61000",
            "--launches-per-second=400",
            "--kernel-us=2000",
            "--synchronize-every=16",
            "--copies-per-second=20",
        ],
    },
    Tenant {
        name: "notebook",
        gpu: 1,
        does: "holds memory and does nothing",
        arguments: &["--memory-mib=24000", "--hold"],
    },
    Tenant {
        name: "chat-api",
        gpu: 2,
        does: "shares a GPU and does most of the work on it",
        arguments: &["--memory-mib=30000", "--launches-per-second=250", "--kernel-us=2000"],
    },
    Tenant {
        name: "batch-embed",
        gpu: 2,
        does: "shares that GPU and does less",
        arguments: &["--memory-mib=12000", "--launches-per-second=50", "--kernel-us=2000"],
    },
];

impl Tenant {
    /// The stand-in workload on this tenant's GPU.
    pub(super) fn command(&self, mut workload: Command, node: &Node) -> Command {
        workload.arg("--library").arg(&node.cuda);
        workload.arg(format!("--device={}", self.gpu)).args(self.arguments);
        workload
    }
}
