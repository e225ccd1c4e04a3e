//! What one thread does.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::caller::{Caller, Known};
use crate::calls::{
    CALLS, COPIES, Call, EXPORTS, EXTRA, FAILING, IMPLICIT, LAUNCH_KERNEL, LEGACY, NESTING, POP,
    PUSH, SET_CURRENT, SYNCHRONIZE,
};
use crate::cuda::{BATCH, Cuda};
use crate::options::Options;
use crate::pieces::{Pieces, Stopwatch};

/// The longest sleep: a thread looks at least this often whether it shall stop.
const STEP: Duration = Duration::from_millis(20);

/// What all threads of the process share.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    pub(crate) options: &'a Options,
    pub(crate) cuda: &'a Cuda,
    /// What a thread works with in each context, of which there is at least one.
    pub(crate) contexts: Vec<Known>,
    /// Launches that are still to be made; `None` = no end.
    pub(crate) launches_left: Option<AtomicU64>,
    pub(crate) stop: AtomicBool,
    pub(crate) start: Instant,
    /// Of `--flat-out`.
    pub(crate) pieces: Pieces,
}

impl Job<'_> {
    /// Until the work is done or the process is told to stop.
    pub(crate) fn run(&self, thread: usize) -> anyhow::Result<()> {
        let caller = Caller::new(self.cuda, self.context(thread), self.options.recursive);
        caller.must(&SET_CURRENT)?;
        caller.learn(|it| it.is_current = true);
        for round in 0..self.options.rounds {
            if !self.round(&caller, thread, usize::try_from(round)?)? {
                return Ok(());
            }
        }
        let rates = [
            self.options.launches_per_second,
            self.options.copies_per_second,
            self.options.switches_per_second,
        ];
        if rates.iter().any(|it| *it > 0) {
            self.paced(&caller, thread);
        } else if self.launches_left.is_some() {
            self.unpaced(&caller);
        }
        if let Some(length) = self.options.flat_out {
            self.flat_out(&caller, now() + length)?;
        }
        Ok(())
    }

    fn flat_out(&self, caller: &Caller<'_>, end: Instant) -> anyhow::Result<()> {
        let mut stopwatch = Stopwatch::start()?;
        while !self.stopped() && now() < end {
            if !self.cuda.launch_batch(caller, self.options.work_ns) {
                return Ok(());
            }
            if let Some(piece) = stopwatch.lap(BATCH)? {
                self.pieces.add(piece);
            }
        }
        Ok(())
    }

    /// One of each call, in the next context. `false` when the process is told to stop.
    fn round(&self, caller: &Caller<'_>, thread: usize, round: usize) -> anyhow::Result<bool> {
        let switches = self.contexts.len() > 1;
        // In turn: another context instead of the current one, and on top of it.
        let pushes = switches && round % 2 == 1;
        let before = caller.known();
        if switches {
            self.switch(caller, thread + round, if pushes { &PUSH } else { &SET_CURRENT })?;
        }
        for call in self.calls() {
            if self.stopped() {
                return Ok(false);
            }
            caller.make(call);
        }
        if pushes {
            caller.must(&POP)?;
            caller.learn(|it| *it = before);
        }
        Ok(true)
    }

    fn switch(&self, caller: &Caller<'_>, turn: usize, call: &Call) -> anyhow::Result<()> {
        // The call itself is still one of the device before.
        caller.learn(|it| *it = Known { is_current: false, ..self.context(turn) });
        caller.must(call)?;
        caller.learn(|it| it.is_current = true);
        Ok(())
    }

    fn calls(&self) -> impl Iterator<Item = &'static Call> {
        let added: [(bool, &'static [Call]); 6] = [
            (self.options.extra, &EXTRA),
            (self.options.legacy, &LEGACY),
            (self.options.implicit, &IMPLICIT),
            (self.options.exports, &EXPORTS),
            (self.options.fail, &FAILING),
            (self.options.nested, &NESTING),
        ];
        let added = added.into_iter().filter(|it| it.0).flat_map(|it| it.1);
        CALLS.iter().chain(&COPIES).chain(added)
    }

    /// Launches and copies at their rates. Time spent idle earns no calls.
    fn paced(&self, caller: &Caller<'_>, thread: usize) {
        let per_thread = |rate: u64| rate_period(rate, self.options.threads);
        let mut launches = Pace::new(per_thread(self.options.launches_per_second), self.start);
        let mut copies = Pace::new(per_thread(self.options.copies_per_second), self.start);
        let mut switches = Pace::new(per_thread(self.options.switches_per_second), self.start);
        let mut turn = thread;
        let mut copy_kinds = COPIES.iter().cycle();
        let mut made = 0;
        while !self.stopped() {
            let now = now();
            if let Some(idle) = self.options.phases.idle_for(now.duration_since(self.start)) {
                std::thread::sleep(idle.min(STEP));
                launches.skip_to(now);
                copies.skip_to(now);
                switches.skip_to(now);
                continue;
            }
            let mut slept = STEP;
            if launches.due(now) {
                if !self.launch(caller, &mut made) {
                    return;
                }
                slept = Duration::ZERO;
            }
            if copies.due(now) {
                caller.make(copy_kinds.next().expect("a cycle does not end"));
                slept = Duration::ZERO;
            }
            if switches.due(now) {
                turn += 1;
                if self.switch(caller, turn, &SET_CURRENT).is_err() {
                    return;
                }
                slept = Duration::ZERO;
            }
            let next = launches.next_in(now).min(copies.next_in(now)).min(switches.next_in(now));
            std::thread::sleep(slept.min(next));
        }
    }

    fn unpaced(&self, caller: &Caller<'_>) {
        let mut made = 0;
        while !self.stopped() && self.launch(caller, &mut made) {}
    }

    /// `false` when there is none left to make.
    fn launch(&self, caller: &Caller<'_>, made: &mut u64) -> bool {
        if let Some(left) = &self.launches_left {
            let one_less = |it: u64| it.checked_sub(1);
            if left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_err() {
                return false;
            }
        }
        caller.make(&LAUNCH_KERNEL);
        *made += 1;
        let every = self.options.synchronize_every;
        if every > 0 && made.is_multiple_of(every) {
            caller.make(&SYNCHRONIZE);
        }
        true
    }

    fn context(&self, turn: usize) -> Known {
        self.contexts[turn % self.contexts.len()]
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
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
