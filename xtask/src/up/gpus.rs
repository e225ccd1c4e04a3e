//! Real GPUs where the agent finds some, else simulated ones and the reason.

use std::path::Path;
use std::process::Command;

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

/// Why there are no real GPUs; `None` when there are.
fn ask(mut agent: Command, configuration: &Path) -> anyhow::Result<Option<String>> {
    agent.arg("--config").arg(configuration).args(["doctor", "--json"]);
    let parts = Parts::read(&shell::output(agent)?)?;
    Ok(parts.without_gpus().map(str::to_owned))
}
