//! How long it takes to put every hook on a library, and to take all off, while processes map it.

use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use agent::clock;
use agent::config;
use agent::samplers::cuda::Tracer;
use anyhow::{Context, ensure};
use serde::Serialize;

use crate::median;
use tests::artefacts::Build;

use crate::stand_in;

const ROUNDS: usize = 5;
const PROCESSES: [usize; 2] = [1, 64];
/// Later than the tracer's next look at its paths.
const LATER_NS: u64 = 6_000_000_000;

/// Medians over the rounds.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    /// How many map the library.
    processes: usize,
    hooks: u32,
    /// From the file's appearance in its place: it is decoded, too.
    attach_ms: f64,
    detach_ms: f64,
}

pub(crate) fn measure(folder: &Path) -> anyhow::Result<Vec<Figures>> {
    let mut figures = Vec::new();
    let mut rounds: [(Vec<f64>, Vec<f64>); PROCESSES.len()] = Default::default();
    let mut hooks = 0;
    for round in 0..ROUNDS {
        for (processes, (attach, detach)) in PROCESSES.into_iter().zip(&mut rounds) {
            let folder = folder.join(format!("attach-{round}-{processes}"));
            let took = once(&folder, processes)?;
            hooks = took.hooks;
            attach.push(took.attach.as_secs_f64() * 1e3);
            detach.push(took.detach.as_secs_f64() * 1e3);
        }
    }
    for (processes, (attach, detach)) in PROCESSES.into_iter().zip(rounds) {
        let (attach_ms, detach_ms) = (median(attach), median(detach));
        figures.push(Figures { processes, hooks, attach_ms, detach_ms });
    }
    Ok(figures)
}

struct Took {
    hooks: u32,
    attach: Duration,
    detach: Duration,
}

/// The tracer is started without a library: loading its programs is not attaching.
fn once(folder: &Path, processes: usize) -> anyhow::Result<Took> {
    let library = folder.join("libcuda.so.1");
    let libraries = vec![library.clone()];
    let config = config::Cuda { libraries, pin_root: None, ..config::Cuda::default() };
    let mut tracer = Tracer::start(&config, Path::new("/proc"));
    stand_in::install(Build::Cmp, folder)?;
    let holders =
        (0..processes).map(|_| Holder::start(&library)).collect::<anyhow::Result<Vec<_>>>()?;
    let began = now();
    let tracing = tracer.read(clock::boot() + LATER_NS).tracing;
    let attach = began.elapsed();
    ensure!(tracing.on && tracing.hooks_attached > 0, "nothing is traced: {}", tracing.reason);
    let began = now();
    tracer.stop();
    let detach = began.elapsed();
    drop(holders);
    Ok(Took { hooks: tracing.hooks_attached, attach, detach })
}

#[expect(clippy::disallowed_methods, reason = "a bench measures real time")]
fn now() -> Instant {
    Instant::now()
}

/// A process that maps the library and waits.
struct Holder(Child);

pub(crate) const HOLD: &str = "hold";

impl Holder {
    fn start(library: &Path) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("this program has no path")?;
        let mut child = Command::new(program)
            .arg(HOLD)
            .arg(library)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a process that maps the library")?;
        let mut ready = [0];
        let out = child.stdout.as_mut().context("its output is piped")?;
        out.read_exact(&mut ready).context("a process that maps the library failed")?;
        Ok(Self(child))
    }
}

impl Drop for Holder {
    /// It ends when its input does.
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        drop(self.0.wait());
    }
}
