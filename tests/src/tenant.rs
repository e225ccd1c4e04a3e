//! A tenant of a node: the workload program in a cgroup of its own.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;

use crate::cgroups::Group;
use crate::daemon::bound;

/// What a workload may take to do what it is told.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running workload. Killed when dropped.
#[derive(Debug)]
pub struct Tenant {
    /// As the product should name it.
    pub name: String,
    child: Child,
    lines: Receiver<String>,
    /// Declared last: the group can go only when the process has gone.
    _group: Option<Group>,
}

/// The calls that a workload made, by exported name, as it counted them itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Truth(pub BTreeMap<String, Counted>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Counted {
    pub calls: u64,
    pub failed: u64,
    /// Of the calls that succeeded.
    pub bytes: u64,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line {
    Ready {},
    Truth {
        calls: BTreeMap<String, Counted>,
    },
    /// Of options that these tests do not use.
    #[serde(other)]
    Other,
}

impl Tenant {
    /// Starts the workload and waits until it holds what it shall hold.
    pub(crate) fn start(name: &str, command: &Command, group: Option<Group>) -> Self {
        let placed = group.as_ref().map(|it| it.place(&bound(command)));
        let mut child = placed
            .unwrap_or_else(|| bound(command))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let output = child.stdout.take().expect("it is piped");
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let tenant = Self { name: name.to_owned(), child, lines, _group: group };
        let first = tenant.line();
        assert!(matches!(first, Line::Ready {}), "{name} says {first:?} before it is ready");
        tenant
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has called up to now.
    pub fn truth(&self) -> Truth {
        self.send(Signal::SIGUSR1);
        self.next_truth()
    }

    /// Ends it as a service manager does, and gives the whole truth.
    pub fn stop(mut self) -> Truth {
        self.send(Signal::SIGTERM);
        let truth = self.next_truth();
        self.child.wait().expect("the child is ours");
        truth
    }

    /// Waits until it has done all that it was told, and gives the whole truth.
    pub fn finish(mut self) -> Truth {
        let truth = self.next_truth();
        self.child.wait().expect("the child is ours");
        truth
    }

    /// SIGKILL; the process is gone when this returns, and its truth with it.
    pub fn kill(mut self) -> ExitStatus {
        self.send(Signal::SIGKILL);
        self.child.wait().expect("the child is ours")
    }

    pub fn send(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).expect("a PID is positive");
        kill(Pid::from_raw(pid), signal).expect("the process is ours and was not waited for");
    }

    fn next_truth(&self) -> Truth {
        loop {
            match self.line() {
                Line::Truth { calls } => return Truth(calls),
                Line::Ready {} => panic!("{} says twice that it is ready", self.name),
                Line::Other => {}
            }
        }
    }

    fn line(&self) -> Line {
        let line = self.lines.recv_timeout(PATIENCE);
        let line = line.unwrap_or_else(|error| panic!("{} says nothing: {error}", self.name));
        serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("{} says {line}: {error}", self.name))
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        if self.child.try_wait().expect("the child is ours").is_none() {
            self.child.kill().expect("the child is ours");
            self.child.wait().expect("the child is ours");
        }
    }
}

impl Truth {
    /// Of one function and its per-thread-default-stream variant.
    pub fn of(&self, symbol: &str) -> Counted {
        let variants = ["", "_ptsz", "_ptds"].map(|it| format!("{symbol}{it}"));
        let found = variants.iter().filter_map(|it| self.0.get(it));
        found.fold(Counted::default(), |sum, it| Counted {
            calls: sum.calls + it.calls,
            failed: sum.failed + it.failed,
            bytes: sum.bytes + it.bytes,
        })
    }

    /// Calls that queue kernels one by one.
    pub fn launches(&self) -> u64 {
        self.kernels() + self.of("cuLaunchCooperativeKernel").calls
    }

    /// Of them, those whose blocks need not run together.
    pub fn kernels(&self) -> u64 {
        ["cuLaunchKernel", "cuLaunchKernelEx"].iter().map(|it| self.of(it).calls).sum()
    }

    /// Calls that wait for the device.
    pub fn synchronizations(&self) -> u64 {
        let names = ["cuCtxSynchronize", "cuStreamSynchronize", "cuEventSynchronize"];
        names.iter().map(|it| self.of(it).calls).sum()
    }

    /// Bytes of all copies.
    pub fn copied_bytes(&self) -> u64 {
        self.0.iter().filter(|(name, _)| name.starts_with("cuMemcpy")).map(|(_, it)| it.bytes).sum()
    }
}
