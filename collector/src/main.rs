//! `gleaner-collector`: reads its configuration, then runs until it is told to stop.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use collector::config::{Config, RawConfig};
use collector::ledger::schema::OpenError;
use collector::run::{Collector, RunError};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The collector of gleaner: usage ledger, metrics, page and idle-capacity stream.
#[derive(Debug, Parser)]
#[command(name = "gleaner-collector", version)]
struct Arguments {
    /// Configuration file; without one the embedded defaults hold.
    #[arg(long, global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run (the default).
    Run,
    /// Check the configuration.
    Config {
        #[command(subcommand)]
        action: ConfigAction,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigAction {
    /// Read the file, check every value, start nothing.
    Validate,
    /// Print the configuration with every default filled in.
    Print,
}

/// Exit codes of sysexits.h, so that a supervisor can tell a typing error from a full disk.
mod exit {
    pub(crate) const USAGE: u8 = 64;
    pub(crate) const UNAVAILABLE: u8 = 69;
    pub(crate) const SOFTWARE: u8 = 70;
    pub(crate) const IO: u8 = 74;
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return refuse(&error),
    };
    init_logging();
    let raw = match RawConfig::load(arguments.config.as_deref()) {
        Ok(raw) => raw,
        Err(error) => return fail(exit::USAGE, &error),
    };
    if let Some(Command::Config { action: ConfigAction::Print }) = &arguments.command {
        return print(&toml::to_string(&raw).expect("the configuration is a TOML table"));
    }
    let config = match raw.parse() {
        Ok(config) => config,
        Err(error) => return fail(exit::USAGE, &error),
    };
    match arguments.command.unwrap_or(Command::Run) {
        Command::Run => run(config),
        Command::Config { .. } => print("the configuration is valid\n"),
    }
}

fn run(config: Config) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("the kernel offers threads, epoll and eventfd");
    match runtime.block_on(serve(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(code_of(&error), &error),
    }
}

async fn serve(config: Config) -> Result<(), RunError> {
    let (terminate, interrupt) =
        (handled(SignalKind::terminate()), handled(SignalKind::interrupt()));
    let collector = Collector::start(config).await?;
    let addresses = collector.addresses();
    let text = format!("page http://{}/\ngrpc {}\n", addresses.http, addresses.grpc);
    if print(&text) != ExitCode::SUCCESS {
        tracing::warn!("nobody reads where this collector listens: {}", text.replace('\n', " "));
    }
    collector.run(told_to_stop(terminate, interrupt)).await?;
    tracing::info!("stopped: everything acknowledged is in the ledger");
    Ok(())
}

fn handled(kind: SignalKind) -> Signal {
    signal(kind).expect("these signals can be handled")
}

async fn told_to_stop(mut terminate: Signal, mut interrupt: Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping: streams end first, the ledger last");
}

fn code_of(error: &RunError) -> u8 {
    match error {
        RunError::Listen { .. } | RunError::Ledger(OpenError::Locked { .. }) => exit::UNAVAILABLE,
        RunError::Ledger(_) | RunError::Write(_) => exit::IO,
        RunError::Ended { .. } => exit::SOFTWARE,
    }
}

fn init_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}

/// What clap says: help and version are no errors.
fn refuse(error: &clap::Error) -> ExitCode {
    if error.print().is_err() || error.use_stderr() {
        ExitCode::from(exit::USAGE)
    } else {
        ExitCode::SUCCESS
    }
}

#[expect(clippy::print_stderr, reason = "the last word of a program that does not go on")]
fn fail(code: u8, error: &dyn std::error::Error) -> ExitCode {
    eprintln!("gleaner-collector: {error}");
    ExitCode::from(code)
}

/// A reader that went away is not an error.
fn print(text: &str) -> ExitCode {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => fail(exit::IO, &error),
    }
}
