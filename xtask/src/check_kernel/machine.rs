//! An emulated machine, from its start to its end.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::Context;

use super::EMULATOR;
use super::image::Image;
use crate::{packages, shell};

/// Between two lines of what the check says. Emulation takes its time.
const PATIENCE: Duration = Duration::from_secs(900);
/// How much of the console is shown when the machine has failed.
const LAST_LINES: usize = 60;

/// Ended when dropped.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself, which is what is wanted.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Boots a kernel and takes what is said until it powers off. Returns why it did not come to that.
pub(super) fn run(
    kernel: &Path,
    image: &Image,
    mut take: impl FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<Option<String>> {
    let console = image.path().with_extension("console");
    let command = command(kernel, image, &console);
    let mut machine = Machine(tied(&command).spawn().context("cannot start the emulator")?);
    let output = machine.0.stdout.take().context("its output is piped")?;
    let lines = lines(output);
    loop {
        match lines.recv_timeout(PATIENCE) {
            Ok(line) => take(line.trim_end())?,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => return Ok(Some(failed("it hangs", &console))),
        }
    }
    let status = machine.0.wait().context("cannot wait for the emulator")?;
    // What the programs on it had to say beside.
    let said = std::fs::read_to_string(&console).unwrap_or_default();
    if said.contains("Kernel panic") || !status.success() {
        return Ok(Some(failed(&format!("it ended badly ({status})"), &console)));
    }
    Ok(None)
}

/// Two processors, so that what happens at once can happen. In software: virtualisation inside a
/// virtual machine is offered in places where it hangs.
fn command(kernel: &Path, image: &Image, console: &Path) -> Command {
    let mut command = Command::new(EMULATOR);
    command.args(["-machine", "pc", "-cpu", "max,la57=off", "-smp", "2", "-m", "3072"]);
    command.args(["-accel", "tcg,thread=multi"]);
    command.args(["-nodefaults", "-display", "none", "-no-reboot", "-monitor", "none"]);
    command.arg("-serial").arg(format!("file:{}", console.display()));
    command.args(["-serial", "stdio"]);
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(image.path());
    command.args(["-append", "console=ttyS0 loglevel=4 panic=-1 oops=panic"]);
    command
}

/// It ends with this task.
fn tied(command: &Command) -> Command {
    let launcher = if packages::is_installed("setpriv") {
        let mut setpriv = Command::new("setpriv");
        setpriv.args(["--pdeathsig", "KILL", "--"]);
        setpriv
    } else {
        Command::new("env")
    };
    let mut tied = shell::behind(launcher, command);
    tied.stdin(Stdio::null()).stdout(Stdio::piped());
    tied
}

fn lines(output: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (send, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

fn failed(why: &str, console: &Path) -> String {
    let said = std::fs::read(console).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let lines: Vec<&str> = said.lines().collect();
    let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n    ");
    format!("the machine: {why}; its console said at last:\n    {last}")
}
