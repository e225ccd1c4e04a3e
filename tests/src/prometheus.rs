//! The real Prometheus and its checker.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::artefacts::installed;
use crate::daemon::Daemon;
use crate::ports;
use crate::scrape::get;
use crate::wait::eventually;

const READY: Duration = Duration::from_secs(30);

/// A Prometheus server that scrapes the given ports of this machine every second.
#[derive(Debug)]
pub struct Prometheus {
    _daemon: Daemon,
    port: u16,
    _folder: TempDir,
}

impl Prometheus {
    #[track_caller]
    pub fn start(targets: &[u16]) -> Self {
        let folder = tempfile::tempdir().expect("the temporary folder is writable");
        let targets: Vec<String> = targets.iter().map(|it| format!("'127.0.0.1:{it}'")).collect();
        let config = format!(
            "global: {{scrape_interval: 1s}}\nscrape_configs:\n\
             - job_name: gleaner\n  static_configs: [{{targets: [{}]}}]\n",
            targets.join(", ")
        );
        let file = folder.path().join("prometheus.yml");
        std::fs::write(&file, config).expect("the folder is writable");
        let port = ports::free();
        let mut command = Command::new(installed("prometheus", "prometheus"));
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let daemon = Daemon::start(&command, &folder.path().join("prometheus.log"));
        let prometheus = Self { _daemon: daemon, port, _folder: folder };
        let url = format!("http://127.0.0.1:{port}/-/ready");
        eventually(READY, "Prometheus is ready", || get(&url).map(drop));
        prometheus
    }

    /// Values of an instant query.
    pub fn query(&self, promql: &str) -> Result<Vec<f64>, String> {
        let url = format!("http://127.0.0.1:{}/api/v1/query?query={}", self.port, escaped(promql));
        let answer: serde_json::Value =
            serde_json::from_str(&get(&url)?).map_err(|error| error.to_string())?;
        let results = answer["data"]["result"].as_array().ok_or_else(|| answer.to_string())?;
        let value = |it: &serde_json::Value| it["value"][1].as_str()?.parse().ok();
        results.iter().map(|it| value(it).ok_or_else(|| it.to_string())).collect()
    }
}

/// What `promtool check metrics` finds in a scrape; empty when it finds nothing.
pub fn promtool_findings(scrape: &str) -> String {
    let mut child = Command::new(installed("promtool", "prometheus"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("an installed program starts");
    child
        .stdin
        .take()
        .expect("it is piped")
        .write_all(scrape.as_bytes())
        .expect("promtool reads all of its input");
    let output = child.wait_with_output().expect("the child is ours");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    if output.status.success() { said } else { format!("{said}{}", output.status) }
}

/// For a query in a URL.
fn escaped(text: &str) -> String {
    text.bytes()
        .map(|it| match it {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                char::from(it).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}
