//! nvitop-exporter, from the Python package index, in an environment of its own.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;

use crate::shell;
use crate::stage::folder::Folder;
use crate::stage::node::Node;
use crate::stage::process::Process;

/// The figures in docs/benchmarks.md are of this one.
const PACKAGE: &str = "nvitop-exporter==1.7.2";

#[derive(Debug)]
pub(super) struct Peer {
    program: PathBuf,
}

impl Peer {
    /// Needs `python3` with `venv`, and the index or a mirror of it as pip is configured.
    pub(super) fn install(folder: &Folder) -> anyhow::Result<Self> {
        eprintln!("installing {PACKAGE} into a temporary environment");
        let place = folder.path().join("python");
        let needs = "the peer to compare with needs python3 with venv and pip, and a package index";
        let mut environment = Command::new("python3");
        environment.args(["-m", "venv"]).arg(&place);
        shell::output(environment).context(needs)?;
        let mut pip = Command::new(place.join("bin/pip"));
        pip.args(["install", "--quiet", "--disable-pip-version-check", PACKAGE]);
        shell::output(pip).context(needs)?;
        Ok(Self { program: place.join("bin/nvitop-exporter") })
    }

    /// On the node's own library, which it asks the dynamic linker for.
    pub(super) fn start(&self, folder: &Folder, node: &Node, port: u16) -> anyhow::Result<Process> {
        let place = node.nvml.parent().expect("a library lies in a folder");
        let mut command = Command::new(&self.program);
        command.env("LD_LIBRARY_PATH", place);
        command.args(["--hostname=bench", "--interval=1", &format!("--port={port}")]);
        Process::start("nvitop-exporter", command, folder.path())
    }
}
