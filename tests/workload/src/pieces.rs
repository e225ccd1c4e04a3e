//! How long launches take, millisecond by millisecond.
//!
//! Whatever disturbs a program now and then (a window of the governor, an interrupt) takes time of few
//! milliseconds, and the middle one shows what the rest would have taken: on this machine, at this
//! moment. Two runs one after the other differ by more than a disturbance costs.

use std::sync::Mutex;
use std::time::Instant;

use crate::lines::Took;
use crate::process::thread_cpu_ns;
use crate::work::now;

/// Long beside what reading the clocks takes, short beside the time between two windows.
const LENGTH_NS: u64 = 1_000_000;

/// About a millisecond of launches of one thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    launches: u64,
    wall_ns: u64,
    cpu_ns: u64,
}

/// Of all threads, since they were last asked for.
#[derive(Debug, Default)]
pub(crate) struct Pieces(Mutex<Vec<Piece>>);

/// One thread's.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    began: Instant,
    cpu_ns: u64,
    launches: u64,
}

// === impl Pieces ===

impl Pieces {
    pub(crate) fn add(&self, piece: Piece) {
        self.0.lock().expect("nothing panics while it is held").push(piece);
    }

    pub(crate) fn take(&self) -> Option<Took> {
        let pieces = std::mem::take(&mut *self.0.lock().expect("nothing panics while it is held"));
        took(&pieces)
    }
}

// === impl Stopwatch ===

impl Stopwatch {
    pub(crate) fn start() -> anyhow::Result<Self> {
        Ok(Self { began: now(), cpu_ns: thread_cpu_ns()?, launches: 0 })
    }

    /// So many launches more. `Some` when a piece is full.
    pub(crate) fn lap(&mut self, launches: u64) -> anyhow::Result<Option<Piece>> {
        self.launches += launches;
        let wall_ns = u64::try_from(self.began.elapsed().as_nanos())?;
        if wall_ns < LENGTH_NS {
            return Ok(None);
        }
        let last = std::mem::replace(self, Self::start()?);
        let cpu_ns = self.cpu_ns - last.cpu_ns;
        Ok(Some(Piece { launches: last.launches, wall_ns, cpu_ns }))
    }
}

fn took(pieces: &[Piece]) -> Option<Took> {
    let sum = |of: fn(&Piece) -> u64| pieces.iter().map(of).sum::<u64>();
    let launches = sum(|it| it.launches);
    Some(Took {
        wall_ns: sum(|it| it.wall_ns),
        wall_at_middle_ns: at_middle(pieces, launches, |it| it.wall_ns)?,
        cpu_ns: sum(|it| it.cpu_ns),
        cpu_at_middle_ns: at_middle(pieces, launches, |it| it.cpu_ns)?,
    })
}

/// What so many launches take where each takes as long as in the middle piece. `None` = there is none.
fn at_middle(pieces: &[Piece], launches: u64, of: fn(&Piece) -> u64) -> Option<u64> {
    let picoseconds = |it: &Piece| of(it) * 1_000 / it.launches.max(1);
    let mut each: Vec<u64> = pieces.iter().map(picoseconds).collect();
    each.sort_unstable();
    let middle = each.get(each.len() / 2)?;
    Some(middle * launches / 1_000)
}

#[cfg(test)]
mod tests {
    use super::{Piece, took};

    fn piece(launches: u64, wall_ns: u64, cpu_ns: u64) -> Piece {
        Piece { launches, wall_ns, cpu_ns }
    }

    #[test]
    fn a_disturbance_shows_beside_the_middle() {
        let quiet = piece(1_000, 1_000_000, 900_000);
        let hit = piece(100, 1_000_000, 1_000_000);
        let took = took(&[quiet, quiet, hit, quiet]).unwrap();
        assert_eq!((took.wall_ns, took.cpu_ns), (4_000_000, 3_700_000));
        assert_eq!((took.wall_at_middle_ns, took.cpu_at_middle_ns), (3_100_000, 2_790_000));
    }

    #[test]
    fn nothing_took_nothing() {
        assert_eq!(took(&[]), None);
    }
}
