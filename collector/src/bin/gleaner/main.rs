//! `gleaner`, the client: what the collector knows, for people and for scripts.
//!
//! It reads and never changes anything. One file or folder per subcommand.

mod connect;
mod idle;
mod json;
mod top;
mod usage;
mod words;

use std::io::{self, IsTerminal as _, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use connect::{ClientError, Collector};

/// GPU capacity that is paid for and not used: who holds it, since when, and what is offered.
#[derive(Debug, Parser)]
#[command(name = "gleaner", version, propagate_version = true)]
struct Arguments {
    /// The collector's gRPC address.
    #[arg(long, global = true, value_name = "URL", default_value = "http://127.0.0.1:9801")]
    collector: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The fleet, live: every GPU with its class, load, memory, power and holders.
    Top(top::Arguments),
    /// Idle capacity.
    Idle {
        #[command(subcommand)]
        command: IdleCommand,
    },
    /// GPU time by tenant, exact, from the ledger.
    Usage(usage::Arguments),
}

#[derive(Debug, Subcommand)]
enum IdleCommand {
    /// The stream that schedulers subscribe to, as it happens.
    Watch(idle::Arguments),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut out = io::stdout().lock();
    let result = run(&arguments, &mut out).await.and_then(|()| Ok(out.flush()?));
    match result {
        // A reader that has seen enough (`head`) is not an error.
        Err(ClientError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            // Nobody is left to tell when this fails too.
            let _told = writeln!(io::stderr(), "gleaner: {error}");
            ExitCode::FAILURE
        }
        Ok(()) => ExitCode::SUCCESS,
    }
}

async fn run(arguments: &Arguments, out: &mut impl Write) -> Result<(), ClientError> {
    let collector = Collector::new(&arguments.collector)?;
    match &arguments.command {
        Command::Top(it) => top::run(it, &collector, io::stdout().is_terminal(), out).await,
        Command::Idle { command: IdleCommand::Watch(it) } => idle::run(it, &collector, out).await,
        Command::Usage(it) => usage::run(it, &collector, out).await,
    }
}
