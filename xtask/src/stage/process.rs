//! A process of the stage: it has its own log and is ended by its own pid.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{packages, shell};

/// After SIGTERM a process has this long before SIGKILL.
const GRACE: Duration = Duration::from_secs(3);
/// How much of a log is shown when its process has failed.
const LAST_LINES: usize = 12;

/// Ended when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) name: String,
    child: Child,
    log: Option<PathBuf>,
}

impl Process {
    /// Starts it with its output in `folder/NAME.log`, out of reach of the terminal's Ctrl-C: the
    /// demo ends its processes itself, in order.
    pub(crate) fn start(name: &str, command: Command, folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join(format!("{name}.log"));
        let log =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let errors = log.try_clone().with_context(|| format!("cannot write {}", path.display()))?;
        let mut tied = tied(&command);
        tied.stdin(Stdio::null()).stdout(log).stderr(errors);
        Self::spawn(name, tied, Some(path))
    }

    /// Starts it with the terminal as its output.
    pub(crate) fn start_in_view(name: &str, command: Command) -> anyhow::Result<Self> {
        let mut tied = tied(&command);
        tied.stdin(Stdio::null());
        Self::spawn(name, tied, None)
    }

    fn spawn(name: &str, mut command: Command, log: Option<PathBuf>) -> anyhow::Result<Self> {
        use std::os::unix::process::CommandExt as _;
        let child = command
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", shell::line(&command)))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended; `None` while it runs.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// What it said last, for the message that says that it failed.
    pub(crate) fn last_lines(&self) -> String {
        let said = self.log.as_ref().and_then(|it| std::fs::read(it).ok()).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<&str> = said.lines().collect();
        let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
        last.iter().map(|it| format!("    {it}\n")).collect()
    }

    fn end(&mut self) {
        if self.ended().is_some() {
            return;
        }
        self.send(Signal::SIGTERM);
        // A stopped process handles SIGTERM only once it runs again.
        self.send(Signal::SIGCONT);
        let deadline = now() + GRACE;
        while self.ended().is_none() {
            if now() >= deadline {
                self.send(Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn send(&self, signal: Signal) {
        let Ok(pid) = i32::try_from(self.pid()) else { return };
        if let Err(error) = kill(Pid::from_raw(pid), signal) {
            eprintln!("cannot send {signal} to {} ({pid}): {error}", self.name);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// Told to end by the kernel when this process dies without a chance to end it.
fn tied(command: &Command) -> Command {
    // Part of util-linux, which is nearly everywhere; without it only this tie is missing.
    let launcher = if packages::is_installed("setpriv") {
        let mut setpriv = Command::new("setpriv");
        setpriv.args(["--pdeathsig", "TERM", "--"]);
        setpriv
    } else {
        Command::new("env")
    };
    shell::behind(launcher, command)
}

#[expect(clippy::disallowed_methods, reason = "a deadline for a process, not a measurement")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::Process;
    use std::process::Command;

    #[test]
    fn a_process_ends_with_its_value_and_leaves_its_words() {
        let folder = std::env::temp_dir().join(format!("gleaner-children-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo ready; sleep 600"]);
        let process = Process::start("sleeper", command, &folder).unwrap();
        while process.last_lines().is_empty() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!(process.last_lines(), "    ready\n");
        let pid = process.pid();
        drop(process);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
