//! A node in a folder: one of the stand-in drivers as `libcuda.so.1`, a tracer on it, workloads.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use agent::clock;
use agent::config;
use agent::model::ids::ProcessId;
use agent::model::readings::{Counter, CudaCounts, CudaProcess, CudaReadings};
use agent::samplers::cuda::Tracer;
use gpu_state::scenario::{NAME, Scenario};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::Pid;
use tempfile::TempDir;
pub(crate) use tests::artefacts::Build;
use tests::artefacts::artefact;

/// The folder. Two devices, so that copies between devices have somewhere to go.
pub(crate) struct Node {
    folder: TempDir,
}

impl Node {
    pub(crate) fn new(build: Build) -> Self {
        let node = Self::without_driver();
        node.install(build);
        node
    }

    pub(crate) fn without_driver() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let scenario = Scenario { kernel_us: 1, ..Scenario::with_gpus(2) };
        let text = toml::to_string(&scenario).expect("a scenario is TOML");
        std::fs::write(folder.path().join(NAME), text).expect("the scenario can be written");
        Self { folder }
    }

    /// Changes what the devices are, under everything that runs.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Scenario)) {
        let mut scenario = Scenario::read(self.folder()).expect("the scenario is ours");
        change(&mut scenario);
        scenario.write(self.folder()).expect("the folder is writable");
    }

    /// Replaces the driver as an upgrade does: another inode under the same name.
    pub(crate) fn install(&self, build: Build) {
        let new = self.folder.path().join("new");
        std::fs::copy(artefact(build.file()), &new).expect("the stand-in can be copied");
        std::fs::rename(new, self.library()).expect("the stand-in can be put in place");
    }

    pub(crate) fn library(&self) -> PathBuf {
        self.folder.path().join("libcuda.so.1")
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn tracer(&self) -> Tracer {
        self.tracer_for(64)
    }

    /// A tracer that works; anything else is a missing privilege.
    pub(crate) fn tracer_for(&self, max_processes: u32) -> Tracer {
        let mut tracer = self.idle_tracer(max_processes);
        let tracing = tracer.read(clock::boot()).tracing;
        assert!(tracing.on, "this test needs to trace: {}", tracing.reason);
        tracer
    }

    /// A tracer with another configuration.
    pub(crate) fn tracer_with(&self, change: impl FnOnce(&mut config::Cuda)) -> Tracer {
        let mut config = self.config(64, None);
        change(&mut config);
        Tracer::start(&config, Path::new("/proc"))
    }

    /// A tracer whether it finds a driver or not.
    pub(crate) fn idle_tracer(&self, max_processes: u32) -> Tracer {
        Tracer::start(&self.config(max_processes, None), Path::new("/proc"))
    }

    /// A tracer that keeps the budget that agents have by default.
    pub(crate) fn governed_tracer(&self) -> Tracer {
        let budget = config::Cuda::default().budget;
        let config = config::Cuda { budget, ..self.config(64, None) };
        Tracer::start(&config, Path::new("/proc"))
    }

    /// A tracer whose hooks and counts outlive it where `pin_root` lets them.
    pub(crate) fn pinning_tracer(&self, pin_root: &Path) -> Tracer {
        Tracer::start(&self.config(64, Some(pin_root)), Path::new("/proc"))
    }

    /// Without a bound on its cost: what is counted is exact.
    pub(crate) fn config(&self, max_processes: u32, pin_root: Option<&Path>) -> config::Cuda {
        let libraries = vec![self.library()];
        let pin_root = pin_root.map(Path::to_owned);
        config::Cuda {
            libraries,
            max_processes,
            pin_root,
            budget: None,
            // The drivers of other tests are left alone.
            max_libraries_per_tenant: 0,
            ..config::Cuda::default()
        }
    }

    /// Starts a workload on this node's driver; it is ready when this returns.
    pub(crate) fn start(&self, options: &str) -> Workload {
        self.start_with(&options.split_whitespace().collect::<Vec<_>>())
    }

    /// The same for options that hold spaces.
    pub(crate) fn start_with(&self, options: &[&str]) -> Workload {
        Workload::start(&self.library(), options)
    }

    /// Runs a workload to its end and returns what it did.
    pub(crate) fn run(&self, options: &str) -> Truth {
        self.start(options).finish()
    }
}

