//! Real GPUs where the agent finds some, else simulated ones and the reason.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context;

use super::built;
use super::parts::Parts;
use crate::shell;
use crate::stage::folder::Folder;
use crate::stage::node::Node;

const SIMULATED: u32 = 4;
/// Long enough between a class change and the return of the memory to see both.
const SCENARIO: &str = "release_ms = 1500";

/// Where the GPUs come from.
#[derive(Debug)]
pub(super) enum Gpus {
    Real,
    Simulated { why: String, node: Node },
}

/// Asks the agent, which knows best what it can read.
pub(super) fn find(agent: Command, folder: &Folder) -> anyhow::Result<Gpus> {
    // A file of its own: tracing is off, so that nothing is attached for this question.
    let configuration = folder.write("look.toml", "[cuda]\nenabled = false\n")?;
    match ask(agent, &configuration)? {
        None => Ok(Gpus::Real),
        Some(why) => {
            Ok(Gpus::Simulated { why, node: Node::make(folder, &built(), SIMULATED, SCENARIO)? })
        }
    }
}

/// Why there are no real GPUs; `None` when there are. How it exits says whether anything at all is
/// missing, which is no matter here.
fn ask(mut agent: Command, configuration: &Path) -> anyhow::Result<Option<String>> {
    agent.arg("--config").arg(configuration).args(["doctor", "--json"]).stdin(Stdio::null());
    let line = shell::line(&agent);
    let output = agent.output().with_context(|| format!("cannot start {line}"))?;
    let (said, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let parts = Parts::read(&said)
        .with_context(|| format!("{line} ({}): {}", output.status, errors.trim()))?;
    Ok(parts.without_gpus().map(str::to_owned))
}
