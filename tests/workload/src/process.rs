//! The life of the process: prepare, work, tell the truth, and what comes then.
#![expect(unsafe_code, reason = "waits for signals")]

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::waitpid;

use crate::caller::{BUFFER_BYTES, Caller, Known};
use crate::calls::{
    CHECK, CREATE_CONTEXT, CREATE_EVENT, DEFAULT_POOL, DESTROY_CONTEXT, DEVICE_GET, GET_FUNCTION,
    HANDLE, HOLD, INIT, LOAD_MODULE, MADE, MEMORY, POP, RECORD_EVENT, RELEASE, RESET, RETAIN,
    SET_CURRENT,
};
use crate::children::{churn, fork_once};
use crate::cuda::Cuda;
use crate::library::Lookup;
use crate::lines::{Line, print};
use crate::options::{Options, PatchEntry};
use crate::patch;
use crate::pieces::Pieces;
use crate::work::{Job, now};

/// How often the main thread looks whether the work is done.
const STEP: Duration = Duration::from_millis(5);

/// What `--flat-out` counts in.
const SLICE: Duration = Duration::from_millis(100);

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    // Before the first thread: all of them leave these signals to the main thread.
    let watched = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1, Signal::SIGUSR2];
    let signals = SigSet::from_iter(watched);
    signals.thread_block().context("cannot block signals")?;
    let lookup = Lookup { per_thread: options.per_thread, proc_address: options.proc_address };
    let shared = options.churn.is_some();
    let cuda = Cuda::open(&options.library, lookup, &options.devices, shared)?;
    if options.patch_entry == Some(PatchEntry::Before) {
        patch::patch(&cuda)?;
    }
    if let Some(count) = options.churn {
        let pid = std::process::id();
        print(&Line::Ready { pid })?;
        churn(count, options.at_a_time, || alone(options, &cuda))?;
        return print(&Line::Truth { pid, truth: cuda.truth(options.kernel_us) });
    }
    let child = if options.fork { fork_once()? } else { None };
    let ended = work(options, &cuda, &signals);
    if let Some(child) = child {
        waitpid(child, None).context("cannot wait for the child")?;
    }
    ended?;
    become_next(options, &signals)
}

/// The work in this thread, and nobody watches.
fn alone(options: &Options, cuda: &Cuda) -> anyhow::Result<()> {
    let (job, main) = prepare(options, cuda)?;
    job.run(0)?;
    put_away(options, &job, &main)
}

fn work(options: &Options, cuda: &Cuda, signals: &SigSet) -> anyhow::Result<()> {
    let (job, main) = prepare(options, cuda)?;
    print(&Line::Ready { pid: std::process::id() })?;
    if options.patch_entry == Some(PatchEntry::Before) {
        print(&check_patch(&main))?;
    }
    let ended = std::thread::scope(|scope| {
        let run = |it| job.run(usize::try_from(it).expect("there are few threads"));
        let threads: Vec<_> = (0..options.threads).map(|it| scope.spawn(move || run(it))).collect();
        let done = || threads.iter().all(|it| it.is_finished());
        let watched = watch(&job, &main, signals, done);
        job.stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().expect("a thread's panic is this program's")?;
        }
        watched
    });
    ended?;
    put_away(options, &job, &main)?;
    print(&Line::Truth { pid: std::process::id(), truth: cuda.truth(options.kernel_us) })
}

/// Opens every context that the threads go between, and takes what shall be held.
fn prepare<'a>(options: &'a Options, cuda: &'a Cuda) -> anyhow::Result<(Job<'a>, Caller<'a>)> {
    let main = Caller::new(cuda, strings(options)?, false);
    main.must(&INIT)?;
    let mut contexts = Vec::new();
    for turn in 0..options.contexts.max(1) {
        for ordinal in options.ordinals() {
            main.learn(|it| it.ordinal = ordinal);
            open(&main, turn)?;
            if turn == 0 {
                supply(&main)?;
            } else {
                let same = contexts.iter().find(|it: &&Known| it.ordinal == ordinal);
                let first = *same.context("the first turn opened each device")?;
                main.learn(|it| *it = Known { context: it.context, ..first });
            }
            contexts.push(main.known());
        }
    }
    main.learn(|it| *it = contexts[0]);
    main.must(&SET_CURRENT)?;
    if options.memory_mib > 0 {
        for _ in 0..options.pieces.max(1) {
            main.must_with(&HOLD, (options.memory_mib << 20) / options.pieces.max(1))?;
        }
    }
    let job = Job {
        options,
        cuda,
        contexts,
        launches_left: options.launches.map(AtomicU64::new),
        stop: AtomicBool::new(false),
        start: now(),
        pieces: Pieces::default(),
    };
    Ok((job, main))
}

/// Names that the driver is given, and memory for copies; kept to the end of the process.
fn strings(options: &Options) -> anyhow::Result<Known> {
    let name = match (options.kernel_us, options.flat_out) {
        (0, None) => "busy".to_owned(),
        (microseconds, _) => format!("busy_{microseconds}us"),
    };
    let image = format!(
        ".version 6.4\n.target sm_50\n.address_size 64\n.visible .entry {name}() {{ ret; }}\n"
    );
    let keep = |text: String| -> anyhow::Result<u64> {
        let text = CString::new(text).context("a kernel's name has no zero in it")?;
        Ok(text.into_raw().expose_provenance() as u64)
    };
    let buffer: &'static mut [u8] = vec![0; BUFFER_BYTES].leak();
    let host_buffer = buffer.as_ptr().expose_provenance() as u64;
    Ok(Known { image: keep(image)?, kernel_name: keep(name)?, host_buffer, ..Known::default() })
}