/// A character device with the name of a GPU's, which does nothing.
fn gpu_device(folder: &Path) -> File {
    let path = folder.join("nvidia0");
    if !path.exists() {
        let (kind, null) = (SFlag::S_IFCHR, makedev(1, 3));
        mknod(&path, kind, Mode::S_IRUSR, null).expect("root may make a device");
    }
    File::open(path).expect("the device can be opened")
}

/// A running workload. Killed when it is dropped.
pub(crate) struct Workload {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

/// What a workload says it did, summed over programs where it became another one.
#[derive(Clone, Debug, Default, serde::Deserialize)]
pub(crate) struct Truth {
    #[serde(rename = "pid")]
    pub(crate) tgid: u32,
    calls: BTreeMap<String, Called>,
    /// Of the last program, where it became another one.
    pub(crate) memory: Held,
    /// Device time that was queued; `None` = only the driver knows.
    pub(crate) busy_ns: Option<u64>,
    /// By ordinal; empty unless several devices were named.
    #[serde(default)]
    pub(crate) devices: BTreeMap<String, OfDevice>,
}

/// What became of the calls of one function.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(default)]
pub(crate) struct Called {
    pub(crate) calls: u64,
    pub(crate) failed: u64,
    /// Part of `failed`.
    pub(crate) out_of_memory: u64,
    /// Of the calls that succeeded.
    pub(crate) bytes: u64,
    /// Of all calls.
    pub(crate) asked_bytes: u64,
    pub(crate) freed_bytes: u64,
    /// By the kind of the memory that was freed: `device`, `managed`, `virtual`, `stream_ordered`,
    /// `host`, and `imported` for what is no memory of this process.
    pub(crate) freed: BTreeMap<String, Freed>,
}

#[derive(Clone, Copy, Debug, Default, serde::Deserialize)]
pub(crate) struct Freed {
    pub(crate) calls: u64,
    pub(crate) bytes: u64,
}

/// What a workload holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
pub(crate) struct Held {
    /// Device, managed and virtual memory.
    pub(crate) live_bytes: u64,
    pub(crate) peak_bytes: u64,
    pub(crate) stream_ordered_bytes: u64,
    pub(crate) host_bytes: u64,
    pub(crate) host_peak_bytes: u64,
}

/// The calls that had a context of one device.
#[derive(Clone, Debug, Default, serde::Deserialize)]
pub(crate) struct OfDevice {
    calls: BTreeMap<String, Called>,
    memory: Held,
}

#[derive(Debug, serde::Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line {
    Ready {},
    Truth(Truth),
    Checked(Checked),
    Slice(Slice),
}

/// Whether patched functions work.
#[derive(Clone, Debug, serde::Deserialize)]
pub(crate) struct Checked {
    pub(crate) works: bool,
    /// Of an allocation and of its release.
    pub(crate) results: [i32; 2],
    /// Calls that went through a patch.
    pub(crate) intercepted: u64,
}

/// The launches of about a tenth of a second.
#[derive(Clone, Copy, Debug, serde::Deserialize)]
pub(crate) struct Slice {
    /// CLOCK_BOOTTIME at its end.
    pub(crate) boot_ns: u64,
    pub(crate) nanoseconds: u64,
    pub(crate) launches: u64,
}

impl Workload {
    fn start(library: &Path, options: &[&str]) -> Self {
        let mut command = Command::new(artefact("workload"));
        command.arg("--library").arg(library).args(options);
        Self::spawn(command)
    }

    /// One that uses a GPU: it has a device of that name open. Its library is `library`.
    pub(crate) fn on_gpu(folder: &Path, library: &Path, options: &str) -> Self {
        let mut command = Command::new(artefact("workload"));
        command.arg("--library").arg(library).args(options.split_whitespace());
        command.stdin(gpu_device(folder));
        Self::spawn(command)
    }

