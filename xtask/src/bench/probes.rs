//! What a hit on a probe costs the process that is traced.
//!
//! The measuring program is `tests/src/bin/bench_probes`: it needs the agent's library, which this
//! task does not. Here its figures are compared.

use std::process::Command;

use anyhow::Context;
use nix::unistd::geteuid;
use serde::Deserialize;

use super::report::Row;
use crate::{bpf, progress, shell};

/// Nanoseconds per call; see the program for what they are.
#[derive(Debug, Deserialize)]
struct Figures {
    unprobed_ns: f64,
    empty_at_entry_ns: f64,
    empty_ns: f64,
    launch_ns: f64,
    skip: u8,
}

pub(super) fn run() -> anyhow::Result<Vec<Row>> {
    anyhow::ensure!(
        geteuid().is_root(),
        "attaching probes needs CAP_BPF and CAP_PERFMON; nothing was measured. \
         Run `sudo -E cargo xtask bench probes`"
    );
    bpf::run()?;
    let mut cargo = shell::cargo(["build", "--release", "--locked"]);
    cargo.args(["--package", "tests", "--bin", "bench_probes"]);
    cargo.args(["--package", "cuda-stub-cmp", "--lib"]);
    progress::build("the measuring program, for release", cargo)?;
    let program = Command::new(shell::root().join("target/release/bench_probes"));
    let said = shell::output(program)?;
    let figures: Figures =
        serde_json::from_str(&said).context("cannot read what bench_probes printed")?;
    Ok(figures.rows())
}

impl Figures {
    /// A hit costs what a call takes beyond the same call without a probe.
    fn rows(&self) -> Vec<Row> {
        let hit = |probed: f64| probed - self.unprobed_ns;
        let (empty, launch) = (hit(self.empty_ns), hit(self.launch_ns));
        let entry = hit(self.empty_at_entry_ns);
        let place = format!("entry+{}", self.skip);
        let mut launch_at_place =
            Row::new(&format!("hit: launch probe at {place}"), launch, "ns").against(empty);
        launch_at_place = launch_at_place.ratio_at_most(1.15);
        vec![
            Row::new("call without a probe", self.unprobed_ns, "ns"),
            Row::new("hit: empty program at entry", entry, "ns"),
            Row::new(&format!("hit: empty program at {place}"), empty, "ns"),
            launch_at_place,
            Row::new("launch probe by an empty one at entry", launch, "ns")
                .against(entry)
                .ratio_at_most(0.1),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::Figures;

    #[test]
    fn hits_are_compared_without_the_call() {
        let figures = Figures {
            unprobed_ns: 5.0,
            empty_at_entry_ns: 11_005.0,
            empty_ns: 605.0,
            launch_ns: 665.0,
            skip: 10,
        };
        let rows = figures.rows();
        assert_eq!(rows[3].name, "hit: launch probe at entry+10");
        assert_eq!((rows[3].value, rows[3].ratio, rows[3].ok), (660.0, Some(1.1), Some(true)));
        assert_eq!(rows[4].ok, Some(true));
    }
}
