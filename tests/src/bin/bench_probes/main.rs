//! What a hit on a probe costs the process that makes the call, in nanoseconds per call.
//!
//! The call is `cuLaunchKernel` of a stand-in whose entries begin as the real driver's do, with
//! arguments that it refuses at once: what is left is the call itself and the probe. Run by
//! `cargo xtask bench probes`, which compares the figures; it prints one JSON object.

mod call;
mod empty;

use std::path::{Path, PathBuf};

use agent::config;
use agent::samplers::cuda::Tracer;
use agent::samplers::cuda::library::coverage::HookState;
use anyhow::{Context, bail};
use serde::Serialize;

use call::Launch;
use empty::Empty;

const ROUNDS: usize = 9;
const CALLS: u32 = 20_000;
const SYMBOL: &str = "cuLaunchKernel";

/// Medians over the rounds.
#[derive(Debug, Serialize)]
struct Figures {
    unprobed_ns: f64,
    /// An empty program on the first instruction, which the kernel must single-step.
    empty_at_entry_ns: f64,
    /// An empty program where the agent attaches.
    empty_ns: f64,
    /// The agent's own program where it attaches.
    launch_ns: f64,
    /// Bytes from the entry to where the agent attaches.
    skip: u8,
}

/// Where the agent attaches, as offsets in the file.
#[derive(Clone, Copy, Debug)]
struct Place {
    entry: u64,
    chosen: u64,
    skip: u8,
}

fn main() -> anyhow::Result<()> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let library = stand_in(folder.path())?;
    let figures = measure(&library)?;
    #[expect(clippy::print_stdout, reason = "the figures are what it is for")]
    {
        println!("{}", serde_json::to_string(&figures)?);
    }
    Ok(())
}

/// A copy of its own: probes of others hang on other files.
fn stand_in(folder: &Path) -> anyhow::Result<PathBuf> {
    let programs = std::env::current_exe().context("this program has no path")?;
    let built = programs.with_file_name("libcuda_stub_cmp.so");
    let library = folder.join("libcuda.so.1");
    std::fs::copy(&built, &library).with_context(|| {
        format!("cannot copy {}: build it with cargo build -p cuda-stub-cmp", built.display())
    })?;
    Ok(library)
}

/// The four cases take turns, so that a change of the machine's speed meets all of them.
fn measure(library: &Path) -> anyhow::Result<Figures> {
    let launch = Launch::open(library)?;
    let place = chosen_place(library)?;
    let mut cases: [Vec<f64>; 4] = Default::default();
    for _ in 0..ROUNDS {
        cases[0].push(launch.nanoseconds_per_call(CALLS));
        {
            let _at_entry = Empty::attach(library, place.entry)?;
            cases[1].push(launch.nanoseconds_per_call(CALLS));
        }
        {
            let _at_place = Empty::attach(library, place.chosen)?;
            cases[2].push(launch.nanoseconds_per_call(CALLS));
        }
        let tracer = trace(library);
        cases[3].push(launch.nanoseconds_per_call(CALLS));
        tracer.stop();
    }
    let [unprobed_ns, empty_at_entry_ns, empty_ns, launch_ns] = cases.map(median);
    Ok(Figures { unprobed_ns, empty_at_entry_ns, empty_ns, launch_ns, skip: place.skip })
}

fn trace(library: &Path) -> Tracer {
    let config = config::Cuda { libraries: vec![library.to_owned()], ..config::Cuda::default() };
    Tracer::start(&config, Path::new("/proc"))
}

fn chosen_place(library: &Path) -> anyhow::Result<Place> {
    let tracer = trace(library);
    let coverage = tracer.coverage();
    tracer.stop();
    let hooks = coverage.first().context("the agent did not look at the library")?;
    let hook = hooks.hooks.iter().find(|it| it.symbol == SYMBOL);
    match hook.map(|it| it.state) {
        Some(HookState::Attached { offset, skip, .. }) => {
            Ok(Place { entry: offset - u64::from(skip), chosen: offset, skip })
        }
        other => {
            bail!("{SYMBOL} is not hooked: {other:?} {}", hooks.error.as_deref().unwrap_or(""))
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
