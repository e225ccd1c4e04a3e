//! A process of the product, with its log, from its start to its end.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::eventually;

/// What a daemon may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);

/// Killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts it with its output appended to `log`. It dies with the thread that starts it, so that
    /// nothing survives a test that is killed.
    pub fn start(command: &Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log);
        let file = file.unwrap_or_else(|error| panic!("cannot write {}: {error}", log.display()));
        let errors = file.try_clone().expect("a descriptor is free");
        let child = bound(command)
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Self { child, log: log.to_owned() }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything that it, and whoever had this log before it, has said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// How it ended; `None` while it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the child is ours")
    }

    /// Waits until it has ended by itself.
    #[track_caller]
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let log = self.log.clone();
        eventually(deadline, "the process ends", || {
            let said = || std::fs::read_to_string(&log).unwrap_or_default();
            self.ended().ok_or_else(|| format!("it runs and said:\n{}", said()))
        })
    }

    /// Asks it to stop and waits.
    #[track_caller]
    pub fn stop(mut self) -> ExitStatus {
        self.send(Signal::SIGTERM);
        self.wait(GRACE)
    }

    /// SIGKILL, as the out-of-memory killer sends it.
    pub fn kill(mut self) {
        self.end();
    }

    pub fn send(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).expect("a PID is positive");
        kill(Pid::from_raw(pid), signal).expect("the process is ours and was not waited for");
    }

    fn end(&mut self) {
        if self.ended().is_none() {
            self.send(Signal::SIGKILL);
            self.child.wait().expect("the child is ours");
        }
    }
}

impl Drop for Daemon {
    #[expect(clippy::print_stderr, reason = "shown with the failed test")]
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            eprintln!("--- {} ---\n{}", self.log.display(), self.log());
        }
    }
}

/// The same command as a process that the kernel kills when its parent is gone.
pub(crate) fn bound(command: &Command) -> Command {
    wrapped(Command::new("setpriv"), &["--pdeathsig", "KILL"], command)
}

/// `command` run by `outer`, which takes it as its last arguments.
pub(crate) fn wrapped(mut outer: Command, arguments: &[&str], command: &Command) -> Command {
    outer.args(arguments).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer
}
