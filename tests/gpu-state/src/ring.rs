//! Busy time in buckets of 100 ms: what a process, or a device, did in the last ten seconds.
//!
//! One bucket is one atomic word, so that a launch needs no lock and a killed process leaves nothing
//! half written. Work that is queued lies in buckets of the future.

use std::sync::atomic::{AtomicU64, Ordering};

/// Length of a bucket.
pub(crate) const BUCKET_NS: u64 = 100_000_000;

/// Buckets in a ring.
pub(crate) const BUCKETS: usize = 128;

/// Buckets of the future that can hold queued work: `process` queues less than six seconds ahead.
const QUEUED: u64 = 60;

/// Buckets of the past that can be read: the others are the future, and the one that is written.
pub(crate) const HISTORY: u64 = BUCKETS as u64 - QUEUED - 1;

/// Busy nanoseconds of one bucket need 27 bits; the bucket's number has the others.
const BUSY_BITS: u32 = 27;

/// Zeroed memory is an empty ring.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Ring([AtomicU64; BUCKETS]);

/// The number of the bucket that contains this time.
pub(crate) fn bucket_of(boot_ns: u64) -> u64 {
    boot_ns / BUCKET_NS
}

impl Ring {
    /// Adds the span `[start, end)` of busy time.
    pub(crate) fn add(&self, start: u64, end: u64) {
        let mut from = start;
        while from < end {
            let bucket = bucket_of(from);
            let to = end.min((bucket + 1) * BUCKET_NS);
            self.change(bucket, |before| before + (to - from));
            from = to;
        }
    }

    /// Busy nanoseconds of one bucket; 0 for one that is no longer, or not yet, in the ring.
    pub(crate) fn busy_ns(&self, bucket: u64) -> u64 {
        let word = self.cell(bucket).load(Ordering::Relaxed);
        if word >> BUSY_BITS == bucket { word & BUSY_MASK } else { 0 }
    }

    /// Takes the busy time of `part` in the buckets after the one that contains `now` out of both
    /// rings, and says how much it was.
    pub(crate) fn take_after(&self, now: u64, part: &Self) -> u64 {
        let mut taken = 0;
        for bucket in Self::after(now) {
            let busy_ns = part.busy_ns(bucket);
            part.change(bucket, |_| 0);
            self.change(bucket, |before| before.saturating_sub(busy_ns));
            taken += busy_ns;
        }
        taken
    }

    /// Whether anything is queued in the buckets after the one that contains `now`.
    pub(crate) fn is_busy_after(&self, now: u64) -> bool {
        Self::after(now).any(|bucket| self.busy_ns(bucket) > 0)
    }

    pub(crate) fn clear(&self) {
        for cell in &self.0 {
            cell.store(0, Ordering::Relaxed);
        }
    }

    /// The buckets that can hold queued work.
    fn after(now: u64) -> impl Iterator<Item = u64> {
        let next = bucket_of(now) + 1;
        next..next + QUEUED
    }

    fn change(&self, bucket: u64, busy_ns: impl Fn(u64) -> u64) {
        let next = |word: u64| {
            let before = if word >> BUSY_BITS == bucket { word & BUSY_MASK } else { 0 };
            Some((bucket << BUSY_BITS) | busy_ns(before).min(BUCKET_NS))
        };
        self.cell(bucket)
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next)
            .expect("the closure always gives a value");
    }

    fn cell(&self, bucket: u64) -> &AtomicU64 {
        let index = usize::try_from(bucket % BUCKETS as u64).expect("less than the ring's length");
        &self.0[index]
    }
}

const BUSY_MASK: u64 = (1 << BUSY_BITS) - 1;
const _: () = assert!(BUCKET_NS <= BUSY_MASK);

#[cfg(test)]
mod tests {
    use super::{BUCKET_NS, BUCKETS, Ring};
    use std::sync::atomic::AtomicU64;

    fn ring() -> Ring {
        Ring(std::array::from_fn(|_| AtomicU64::new(0)))
    }

    #[test]
    fn a_span_is_cut_at_the_buckets() {
        let ring = ring();
        ring.add(BUCKET_NS * 7 - 30, BUCKET_NS * 8 + 5);
        assert_eq!(ring.busy_ns(6), 30);
        assert_eq!(ring.busy_ns(7), BUCKET_NS);
        assert_eq!(ring.busy_ns(8), 5);
        assert_eq!(ring.busy_ns(9), 0);
    }

    #[test]
    fn an_old_bucket_gives_way() {
        let ring = ring();
        ring.add(0, 40);
        let next_round = BUCKETS as u64;
        ring.add(next_round * BUCKET_NS, next_round * BUCKET_NS + 2);
        assert_eq!(ring.busy_ns(0), 0);
        assert_eq!(ring.busy_ns(next_round), 2);
    }
}
