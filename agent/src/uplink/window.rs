//! Which records are under way, and what the collector's answers say about them. Pure.

use std::collections::VecDeque;

/// How often a collector may ask for the same record without taking any: beyond it the two do not
/// understand each other, and a new connection is better than a loop.
const MOST_RESUMES: u32 = 3;

/// Batches that were sent and not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// Number of the next record to send.
    next: u64,
    /// Highest number that was sent on this stream, or that the collector had before.
    highest: u64,
    /// Last number of each batch under way, oldest first.
    under_way: VecDeque<u64>,
    most: usize,
    /// Questions for an earlier record that were asked before the collector saw the answer to the
    /// first of them.
    late_resumes: usize,
    resumes: u32,
}

/// Where the collector stands against this spool at the Welcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It has what it acknowledged, and maybe more that was under way.
    Level,
    /// It has less than it acknowledged: the ledger went back, or is another one.
    Behind,
    /// It has records that this spool has not numbered yet: the spool went back.
    Ahead,
}

/// An answer that makes no sense. The stream ends; nothing is marked as delivered.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum WindowError {
    #[error("the collector acknowledged record {through}, and the last one sent is {highest}")]
    NeverSent { through: u64, highest: u64 },
    #[error("the collector asked for record {next} again and again")]
    Stuck { next: u64 },
}

// === impl Standing ===

impl Standing {
    pub(super) fn of(cursor: u64, sealed_through: u64, acked_through: u64) -> Self {
        if cursor > sealed_through {
            Self::Ahead
        } else if cursor < acked_through {
            Self::Behind
        } else {
            Self::Level
        }
    }
}

// === impl Window ===

impl Window {
    /// After a Welcome with this cursor; at most `most` batches under way.
    pub(super) fn new(cursor: u64, most: usize) -> Self {
        Self {
            next: cursor + 1,
            highest: cursor,
            under_way: VecDeque::new(),
            most: most.max(1),
            late_resumes: 0,
            resumes: 0,
        }
    }

    pub(super) fn next(&self) -> u64 {
        self.next
    }

    pub(super) fn has_room(&self) -> bool {
        self.under_way.len() < self.most
    }

    pub(super) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// The batch that begins with `next` was sent.
    pub(super) fn sent(&mut self, last: u64) {
        self.under_way.push_back(last);
        self.next = last + 1;
        self.highest = self.highest.max(last);
    }

    /// The collector has everything up to `through`.
    pub(super) fn acked(&mut self, through: u64) -> Result<(), WindowError> {
        if through > self.highest {
            return Err(WindowError::NeverSent { through, highest: self.highest });
        }
        self.under_way.retain(|last| *last > through);
        // After a rewind it may turn out to have more than it said.
        self.next = self.next.max(through + 1);
        self.late_resumes = 0;
        self.resumes = 0;
        Ok(())
    }

    /// The collector needs `next`: goes back there. Every batch that was under way behind the gap asks
    /// the same question; only the first one counts.
    pub(super) fn resume(&mut self, next: u64) -> Result<(), WindowError> {
        if self.late_resumes > 0 {
            self.late_resumes -= 1;
            return Ok(());
        }
        self.resumes += 1;
        if self.resumes > MOST_RESUMES {
            return Err(WindowError::Stuck { next });
        }
        self.late_resumes = self.under_way.len().saturating_sub(1);
        self.under_way.clear();
        self.next = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Standing, Window, WindowError};

    #[test]
    fn where_the_collector_stands() {
        assert_eq!(Standing::of(0, 0, 0), Standing::Level);
        assert_eq!(Standing::of(7, 9, 7), Standing::Level);
        assert_eq!(Standing::of(9, 9, 7), Standing::Level);
        assert_eq!(Standing::of(6, 9, 7), Standing::Behind);
        assert_eq!(Standing::of(10, 9, 7), Standing::Ahead);
    }

    #[test]
    fn acknowledgements_are_cumulative() {
        let mut window = Window::new(10, 3);
        [12, 15, 20].into_iter().for_each(|last| window.sent(last));
        assert!(!window.has_room());
        window.acked(15).unwrap();
        assert!(window.has_room() && !window.is_empty());
        window.acked(15).unwrap();
        window.acked(20).unwrap();
        assert!(window.is_empty());
        assert_eq!(window.next(), 21);
        let error = WindowError::NeverSent { through: 21, highest: 20 };
        assert_eq!(window.acked(21), Err(error));
    }

    #[test]
    fn a_gap_is_answered_once() {
        let mut window = Window::new(0, 8);
        [5, 10, 15].into_iter().for_each(|last| window.sent(last));
        window.resume(3).unwrap();
        assert_eq!(window.next(), 3);
        window.sent(15);
        // The batches behind the gap ask too.
        window.resume(3).unwrap();
        window.resume(3).unwrap();
        assert_eq!(window.next(), 16);
        window.acked(15).unwrap();
        assert!(window.is_empty());
    }

    #[test]
    fn a_collector_that_has_more_than_it_said_is_believed() {
        let mut window = Window::new(0, 8);
        window.sent(10);
        window.resume(3).unwrap();
        window.acked(10).unwrap();
        assert_eq!(window.next(), 11);
    }

    #[test]
    fn the_same_question_for_ever_ends_the_stream() {
        let mut window = Window::new(0, 8);
        let answers: Vec<bool> = (0..4)
            .map(|_| {
                window.sent(5);
                window.resume(1).is_ok()
            })
            .collect();
        assert_eq!(answers, [true, true, true, false]);
    }
}