    /// The same with another library loaded.
    pub(crate) fn beside(other: &Path, library: &Path, options: &str) -> Self {
        let folder = library.parent().expect("a library is in a folder");
        let mut command = Command::new(artefact("workload"));
        command.arg("--library").arg(library).args(options.split_whitespace());
        command.stdin(gpu_device(folder)).env("LD_PRELOAD", other);
        Self::spawn(command)
    }

    /// The same, after shell commands in a mount namespace of its own.
    pub(crate) fn in_namespace(folder: &Path, script: &str, library: &Path, options: &str) -> Self {
        let run = format!("set -e; {script}; exec \"$@\"");
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &run, "sh"]).arg(artefact("workload"));
        command.arg("--library").arg(library).args(options.split_whitespace());
        command.stdin(gpu_device(folder));
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> Self {
        let mut child =
            command.stdout(Stdio::piped()).spawn().expect("the workload can be started");
        let out = child.stdout.take().expect("its output is piped");
        let mut workload = Self { child, lines: BufReader::new(out).lines() };
        assert!(matches!(workload.line(), Some(Line::Ready { .. })), "it says that it is ready");
        workload
    }

    pub(crate) fn tgid(&self) -> u32 {
        self.child.id()
    }

    fn line(&mut self) -> Option<Line> {
        let text = self.lines.next()?.expect("its output can be read");
        Some(serde_json::from_str(&text).expect("the workload prints JSON"))
    }

    /// What it has done so far; it goes on.
    pub(crate) fn truth(&mut self) -> Truth {
        self.signal(Signal::SIGUSR1);
        loop {
            match self.line().expect("it answers") {
                Line::Truth(truth) => return truth,
                Line::Ready {} | Line::Checked(_) | Line::Slice(_) => {}
            }
        }
    }

    /// What it did in all, once its threads have made so many rounds together.
    pub(crate) fn truth_of_rounds(&mut self, rounds: u64) -> Truth {
        let threads = format!("/proc/{}/task", self.tgid());
        let deadline = now() + Duration::from_secs(30);
        loop {
            let have_ended = std::fs::read_dir(&threads).expect("it lives").count() == 1;
            let truth = self.truth();
            if have_ended && truth.called("cuGraphLaunch") == rounds {
                return truth;
            }
            assert!(now() < deadline, "it still works after 30 s");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Has it patch its entries, where it was started so, and says whether they work.
    pub(crate) fn check_patch(&mut self) -> Checked {
        self.signal(Signal::SIGUSR2);
        self.checked()
    }

    /// What a workload says that patched its entries before.
    pub(crate) fn checked(&mut self) -> Checked {
        loop {
            if let Line::Checked(checked) = self.line().expect("it checks") {
                return checked;
            }
        }
    }

    /// The next tenth of a second of launches; `None` when it has ended.
    pub(crate) fn slice(&mut self) -> Option<Slice> {
        loop {
            match self.line()? {
                Line::Slice(slice) => return Some(slice),
                Line::Ready {} | Line::Checked(_) | Line::Truth(_) => {}
            }
        }
    }

    /// Waits for its end; the last truth of each program that it was, of this process only.
    pub(crate) fn finish(mut self) -> Truth {
        let own = self.tgid();
        let truths = self.finish_all();
        truths.into_iter().filter(|it| it.tgid == own).fold(Truth::default(), Truth::plus)
    }

    /// Every truth that is told until its end, children included.
    pub(crate) fn finish_all(&mut self) -> Vec<Truth> {
        let mut truths = Vec::new();
        while let Some(line) = self.line() {
            if let Line::Truth(truth) = line {
                truths.push(truth);
            }
        }
        let status = self.child.wait().expect("a child can be waited for");
        assert!(status.success(), "the workload failed: {status}");
        truths
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.tgid()).expect("a PID fits"));
        kill(pid, signal).expect("the workload lives until it is waited for");
    }

    /// Ends it between two instructions of its own.
    pub(crate) fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().expect("a child can be waited for");
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        // It may have ended already, which is what is wanted.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Truth {
    fn plus(self, other: Self) -> Self {
        let mut sum = Self { calls: self.calls, ..other.clone() };
        for (name, called) in other.calls {
            sum.calls.entry(name).or_default().add(called);
        }
        sum
    }

    /// How often a function succeeded, whatever its variant.
    pub(crate) fn succeeded(&self, symbol: &str) -> u64 {
        self.sum(symbol, |it| it.calls - it.failed)
    }

    pub(crate) fn called(&self, symbol: &str) -> u64 {
        self.sum(symbol, |it| it.calls)
    }

    /// Exported names of what was called.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.calls.keys().map(String::as_str)
    }

    /// Frees of one kind of memory and their bytes, by whatever function.
    pub(crate) fn freed(&self, kind: &str) -> Freed {
        let found = self.calls.values().filter_map(|it| it.freed.get(kind));
        found.fold(Freed::default(), |sum, it| Freed {
            calls: sum.calls + it.calls,
            bytes: sum.bytes + it.bytes,
        })
    }

    /// A function with its variants.
    pub(crate) fn sum(&self, symbol: &str, value: impl Fn(&Called) -> u64) -> u64 {
        let variants = ["", "_ptsz", "_ptds"].map(|it| format!("{symbol}{it}"));
        variants.iter().filter_map(|it| self.calls.get(it)).map(value).sum()
    }

    /// The part that had a context of this device.
    pub(crate) fn on(&self, ordinal: u32) -> Self {
        let part = self.devices.get(&ordinal.to_string()).cloned().unwrap_or_default();
        Self { tgid: self.tgid, calls: part.calls, memory: part.memory, ..Self::default() }
    }
}

