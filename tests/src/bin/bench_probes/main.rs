//! What a hit on a probe costs the process that makes the call, in nanoseconds per call, and how long
//! hooks take to go on and off.
//!
//! The calls are those of stand-ins whose entries begin as drivers' do. Launches and copies have
//! arguments that are refused at once: what is left is the call itself and the probe. Run by
//! `cargo xtask bench probes`, which compares the figures; it prints one JSON object.

mod attach;
mod call;
mod empty;
mod stand_in;

use std::path::{Path, PathBuf};

use agent::config;
use agent::samplers::cuda::Tracer;
use agent::samplers::cuda::bpf::driver::Moment;
use agent::samplers::cuda::library::coverage::{HookState, LibraryCoverage};
use anyhow::{Context, bail};
use serde::Serialize;

use call::{Call, Library};
use empty::Empty;
use stand_in::Build;

const ROUNDS: usize = 9;

#[derive(Debug, Serialize)]
struct Figures {
    calls: Vec<CallFigures>,
    attach: Vec<attach::Figures>,
}

/// Medians over the rounds, of one call in one stand-in.
#[derive(Debug, Serialize)]
struct CallFigures {
    build: Build,
    call: Call,
    /// Bytes from the entry to where the agent attaches.
    skip: u8,
    unprobed_ns: f64,
    /// An empty program on the first instruction; where the agent waits for the result, one at the
    /// return, too. The same holds for the next.
    empty_at_entry_ns: f64,
    /// An empty program where the agent attaches.
    empty_ns: f64,
    /// The agent's own program where it attaches.
    own_ns: f64,
}

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|it| it == attach::HOLD) {
        return hold(Path::new(&arguments.next().context("which library?")?));
    }
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let mut calls = Vec::new();
    for build in Build::ALL {
        calls.extend(Subject::install(folder.path(), build)?.measure()?);
    }
    let figures = Figures { calls, attach: attach::measure(folder.path())? };
    print(&serde_json::to_string(&figures)?);
    Ok(())
}

/// Maps a library, says so, and waits for the end of the input.
fn hold(library: &Path) -> anyhow::Result<()> {
    Library::open(library)?;
    print("mapped");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

#[expect(clippy::print_stdout, reason = "what it says is what it is for")]
fn print(text: &str) {
    println!("{text}");
}

/// One stand-in, twice: calls are refused at once where the driver is not initialised, and
/// allocations succeed where it is.
struct Subject {
    build: Build,
    refusing: (PathBuf, Library),
    working: (PathBuf, Library),
}

impl Subject {
    fn install(folder: &Path, build: Build) -> anyhow::Result<Self> {
        let install = |name: &str| {
            let library = build.install(&folder.join(format!("{build:?}-{name}")))?;
            let open = Library::open(&library)?;
            anyhow::Ok((library, open))
        };
        let (refusing, working) = (install("refusing")?, install("working")?);
        working.1.initialise()?;
        Ok(Self { build, refusing, working })
    }

    fn of(&self, call: Call) -> &(PathBuf, Library) {
        match call {
            Call::Launch | Call::Copy => &self.refusing,
            Call::Allocation => &self.working,
        }
    }

    /// The cases take turns, so that a change of the machine's speed meets all of them.
    fn measure(&self) -> anyhow::Result<Vec<CallFigures>> {
        let places = Call::ALL.into_iter().map(|it| self.places(it));
        let places = places.collect::<anyhow::Result<Vec<_>>>()?;
        let mut cases: [[Vec<f64>; 4]; 3] = Default::default();
        for _ in 0..ROUNDS {
            for ((call, places), cases) in Call::ALL.into_iter().zip(&places).zip(&mut cases) {
                let (path, library) = self.of(call);
                let both = [Moment::Return, Moment::Entry];
                let moments = if call.returns() { &both[..] } else { &both[1..] };
                cases[0].push(library.nanoseconds_per_call(call)?);
                for (offsets, case) in [(&places.entries, 1), (&places.chosen, 2)] {
                    let _attached = Empty::attach(path, offsets, moments)?;
                    cases[case].push(library.nanoseconds_per_call(call)?);
                }
            }
            let tracer = self.trace();
            for (call, cases) in Call::ALL.into_iter().zip(&mut cases) {
                cases[3].push(self.of(call).1.nanoseconds_per_call(call)?);
            }
            tracer.stop();
        }
        let mut figures = Vec::new();
        for ((call, places), cases) in Call::ALL.into_iter().zip(places).zip(cases) {
            let [unprobed_ns, empty_at_entry_ns, empty_ns, own_ns] = cases.map(median);
            let (build, skip) = (self.build, places.skip);
            figures.push(CallFigures {
                build,
                call,
                skip,
                unprobed_ns,
                empty_at_entry_ns,
                empty_ns,
                own_ns,
            });
        }
        Ok(figures)
    }

    fn trace(&self) -> Tracer {
        let libraries = vec![self.refusing.0.clone(), self.working.0.clone()];
        let config = config::Cuda { libraries, pin_root: None, ..config::Cuda::default() };
        Tracer::start(&config, Path::new("/proc"))
    }

    fn places(&self, call: Call) -> anyhow::Result<Places> {
        let tracer = self.trace();
        let coverage = tracer.coverage();
        tracer.stop();
        let library = coverage.iter().find(|it| it.path == self.of(call).0);
        Places::of(call, library.context("the agent did not look at the library")?)
    }
}

/// Where the agent attaches for one call, as offsets in the file.
#[derive(Clone, Debug)]
struct Places {
    entries: Vec<u64>,
    chosen: Vec<u64>,
    /// Of the first.
    skip: u8,
}

impl Places {
    fn of(call: Call, library: &LibraryCoverage) -> anyhow::Result<Self> {
        let mut places = Self { entries: Vec::new(), chosen: Vec::new(), skip: 0 };
        for symbol in call.symbols() {
            let hook = library.hooks.iter().find(|it| it.symbol == *symbol);
            match hook.map(|it| it.state) {
                Some(HookState::Attached { offset, skip, .. }) => {
                    places.entries.push(offset - u64::from(skip));
                    places.chosen.push(offset);
                    places.skip = skip;
                }
                other => {
                    let error = library.error.as_deref().unwrap_or("");
                    bail!("{symbol} is not hooked: {other:?} {error}")
                }
            }
        }
        Ok(places)
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