/// The primary context on the first turn, one of its own on each other; it is current then.
fn open(main: &Caller<'_>, turn: usize) -> anyhow::Result<()> {
    main.learn(|it| it.is_current = false);
    match turn.checked_sub(1) {
        None => {
            main.must(&DEVICE_GET)?;
            main.must(&RETAIN)?;
            main.learn(|it| it.context = main.held(MADE));
            main.must(&SET_CURRENT)?;
        }
        Some(made) => {
            main.must(&CREATE_CONTEXT[made % CREATE_CONTEXT.len()])?;
            main.learn(|it| it.context = main.held(MADE));
            // It was put on top of the one before, which stays below.
            main.must(&POP)?;
        }
    }
    main.learn(|it| it.is_current = true);
    Ok(())
}

/// What calls on this device need.
fn supply(main: &Caller<'_>) -> anyhow::Result<()> {
    main.must(&DEFAULT_POOL)?;
    main.learn(|it| it.pool = main.held(MADE));
    main.must(&LOAD_MODULE)?;
    main.must(&GET_FUNCTION)?;
    main.learn(|it| it.function = main.held(HANDLE));
    main.must(&CREATE_EVENT)?;
    main.learn(|it| it.event = main.held(MADE));
    main.must(&RECORD_EVENT)?;
    main.must_with(&HOLD, 2 * BUFFER_BYTES)?;
    main.learn(|it| it.device_buffer = main.held(MEMORY));
    Ok(())
}

fn put_away(options: &Options, job: &Job<'_>, main: &Caller<'_>) -> anyhow::Result<()> {
    let devices = options.ordinals().len();
    for known in job.contexts.iter().skip(devices) {
        main.learn(|it| *it = *known);
        main.must(&DESTROY_CONTEXT)?;
    }
    if options.reset {
        for known in &job.contexts[..devices] {
            main.learn(|it| *it = *known);
            main.must(&RESET)?;
        }
    }
    Ok(())
}

/// All memory goes with the last reference to each.
fn release(job: &Job<'_>, main: &Caller<'_>) -> anyhow::Result<()> {
    for known in &job.contexts[..job.options.ordinals().len()] {
        main.learn(|it| *it = *known);
        main.must(&RELEASE)?;
    }
    Ok(())
}

/// Answers signals until one of them ends the work, or it is done and nothing is to be held.
fn watch(
    job: &Job<'_>,
    main: &Caller<'_>,
    signals: &SigSet,
    done: impl Fn() -> bool,
) -> anyhow::Result<()> {
    let mut patched = job.options.patch_entry == Some(PatchEntry::Before);
    let mut slices = Slices::new(job);
    let mut released = !job.options.release;
    loop {
        match next_signal(signals)? {
            Some(Signal::SIGUSR1) => {
                let truth = job.cuda.truth(job.options.kernel_us);
                print(&Line::Truth { pid: std::process::id(), truth })?;
            }
            Some(Signal::SIGUSR2) => {
                if !patched && job.options.patch_entry == Some(PatchEntry::OnSignal) {
                    patch::patch(job.cuda)?;
                    patched = true;
                }
                print(&check_patch(main))?;
            }
            Some(_) => return Ok(()),
            None if done() && !released => {
                release(job, main)?;
                released = true;
            }
            None if done() && !job.options.hold => return Ok(()),
            None => slices.tell(job)?,
        }
    }
}

/// Whether the patched functions work.
fn check_patch(main: &Caller<'_>) -> Line {
    let [allocated, freed] = CHECK.map(|it| main.make(&it).unwrap_or(-1));
    let works = (allocated, freed) == (0, 0);
    Line::Checked {
        pid: std::process::id(),
        works,
        results: [allocated, freed],
        intercepted: patch::intercepted(),
    }
}

/// The launches of each tenth of a second, while there shall be as many as can be.
struct Slices {
    began: Option<Instant>,
    launches: u64,
    cpu_ns: u64,
}

impl Slices {
    fn new(job: &Job<'_>) -> Self {
        let launches = job.cuda.calls("cuLaunchKernel");
        Self { began: job.options.flat_out.map(|_| now()), launches, cpu_ns: 0 }
    }

    fn tell(&mut self, job: &Job<'_>) -> anyhow::Result<()> {
        let Some(began) = self.began else { return Ok(()) };
        let now = now();
        let nanoseconds = u64::try_from(now.duration_since(began).as_nanos())?;
        if nanoseconds < u64::try_from(SLICE.as_nanos())? {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.launches, job.cuda.calls("cuLaunchKernel"));
        self.began = Some(now);
        let launches = self.launches - before;
        let cpu_now = cpu_ns()?;
        let cpu_ns = cpu_now - std::mem::replace(&mut self.cpu_ns, cpu_now);
        // Nanoseconds are few enough, and launches too.
        let per_second = u128::from(launches) * 1_000_000_000 / u128::from(nanoseconds);
        print(&Line::Slice {
            boot_ns: boot_ns()?,
            nanoseconds,
            cpu_ns,
            launches,
            per_second: u64::try_from(per_second)?,
            took: job.pieces.take(),
        })
    }
}

fn boot_ns() -> anyhow::Result<u64> {
    clock_ns(nix::time::ClockId::CLOCK_BOOTTIME)
}

/// Of the calling thread.
pub(crate) fn thread_cpu_ns() -> anyhow::Result<u64> {
    clock_ns(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)
}

/// Of all threads.
fn cpu_ns() -> anyhow::Result<u64> {
    clock_ns(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID)
}

fn clock_ns(clock: nix::time::ClockId) -> anyhow::Result<u64> {
    let now = nix::time::clock_gettime(clock)?;
    Ok(u64::try_from(Duration::from(now).as_nanos())?)
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
