//! What a hit on a probe costs the process that is traced, and how long hooks take to go on and off.
//!
//! The measuring program is `tests/src/bin/bench_probes`: it needs the agent's library, which this
//! task does not. Here its figures are compared.

use std::process::Command;

use anyhow::Context;
use nix::unistd::geteuid;
use serde::Deserialize;

use super::report::Row;
use crate::{bpf, progress, shell};

/// What our program may cost beyond an empty one at the same place.
const OVER_EMPTY: f64 = 1.15;
/// What a hit may cost of one on an entry that must be single-stepped.
const OVER_ENTRY: f64 = 0.1;
/// An entry that is this many times as dear as the chosen place is single-stepped.
const STEPPED: f64 = 3.0;
const ATTACH_MS: f64 = 200.0;

/// See the program for what they are.
#[derive(Debug, Deserialize)]
struct Figures {
    calls: Vec<CallFigures>,
    attach: Vec<AttachFigures>,
}

/// Nanoseconds per call.
#[derive(Debug, Deserialize)]
struct CallFigures {
    build: String,
    call: String,
    skip: u8,
    unprobed_ns: f64,
    empty_at_entry_ns: f64,
    empty_ns: f64,
    own_ns: f64,
}

#[derive(Debug, Deserialize)]
struct AttachFigures {
    processes: u32,
    hooks: u32,
    attach_ms: f64,
    detach_ms: f64,
}

pub(super) fn run() -> anyhow::Result<Vec<Row>> {
    anyhow::ensure!(
        geteuid().is_root(),
        "attaching probes needs CAP_BPF and CAP_PERFMON; nothing was measured. \
         Run `sudo -E cargo xtask bench probes`"
    );
    bpf::run()?;
    let mut program = shell::cargo(["build", "--release", "--locked"]);
    program.args(["--package", "tests", "--bin", "bench_probes"]);
    progress::build("the measuring program, for release", program)?;
    let mut libraries = shell::cargo(["build", "--release", "--locked", "--lib"]);
    for it in ["cmp", "push", "endbr64"] {
        libraries.args(["--package", &format!("cuda-stub-{it}")]);
    }
    progress::build("the stand-ins for the driver, for release", libraries)?;
    let program = Command::new(shell::root().join("target/release/bench_probes"));
    let said = shell::output(program)?;
    let figures: Figures =
        serde_json::from_str(&said).context("cannot read what bench_probes printed")?;
    Ok(figures.rows())
}

impl Figures {
    fn rows(&self) -> Vec<Row> {
        let calls = self.calls.iter().flat_map(CallFigures::rows);
        calls.chain(self.attach.iter().flat_map(AttachFigures::rows)).collect()
    }
}

impl CallFigures {
    /// A hit costs what a call takes beyond the same call without a probe.
    fn rows(&self) -> Vec<Row> {
        let hit = |probed: f64| probed - self.unprobed_ns;
        let (entry, empty, own) =
            (hit(self.empty_at_entry_ns), hit(self.empty_ns), hit(self.own_ns));
        let (call, pair) = match self.call.as_str() {
            "allocation" => ("allocation and release", " with return"),
            other => (other, ""),
        };
        let name = |what: &str| format!("{} {call}: {what}", self.build);
        let place = format!("entry+{}", self.skip);
        let mut rows = vec![
            Row::new(&name("without a probe"), self.unprobed_ns, "ns"),
            Row::new(&name(&format!("empty program{pair} at the entry")), entry, "ns"),
            Row::new(&name(&format!("empty program{pair} at {place}")), empty, "ns"),
            Row::new(&name(&format!("our probe at {place}")), own, "ns")
                .against(empty)
                .ratio_at_most(OVER_EMPTY),
        ];
        if entry > empty * STEPPED {
            let row = Row::new(&name("our probe by an empty one at the entry"), own, "ns");
            let row = row.against(entry);
            // The trap at the return costs the same wherever the entry's is.
            rows.push(if pair.is_empty() { row.ratio_at_most(OVER_ENTRY) } else { row });
        }
        rows
    }
}

impl AttachFigures {
    fn rows(&self) -> [Row; 2] {
        let row = |what: &str, value| {
            let processes = if self.processes == 1 { "process" } else { "processes" };
            let name = format!("{what} {} hooks, {} {processes}", self.hooks, self.processes);
            Row::new(&name, value, "ms").value_at_most(ATTACH_MS)
        };
        [row("attach", self.attach_ms), row("detach", self.detach_ms)]
    }
}

#[cfg(test)]
mod tests {
    use super::{AttachFigures, CallFigures, Figures};

    fn call(call: &str, empty_at_entry_ns: f64, own_ns: f64) -> CallFigures {
        CallFigures {
            build: "cmp".to_owned(),
            call: call.to_owned(),
            skip: 10,
            unprobed_ns: 5.0,
            empty_at_entry_ns,
            empty_ns: 605.0,
            own_ns,
        }
    }

    #[test]
    fn hits_are_compared_without_the_call() {
        let rows = call("launch", 11_005.0, 665.0).rows();
        assert_eq!(rows[3].name, "cmp launch: our probe at entry+10");
        assert_eq!((rows[3].value, rows[3].ratio, rows[3].ok), (660.0, Some(1.1), Some(true)));
        assert_eq!((rows[4].ratio, rows[4].ok), (Some(0.06), Some(true)));
    }

    #[test]
    fn an_entry_that_is_not_stepped_is_no_measure() {
        assert_eq!(call("launch", 615.0, 665.0).rows().len(), 4);
    }

    #[test]
    fn an_allocation_is_not_measured_by_its_entry_alone() {
        let rows = call("allocation", 11_005.0, 705.0).rows();
        assert_eq!((rows[3].ok, rows[4].ok), (Some(false), None));
    }

    #[test]
    fn both_ways_have_a_target() {
        let attach = AttachFigures { processes: 64, hooks: 37, attach_ms: 20.0, detach_ms: 300.0 };
        let rows = Figures { calls: Vec::new(), attach: vec![attach] }.rows();
        assert_eq!(
            (rows[0].name.as_str(), rows[0].ok),
            ("attach 37 hooks, 64 processes", Some(true))
        );
        assert_eq!(rows[1].ok, Some(false));
    }
}
