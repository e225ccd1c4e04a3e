//! Whether the agent can trace a given driver library: every hook is decoded and attached, a process
//! uses the library with and without hooks, and what was counted is compared with what it did.
//!
//! Run by `cargo xtask check-driver`: `[--json] [LIBRARY…]`. Needs no GPU: without one nearly all calls
//! fail, and are counted.

mod child;
mod report;
mod trials;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use agent::clock;
use agent::config;
use agent::model::readings::CudaCounts;
use agent::samplers::cuda::Tracer;
use agent::status;
use anyhow::{Context, bail};

use child::Ended;
use report::{Check, Report};

/// Long enough for the reading that follows an exit.
const DEADLINE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => fail(&error),
    }
}

#[expect(clippy::print_stderr, reason = "the last word of a program that fails")]
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}

/// Whether all is as it should be.
fn run() -> anyhow::Result<bool> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [call, library, hooked @ ..] = &arguments[..]
        && call == child::CALL
    {
        print(&serde_json::to_string(&child::call(Path::new(library), hooked)?)?);
        return Ok(true);
    }
    let json = arguments.iter().any(|it| it == "--json");
    arguments.retain(|it| it != "--json");
    let mut libraries: Vec<PathBuf> = arguments.into_iter().map(PathBuf::from).collect();
    if libraries.is_empty() {
        libraries.push(installed()?);
    }
    let reports = libraries.iter().map(|it| check(it)).collect::<anyhow::Result<Vec<_>>>()?;
    if json {
        print(&serde_json::to_string_pretty(&reports)?);
    } else {
        reports.iter().for_each(|it| print(&it.to_string()));
    }
    Ok(reports.iter().all(Report::is_good))
}

#[expect(clippy::print_stdout, reason = "what it says is what it is for")]
fn print(text: &str) {
    println!("{text}");
}

/// The first of those that the agent looks for.
fn installed() -> anyhow::Result<PathBuf> {
    let paths = config::Cuda::default().libraries;
    let found = paths.iter().find(|it| it.exists()).cloned();
    found.with_context(|| format!("there is none of {paths:?}: name one, or take one with --fetch"))
}

fn check(library: &Path) -> anyhow::Result<Report> {
    let library =
        &library.canonicalize().with_context(|| format!("cannot open {}", library.display()))?;
    let libraries = vec![library.clone()];
    let config = config::Cuda { libraries, pin_root: None, ..config::Cuda::default() };
    let mut tracer = Tracer::start(&config, Path::new("/proc"));
    let reason = tracer.read(clock::boot()).tracing.reason;
    let found = status::libraries(&tracer.coverage()).into_iter();
    let Some(found) = found.into_iter().find(|it| Path::new(&it.path) == library) else {
        bail!("{}: {reason}", library.display());
    };
    let mut report = Report::new(found);
    if report.library.error.is_some() {
        return Ok(report);
    }
    report.checks.push(Check::of_hooks(&report.library));
    if !is_native(library)? {
        report.note = Some("is for another processor: it was decoded, and nothing was called");
        return Ok(report);
    }
    let symbols = report.hooked();
    let traced = child::run(library, &symbols).context("with hooks")?;
    let counted = final_counts(&mut tracer, traced.pid)?;
    tracer.stop();
    let plain = child::run(library, &symbols).context("without hooks")?;
    report.version = Some(plain.answers.version);
    report.checks.extend(checks(&traced, &plain, counted));
    Ok(report)
}

fn checks(traced: &Ended, plain: &Ended, counted: CudaCounts) -> [Check; 3] {
    let expected = trials::expected(&traced.answers.codes);
    [
        Check::of_addresses(&plain.answers),
        Check::of_answers(&traced.answers, &plain.answers),
        Check::of_counts(expected, trials::without_time(counted)),
    ]
}

/// Of a process that has ended.
fn final_counts(tracer: &mut Tracer, pid: u32) -> anyhow::Result<CudaCounts> {
    let deadline = now() + DEADLINE;
    loop {
        let readings = tracer.read(clock::boot());
        let mut processes = readings.processes.into_iter();
        let ended = processes.find(|(it, process)| it.tgid == pid && process.exited);
        if let Some((_, process)) = ended {
            return Ok(process.counts);
        }
        if now() > deadline {
            bail!("nothing was counted of the process that called the library");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[expect(clippy::disallowed_methods, reason = "waits for the agent's own code")]
fn now() -> Instant {
    Instant::now()
}

/// Whether this machine can run it. That it is an ELF file was checked before.
fn is_native(library: &Path) -> anyhow::Result<bool> {
    use std::io::Read as _;
    let mut header = [0; 20];
    let mut file = std::fs::File::open(library)?;
    file.read_exact(&mut header).context("it is no ELF file")?;
    let machine = u16::from_le_bytes([header[18], header[19]]);
    // EM_X86_64 and EM_AARCH64.
    let native = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
    Ok(machine == native)
}