impl Called {
    fn add(&mut self, other: Self) {
        for (sum, part) in [
            (&mut self.calls, other.calls),
            (&mut self.failed, other.failed),
            (&mut self.out_of_memory, other.out_of_memory),
            (&mut self.bytes, other.bytes),
            (&mut self.asked_bytes, other.asked_bytes),
            (&mut self.freed_bytes, other.freed_bytes),
        ] {
            *sum += part;
        }
        for (kind, freed) in other.freed {
            let sum = self.freed.entry(kind).or_default();
            sum.calls += freed.calls;
            sum.bytes += freed.bytes;
        }
    }
}

/// Everything but the times, which only the kernel measures.
pub(crate) fn without_wait(mut counts: CudaCounts) -> CudaCounts {
    counts[Counter::SynchronizeWaitNs] = 0;
    counts[Counter::BusyUpperNs] = 0;
    counts[Counter::ModuleLoadNs] = 0;
    counts
}

/// The only life of a process in a reading.
pub(crate) fn only(readings: &CudaReadings, tgid: u32) -> (ProcessId, CudaProcess) {
    let mut lives = readings.processes.iter().filter(|(process, _)| process.tgid == tgid);
    let found = lives.next().unwrap_or_else(|| panic!("process {tgid} is in {readings:#?}"));
    assert_eq!(lives.next(), None, "process {tgid} has one life");
    (*found.0, found.1.clone())
}

/// The final reading of a process.
pub(crate) fn exited(tracer: &mut Tracer, tgid: u32) -> (ProcessId, CudaProcess) {
    exits(tracer, &[tgid]).remove(&tgid).expect("`exits` waits for it")
}

/// The final readings of processes, each of which comes only once.
pub(crate) fn exits(tracer: &mut Tracer, tgids: &[u32]) -> BTreeMap<u32, (ProcessId, CudaProcess)> {
    let mut ended = BTreeMap::new();
    let deadline = now() + Duration::from_secs(10);
    while ended.len() < tgids.len() {
        assert!(now() < deadline, "of {tgids:?} only {ended:#?} have ended after 10 s");
        let readings = tracer.read(clock::boot());
        let final_ones = readings
            .processes
            .into_iter()
            .filter(|(process, it)| it.exited && tgids.contains(&process.tgid));
        ended.extend(final_ones.map(|(process, it)| (process.tgid, (process, it))));
        std::thread::sleep(Duration::from_millis(10));
    }
    ended
}

/// Makes the kernel give out this PID next, unless somebody is faster.
pub(crate) fn next_pid_is(pid: u32) {
    let last = (pid - 1).to_string();
    std::fs::write("/proc/sys/kernel/ns_last_pid", last).expect("root may set the last PID");
}

#[expect(clippy::disallowed_methods, reason = "tests wait for the product")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
