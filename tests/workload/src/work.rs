//! What one thread does.

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::calls::{CALLS, Call, ROWS, Shape, Side};
use crate::cuda::{Cuda, Entry};
use crate::options::Options;

/// The longest sleep: a thread looks at least this often whether it shall stop.
const STEP: Duration = Duration::from_millis(20);

/// Larger than every copy.
pub(crate) const BUFFER_BYTES: usize = 64 << 10;

/// What all threads of the process share.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    pub(crate) options: &'a Options,
    pub(crate) cuda: &'a Cuda,
    pub(crate) context: u64,
    pub(crate) function: u64,
    pub(crate) event: u64,
    /// Device memory for the copies; two buffers in a row.
    pub(crate) device_buffer: u64,
    /// Host memory for the copies.
    pub(crate) host_buffer: Vec<u8>,
    /// Launches that are still to be made; `None` = no end.
    pub(crate) launches_left: Option<AtomicU64>,
    pub(crate) stop: AtomicBool,
    pub(crate) start: Instant,
}

impl Job<'_> {
    /// Until the work is done or the process is told to stop.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        self.cuda.set_current(self.context)?;
        for _ in 0..self.options.rounds {
            for call in &CALLS {
                if self.stopped() {
                    return Ok(());
                }
                self.call(call);
            }
        }
        if self.options.launches_per_second > 0 || self.options.copies_per_second > 0 {
            self.paced();
        } else if self.launches_left.is_some() {
            self.unpaced();
        }
        Ok(())
    }

    /// Launches and copies at their rates. Time spent idle earns no calls.
    fn paced(&self) {
        let per_thread = |rate: u64| rate_period(rate, self.options.threads);
        let mut launches = Pace::new(per_thread(self.options.launches_per_second), self.start);
        let mut copies = Pace::new(per_thread(self.options.copies_per_second), self.start);
        let mut copy_kinds = CALLS.iter().filter(|it| is_copy(it)).cycle();
        let mut made = 0;
        while !self.stopped() {
            let now = now();
            if let Some(idle) = self.options.phases.idle_for(now.duration_since(self.start)) {
                std::thread::sleep(idle.min(STEP));
                launches.skip_to(now);
                copies.skip_to(now);
                continue;
            }
            let mut slept = STEP;
            if launches.due(now) {
                if !self.launch(&mut made) {
                    return;
                }
                slept = Duration::ZERO;
            }
            if copies.due(now) {
                self.call(copy_kinds.next().expect("a cycle does not end"));
                slept = Duration::ZERO;
            }
            let next = launches.next_in(now).min(copies.next_in(now));
            std::thread::sleep(slept.min(next));
        }
    }

    fn unpaced(&self) {
        let mut made = 0;
        while !self.stopped() && self.launch(&mut made) {}
    }

    /// `false` when there is none left to make.
    fn launch(&self, made: &mut u64) -> bool {
        if let Some(left) = &self.launches_left {
            let one_less = |it: u64| it.checked_sub(1);
            if left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_err() {
                return false;
            }
        }
        self.call(&CALLS[0]);
        *made += 1;
        let every = self.options.synchronize_every;
        if every > 0 && made.is_multiple_of(every) {
            let entry = self.cuda.entry("cuCtxSynchronize");
            self.cuda.count(entry, || (entry.as_nothing()(), 0));
        }
        true
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Makes one call, and undoes it where it took memory.
    fn call(&self, call: &Call) {
        let entry = self.cuda.entry(call.symbol);
        let bytes = call.bytes as u64;
        match call.shape {
            Shape::Launch | Shape::LaunchCooperative => {
                self.cuda.count(entry, || (entry.launch(self.function), 0));
            }
            Shape::LaunchEx => {
                self.cuda.count(entry, || (entry.launch_ex(self.function), 0));
            }
            Shape::LaunchGraph => {
                self.cuda.count(entry, || (entry.as_two_words()(self.function, 0), 0));
            }
            Shape::Copy(to, from) | Shape::CopyAsync(to, from) => {
                let (to, from) = (self.buffer(to, 0), self.buffer(from, BUFFER_BYTES));
                self.cuda.count(entry, || (entry.as_copy()(to, from, call.bytes, 0), bytes));
            }
            Shape::CopyPeer | Shape::CopyPeerAsync => {
                let (to, from) =
                    (self.buffer(Side::Device, 0), self.buffer(Side::Device, BUFFER_BYTES));
                let context = self.context;
                self.cuda.count(entry, || {
                    (entry.as_copy_peer()(to, context, from, context, call.bytes, 0), bytes)
                });
            }
            Shape::Wait => {
                self.cuda.count(entry, || (entry.as_nothing()(), 0));
            }
            Shape::WaitForStream => {
                self.cuda.count(entry, || (entry.as_word()(0), 0));
            }
            Shape::WaitForEvent => {
                self.cuda.count(entry, || (entry.as_word()(self.event), 0));
            }
            Shape::Allocate
            | Shape::AllocateManaged
            | Shape::AllocatePitch
            | Shape::AllocateAsync
            | Shape::AllocateFromPool
            | Shape::CreateHandle => self.allocate(call, entry),
        }
    }

    fn allocate(&self, call: &Call, entry: &Entry) {
        let mut pointer = 0;
        let result =
            self.cuda.count(entry, || allocate(call, entry, &mut pointer, self.options.device));
        if result != 0 {
            return;
        }
        let undo = match call.shape {
            Shape::AllocateAsync | Shape::AllocateFromPool => "cuMemFreeAsync",
            Shape::CreateHandle => "cuMemRelease",
            _ => "cuMemFree_v2",
        };
        let undo = self.cuda.entry(undo);
        self.cuda.count(undo, || (undo.as_two_words()(pointer, 0), 0));
    }

    fn buffer(&self, side: Side, offset: usize) -> u64 {
        match side {
            Side::Host => self.host_buffer.as_ptr().addr() as u64,
            Side::Device => self.device_buffer + offset as u64,
        }
    }
}

