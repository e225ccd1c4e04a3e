//! `cargo xtask bench NAME`: measures one thing, as a table for people or one JSON object.
//!
//! A bench builds for release and starts what it measures; it returns rows. Figures in documents
//! come from here, with the command.

mod agent;
mod governor;
mod probes;
mod report;

use clap::ValueEnum;

use report::{Report, Row};

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Bench {
    /// What a hit on a probe costs the traced process; needs root.
    Probes,
    /// CPU and memory of the agent and of nvitop-exporter, side by side, at 1, 8 and 16 simulated GPUs
    /// with 0, 20 and 200 processes.
    Agent,
    /// What tracing costs a process that launches as fast as it can; needs root.
    Governor,
}

/// Fails when a target is missed, after the report.
pub(crate) fn run(bench: Bench, json: bool) -> anyhow::Result<()> {
    let report = match bench {
        Bench::Probes => Report { bench: "probes", rows: probes::run()? },
        Bench::Agent => Report { bench: "agent", rows: agent::run()? },
        Bench::Governor => Report { bench: "governor", rows: governor::run()? },
    };
    if json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{report}");
    }
    let missed = report.rows.iter().filter(|it| it.ok == Some(false)).count();
    anyhow::ensure!(missed == 0, "{missed} target(s) missed");
    Ok(())
}
