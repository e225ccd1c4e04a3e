//! `gleaner-agent`: reads its configuration, then runs, or says what it can see here.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use agent::config::{Config, RawConfig};
use agent::control::client::ask;
use agent::control::{Answer, Command as Asked, parse_duration};
use agent::recorder::{Ended, Order, RecordError, record};
use agent::run::RunError;
use agent::samplers::cuda::pins::driver::PinError;
use agent::samplers::cuda::pins::{self, Removed};
use agent::spool::SpoolError;
use clap::{Parser, Subcommand};

/// The node agent of gleaner: attributes every GPU nanosecond of this node to a tenant.
#[derive(Debug, Parser)]
#[command(name = "gleaner-agent", version)]
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
    /// Say what can and cannot be seen here, and what each missing thing costs.
    Doctor {
        /// One JSON object instead of text.
        #[arg(long)]
        json: bool,
        /// Where each function of each driver library is hooked, and why there.
        #[arg(long)]
        hooks: bool,
    },
    /// Write what NVML answers here to a file, for a bug report. Changes nothing on the node.
    Record {
        /// How long: 90s, 10m, 2h.
        #[arg(long = "for", default_value = "60s", value_parser = parse_duration)]
        length: Duration,
        /// Keep UUIDs, places on the PCI bus and PIDs as they are.
        #[arg(long)]
        with_identities: bool,
        /// Where; a file that is there is left as it is.
        file: PathBuf,
    },
    /// Take all hooks off a running agent's node for a while, or put them on again.
    Trace {
        #[command(subcommand)]
        action: TraceAction,
    },
    /// Have a running agent let go of the NVIDIA driver for a while, or take it again.
    Nvml {
        #[command(subcommand)]
        action: NvmlAction,
    },
    /// Remove the hooks and counts that a killed agent has left in the kernel.
    Detach {
        /// Where they are pinned; without it as configured (`cuda.pin_root`).
        #[arg(long)]
        pin_root: Option<PathBuf>,
    },
    /// Check the configuration.
    Config {
        #[command(subcommand)]
        action: ConfigAction,
    },
}

#[derive(Debug, Subcommand)]
enum TraceAction {
    /// Take every hook off, for people who profile. Nothing is known of CUDA calls meanwhile.
    Pause {
        /// How long: 90s, 10m, 2h; at most 24h. A restart of the agent ends it, too.
        #[arg(long = "for", value_parser = parse_duration)]
        length: Duration,
    },
    /// End a pause.
    Resume,
}

#[derive(Debug, Subcommand)]
enum NvmlAction {
    /// Shut NVML down and unload it, for a driver upgrade, a MIG change or a reset. No GPU is metered
    /// meanwhile.
    Release {
        /// How long: 90s, 10m, 2h; at most 24h. A restart of the agent ends it, too.
        #[arg(long = "for", value_parser = parse_duration)]
        length: Duration,
    },
    /// End a release: read everything afresh.
    Take,
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
    pub(crate) const IO: u8 = 74;
    pub(crate) const UNFINISHED: u8 = 75;
    pub(crate) const DENIED: u8 = 77;
}

/// Taking hooks off and on, or letting go of NVML, takes a fraction of it.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    init_logging(&arguments);
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
        Command::Doctor { json, hooks } => doctor(&config, json, hooks),
        Command::Record { length, with_identities, file } => {
            write_recording(&config, &Order { file, length, with_identities })
        }
        Command::Trace { action } => command(&config, &action.asked()),
        Command::Nvml { action } => command(&config, &action.asked()),
        Command::Detach { pin_root } => detach(pin_root.or(config.cuda.pin_root)),
        Command::Config { .. } => print("the configuration is valid\n"),
    }
}

