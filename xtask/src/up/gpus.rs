//! Real GPUs where the agent finds some, else simulated ones and the reason.

use std::path::Path;
use std::process::Command;

use anyhow::Context;
use serde::Deserialize;

use super::built;
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

/// `gleaner-agent doctor --json`, as far as it is read here.
#[derive(Debug, Deserialize)]
struct Report {
    parts: Vec<Part>,
}

#[derive(Debug, Deserialize)]
struct Part {
    name: String,
    state: String,
    message: String,
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
    let said = shell::output(agent)?;
    let report: Report = serde_json::from_str(&said).context("cannot read the agent's report")?;
    Ok(report.without_gpus())
}

impl Report {
    fn without_gpus(self) -> Option<String> {
        let nvml = self.parts.into_iter().find(|it| it.name == "nvml");
        match nvml {
            Some(it) if it.state != "active" => Some(it.message),
            Some(it) if it.message.starts_with("0 ") => {
                Some("the driver lists no device".to_owned())
            }
            Some(_) => None,
            None => Some("the agent does not say what it found".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Report;

    fn check(state: &str, message: &str, expected: Option<&str>) {
        let text = format!(
            r#"{{"parts":[{{"name":"nvml","state":"{state}","message":"{message}"}}],"libraries":[]}}"#
        );
        let report: Report = serde_json::from_str(&text).unwrap();
        assert_eq!(report.without_gpus().as_deref(), expected);
    }

    #[test]
    fn real_gpus_are_used_where_there_are_some() {
        check("active", "8 devices", None);
        check("active", "0 devices", Some("the driver lists no device"));
        check("failed", "no NVIDIA driver", Some("no NVIDIA driver"));
    }
}
