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
use std::process::Command;

use agent::clock;
use agent::config;
use agent::samplers::cuda::Tracer;
use agent::samplers::cuda::library::coverage::{HookState, LibraryCoverage};
use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use call::{Call, Library};
use empty::Empty;
use tests::artefacts::Build;

const ROUNDS: usize = 9;
const TRIES: u32 = 5;

#[derive(Debug, Serialize)]
struct Figures {
    calls: Vec<CallFigures>,
    attach: Vec<attach::Figures>,
}

/// Of one call in one stand-in: in one round, or medians over the rounds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
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

const ROUND: &str = "round";

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [attach::HOLD, library] => hold(Path::new(library)),
        [ROUND, build, folder] => {
            let subject = Subject::install(Path::new(folder), serde_json::from_str(build)?)?;
            print(&serde_json::to_string(&subject.measure()?)?);
            Ok(())
        }
        _ => measure(),
    }
}

fn measure() -> anyhow::Result<()> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let mut rounds = Vec::new();
    for number in 0..ROUNDS {
        for build in Build::ALL {
            let folder = folder.path().join(format!("{build:?}-{number}"));
            rounds.extend(round(build, &folder)?);
        }
    }
    let calls = Build::ALL.into_iter().flat_map(|build| Call::ALL.map(|call| (build, call)));
    let calls = calls.map(|(build, call)| {
        let of = |it: &&CallFigures| it.build == build && it.call == call;
        medians(&rounds.iter().filter(of).copied().collect::<Vec<_>>())
    });
    let figures = Figures { calls: calls.collect(), attach: attach::measure(folder.path())? };
    print(&serde_json::to_string(&figures)?);
    Ok(())
}

/// In a process of its own: where a hook has been, text is no longer the file's, and the agent
/// leaves memory functions alone then.
fn round(build: Build, folder: &Path) -> anyhow::Result<Vec<CallFigures>> {
    let program = std::env::current_exe().context("this program has no path")?;
    let mut command = Command::new(program);
    command.arg(ROUND).arg(serde_json::to_string(&build)?).arg(folder);
    let output = command.output().context("cannot start a round")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "a round failed: {}", errors.trim());
    serde_json::from_slice(&output.stdout).context("cannot read what a round said")
}

fn medians(rounds: &[CallFigures]) -> CallFigures {
    let of = |it: fn(&CallFigures) -> f64| median(rounds.iter().map(it).collect());
    CallFigures {
        unprobed_ns: of(|it| it.unprobed_ns),
        empty_at_entry_ns: of(|it| it.empty_at_entry_ns),
        empty_ns: of(|it| it.empty_ns),
        own_ns: of(|it| it.own_ns),
        ..rounds[0]
    }
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
            let library = stand_in::install(build, &folder.join(name))?;
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

    fn measure(&self) -> anyhow::Result<Vec<CallFigures>> {
        let time = |call: Call| self.of(call).1.nanoseconds_per_call(call);
        let all = || Call::ALL.into_iter().map(time).collect::<anyhow::Result<Vec<_>>>();
        let unprobed = all()?;
        let (tracer, places) = self.trace()?;
        let own = all()?;
        tracer.stop();
        let mut figures = Vec::new();
        for (index, (call, places)) in Call::ALL.into_iter().zip(places).enumerate() {
            let empty = |offsets: &[u64]| {
                let _attached = Empty::attach(&self.of(call).0, offsets, call.moments())?;
                time(call)
            };
            figures.push(CallFigures {
                build: self.build,
                call,
                skip: places.skip,
                unprobed_ns: unprobed[index],
                empty_at_entry_ns: empty(&places.entries)?,
                empty_ns: empty(&places.chosen)?,
                own_ns: own[index],
            });
        }
        Ok(figures)
    }

    /// Memory hooks are held back for a moment where another process could not be looked at.
    fn trace(&self) -> anyhow::Result<(Tracer, Vec<Places>)> {
        let libraries = vec![self.refusing.0.clone(), self.working.0.clone()];
        // A budget would have hooks taken off.
        let config =
            config::Cuda { libraries, pin_root: None, budget: None, ..config::Cuda::default() };
        let mut tries = 0;
        loop {
            let mut tracer = Tracer::start(&config, Path::new("/proc"));
            match self.places(&tracer.coverage()) {
                Ok(places) => return Ok((tracer, places)),
                Err(_) if tries < TRIES => tries += 1,
                Err(error) => {
                    let tracing = tracer.read(clock::boot()).tracing;
                    return Err(error.context(format!("{:?}", tracing.memory_held_back)));
                }
            }
        }
    }

    fn places(&self, coverage: &[LibraryCoverage]) -> anyhow::Result<Vec<Places>> {
        let of = |call: Call| {
            let library = coverage.iter().find(|it| it.path == self.of(call).0);
            Places::of(call, library.context("the agent did not look at the library")?)
        };
        Call::ALL.into_iter().map(of).collect()
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
