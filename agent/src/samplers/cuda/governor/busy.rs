//! The upper bound of the busy time while launches are not all seen.
//!
//! The kernel ends a span of pending work at a wait that no launch can have outlived, as far as it sees
//! launches. While their hooks are off it does not: what remains an upper bound is all of the time. And
//! for some time after: work of launches that nobody saw may be pending until a wait says otherwise.

use crate::model::units::BootNs;

/// From when launches were taken off a process until the kernel knows again what is pending.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unknown {
    /// Up to when it is added, and what the kernel said then.
    at: BootNs,
    kernel_ns: u64,
    /// Launches have been seen all along since then.
    seen: bool,
}

impl Unknown {
    pub(super) fn new(at: BootNs, kernel_ns: u64) -> Self {
        Self { at, kernel_ns, seen: false }
    }

    /// Launches are not seen any more.
    pub(super) fn again(&mut self) {
        self.seen = false;
    }

    /// What is to be added to what the kernel says, and whether more will be.
    pub(super) fn advance(&mut self, at: BootNs, kernel_ns: u64, sees: bool) -> (u64, bool) {
        let known = kernel_ns.saturating_sub(self.kernel_ns);
        let added = at.since(self.at).saturating_sub(known);
        // A span was open at some moment since launches are seen: nothing but a wait for all work
        // ends it, that of launches which nobody saw too.
        let over = self.seen && sees && known > 0;
        *self = Self { at: self.at.max(at), kernel_ns: self.kernel_ns.max(kernel_ns), seen: sees };
        (added, !over)
    }
}

#[cfg(test)]
mod tests {
    use super::{BootNs, Unknown};

    /// Clock, what the kernel says, whether all launches are seen; and the sum that is added.
    fn check(steps: &[(u64, u64, bool)], expected: u64, expected_more: bool) {
        let mut unknown = Unknown::new(BootNs(1_000), 50);
        let (mut sum, mut more) = (0, true);
        for (at, kernel_ns, sees) in steps {
            let (added, goes_on) = unknown.advance(BootNs(*at), *kernel_ns, *sees);
            (sum, more) = (sum + added, goes_on);
        }
        assert_eq!((sum, more), (expected, expected_more), "{steps:?}");
    }

    #[test]
    fn all_of_the_time_counts_once() {
        check(&[(1_100, 50, false)], 100, true);
        check(&[(1_100, 80, false), (1_200, 180, false)], 70, true);
    }

    #[test]
    fn it_lasts_until_the_kernel_has_seen_a_span_since_it_sees_launches() {
        check(&[(1_100, 90, true)], 60, true);
        check(&[(1_100, 90, true), (1_200, 90, true)], 160, true);
        check(&[(1_100, 90, true), (1_200, 91, true)], 159, false);
        check(&[(1_100, 90, true), (1_200, 95, false), (1_300, 99, true)], 251, true);
    }
}