/// The result of an allocating call and the bytes that it took.
fn allocate(call: &Call, entry: &Entry, pointer: &mut u64, device: c_int) -> (c_int, u64) {
    let bytes = call.bytes;
    match call.shape {
        Shape::AllocatePitch => {
            let mut pitch = 0;
            let result = entry.as_allocate_pitch()(pointer, &raw mut pitch, bytes, ROWS, 4);
            (result, (pitch * ROWS) as u64)
        }
        Shape::CreateHandle => {
            // Pinned memory on a device, in the words of `CUmemAllocationProp`.
            let ordinal = u32::try_from(device).unwrap_or(0);
            let properties = [1, 0, 1, ordinal, 0, 0, 0, 0];
            (entry.as_create()(pointer, bytes, properties.as_ptr(), 0), bytes as u64)
        }
        // A managed allocation's flags say that any stream may use it; the others take a pool and a
        // stream, of which 0 is the default.
        Shape::AllocateManaged => (entry.as_allocate_with()(pointer, bytes, 1, 0), bytes as u64),
        _ => (entry.as_allocate_with()(pointer, bytes, 0, 0), bytes as u64),
    }
}

fn is_copy(call: &Call) -> bool {
    use Shape::{Copy, CopyAsync, CopyPeer, CopyPeerAsync};
    matches!(call.shape, Copy(..) | CopyAsync(..) | CopyPeer | CopyPeerAsync)
}

/// `None` for a rate of 0.
fn rate_period(per_second: u64, threads: u64) -> Option<Duration> {
    let nanoseconds = (threads.max(1) * 1_000_000_000).checked_div(per_second)?;
    Some(Duration::from_nanos(nanoseconds))
}

#[expect(clippy::disallowed_methods, reason = "this program is not the product")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// When the next call of one kind is due.
#[derive(Debug)]
struct Pace {
    /// `None` = never.
    period: Option<Duration>,
    next: Instant,
}

impl Pace {
    fn new(period: Option<Duration>, start: Instant) -> Self {
        Self { period, next: start }
    }

    fn due(&mut self, now: Instant) -> bool {
        match self.period {
            Some(period) if self.next <= now => {
                self.next += period;
                true
            }
            Some(_) | None => false,
        }
    }

    fn next_in(&self, now: Instant) -> Duration {
        match self.period {
            Some(_) => self.next.saturating_duration_since(now),
            None => STEP,
        }
    }

    fn skip_to(&mut self, now: Instant) {
        self.next = self.next.max(now);
    }
}
