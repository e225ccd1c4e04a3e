//! The life of the process: prepare, work, tell the truth, and what comes then.
#![expect(unsafe_code, reason = "forks")]

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};
use serde::Serialize;

use crate::cuda::{Counted, Cuda, Lookup};
use crate::options::Options;
use crate::work::{BUFFER_BYTES, Job, now};

/// One line of standard output.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line {
    Ready { pid: u32 },
    Truth { pid: u32, calls: BTreeMap<String, Counted> },
}

/// How often the main thread looks whether the work is done.
const STEP: Duration = Duration::from_millis(5);

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    // Before the first thread: all of them leave these signals to the main thread.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1]);
    signals.thread_block().context("cannot block signals")?;
    let lookup = Lookup { per_thread: options.per_thread, proc_address: options.proc_address };
    let cuda = Cuda::open(&options.library, lookup)?;
    let child = if options.fork { fork_once()? } else { None };
    let ended = work(options, &cuda, &signals);
    if let Some(child) = child {
        waitpid(child, None).context("cannot wait for the child")?;
    }
    ended?;
    become_next(options, &signals)
}

fn work(options: &Options, cuda: &Cuda, signals: &SigSet) -> anyhow::Result<()> {
    let job = prepare(options, cuda)?;
    print(&Line::Ready { pid: std::process::id() })?;
    let ended = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..options.threads).map(|_| scope.spawn(|| job.run())).collect();
        let watched = watch(options, &job, signals, || threads.iter().all(|it| it.is_finished()));
        job.stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().expect("a thread's panic is this program's")?;
        }
        watched
    });
    ended?;
    print(&Line::Truth { pid: std::process::id(), calls: cuda.truth() })
}

fn prepare<'a>(options: &'a Options, cuda: &'a Cuda) -> anyhow::Result<Job<'a>> {
    cuda.init()?;
    let context = cuda.retain(options.device)?;
    cuda.set_current(context)?;
    let kernel = match options.kernel_us {
        0 => "busy".to_owned(),
        microseconds => format!("busy_{microseconds}us"),
    };
    let function = cuda.function(&kernel)?;
    let event = cuda.event()?;
    let device_buffer = cuda.allocate(2 * BUFFER_BYTES)?;
    if options.memory_mib > 0 {
        cuda.allocate(options.memory_mib << 20)?;
    }
    Ok(Job {
        options,
        cuda,
        context,
        function,
        event,
        device_buffer,
        host_buffer: vec![0; BUFFER_BYTES],
        launches_left: options.launches.map(AtomicU64::new),
        stop: AtomicBool::new(false),
        start: now(),
    })
}

/// Answers signals until one of them ends the work, or it is done and nothing is to be held.
fn watch(
    options: &Options,
    job: &Job<'_>,
    signals: &SigSet,
    done: impl Fn() -> bool,
) -> anyhow::Result<()> {
    loop {
        match next_signal(signals)? {
            Some(Signal::SIGUSR1) => {
                print(&Line::Truth { pid: std::process::id(), calls: job.cuda.truth() })?;
            }
            Some(_) => return Ok(()),
            None if done() && !options.hold => return Ok(()),
            None => {}
        }
    }
}

/// Waits one step for a signal.
fn next_signal(signals: &SigSet) -> anyhow::Result<Option<Signal>> {
    let step = libc::timespec { tv_sec: 0, tv_nsec: i64::from(STEP.subsec_nanos()) };
    // SAFETY: both pointers are valid, and no information is asked for.
    let signal =
        unsafe { libc::sigtimedwait(signals.as_ref(), std::ptr::null_mut(), &raw const step) };
    match Errno::result(signal) {
        Ok(number) => Ok(Some(Signal::try_from(number)?)),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
        Err(error) => Err(error).context("cannot wait for a signal"),
    }
}

/// The child's PID in the parent, `None` in the child.
fn fork_once() -> anyhow::Result<Option<Pid>> {
    // SAFETY: this process has one thread yet.
    match unsafe { fork() }.context("cannot fork")? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}

fn become_next(options: &Options, signals: &SigSet) -> anyhow::Result<()> {
    if options.then.is_empty() {
        return Ok(());
    }
    signals.thread_unblock().context("cannot unblock signals")?;
    let itself = std::env::current_exe().context("this program has no name")?;
    let itself = CString::new(itself.as_os_str().as_bytes())?;
    let arguments = options.then.iter().map(|it| CString::new(it.as_bytes()));
    let arguments: Vec<CString> =
        std::iter::once(Ok(itself.clone())).chain(arguments).collect::<Result<_, _>>()?;
    nix::unistd::execv(&itself, &arguments).context("cannot become the next program")?;
    Ok(())
}

/// In one write: a parent and its child print into the same pipe, which keeps 4 KiB together.
fn print(line: &Line) -> anyhow::Result<()> {
    let mut text = serde_json::to_vec(line).context("cannot print")?;
    text.push(b'\n');
    let mut out = std::io::stdout().lock();
    out.write_all(&text).context("cannot print")?;
    out.flush().context("cannot print")
}