fn run(config: Config) -> ExitCode {
    match runtime().block_on(agent::run::run(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(
            error @ (RunError::Listen { .. }
            | RunError::Predecessor(_)
            | RunError::Spool(SpoolError::Refused(_))),
        ) => fail(exit::UNAVAILABLE, &error),
        Err(error @ RunError::Uplink(_)) => fail(exit::USAGE, &error),
        Err(error) => fail(exit::IO, &error),
    }
}

/// `UNAVAILABLE` where something is missing, so that a script need not read the text.
fn doctor(config: &Config, json: bool, hooks: bool) -> ExitCode {
    let report = runtime().block_on(agent::doctor::examine(config));
    let text = if json {
        serde_json::to_string_pretty(&report).expect("a report is plain data") + "\n"
    } else {
        report.text(hooks)
    };
    let printed = print(&text);
    if report.is_complete() { printed } else { ExitCode::from(exit::UNAVAILABLE) }
}

fn write_recording(config: &Config, order: &Order) -> ExitCode {
    match runtime().block_on(record(config, order)) {
        Ok(written) => {
            let why = match written.ended {
                Ended::InTime => "",
                Ended::Early => ", stopped early",
                Ended::Full => ", ended early: the file is as large as it may be",
            };
            print(&format!(
                "{}: {} devices, {} readings, {} KiB{why}; its first lines say what is in it\n",
                order.file.display(),
                written.devices,
                written.ticks,
                written.bytes.div_ceil(1024)
            ))
        }
        Err(error @ RecordError::Exists(_)) => fail(exit::USAGE, &error),
        Err(error @ RecordError::NoDriver(_)) => fail(exit::UNAVAILABLE, &error),
        Err(error) => fail(exit::IO, &error),
    }
}

impl TraceAction {
    fn asked(&self) -> Asked {
        match self {
            Self::Pause { length } => Asked::Pause { seconds: length.as_secs() },
            Self::Resume => Asked::Resume,
        }
    }
}

impl NvmlAction {
    fn asked(&self) -> Asked {
        match self {
            Self::Release { length } => Asked::Release { seconds: length.as_secs() },
            Self::Take => Asked::Take,
        }
    }
}

/// Asks the running agent.
fn command(config: &Config, command: &Asked) -> ExitCode {
    match runtime().block_on(ask(&config.admin_socket, command, PATIENCE)) {
        Ok(Answer::Done(text)) => print(&format!("{text}\n")),
        Ok(Answer::Unfinished(text)) => refuse(exit::UNFINISHED, &text),
        Ok(Answer::Refused(text)) => refuse(exit::UNAVAILABLE, &text),
        Err(error) if error.is_denied() => fail(exit::DENIED, &error),
        Err(error) => fail(exit::UNAVAILABLE, &error),
    }
}

fn detach(root: Option<PathBuf>) -> ExitCode {
    let Some(root) = root else { return print("nothing is pinned: cuda.pin_root is empty\n") };
    match pins::driver::remove_all(&root) {
        Ok(Removed { links: 0, maps: 0 }) => {
            print(&format!("nothing is pinned in {}\n", root.display()))
        }
        Ok(Removed { links, maps }) => {
            print(&format!("removed {links} hooks and {maps} maps from {}\n", root.display()))
        }
        Err(error @ PinError::Owned(_)) => fail(exit::UNAVAILABLE, &error),
        Err(PinError::NoFileSystem(root)) => {
            print(&format!("nothing is pinned: {} is not in a bpf file system\n", root.display()))
        }
        Err(error) if error.is_denied() => fail(exit::DENIED, &error),
        Err(error) => fail(exit::IO, &error),
    }
}

/// One thread is enough: the sources that can block have threads of their own.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("the kernel offers epoll and eventfd")
}

/// A report says itself what it found: `doctor` and `record` log only what they cannot say.
fn init_logging(arguments: &Arguments) {
    let reports =
        matches!(arguments.command, Some(Command::Doctor { .. } | Command::Record { .. }));
    let level = if reports { "error" } else { "info" };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
}

fn fail(code: u8, error: &dyn std::error::Error) -> ExitCode {
    refuse(code, &error.to_string())
}

#[expect(clippy::print_stderr, reason = "the last word of a program that does not start")]
fn refuse(code: u8, why: &str) -> ExitCode {
    eprintln!("gleaner-agent: {why}");
    ExitCode::from(code)
}

/// A reader that went away is not an error: `doctor | head`.
fn print(text: &str) -> ExitCode {
    use std::io::Write as _;
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => fail(exit::IO, &error),
    }
}
