//! Counts of CUDA calls: the wire's sparse list as an array, and the names of counters and losses.

use std::ops::{Index, IndexMut};

use crate::telemetry::v1::{CudaCount, CudaCounter, CudaCounts};

/// How many counters there are. Their numbers on the wire are 1 to this.
pub const COUNTERS: usize = CudaCounter::Exports as usize;

/// Why counts or records lost their owner. Bounds a label: what is not here is `other`.
pub const LOSS_CAUSES: [&str; 13] = [
    "calls",
    "records",
    "results",
    "processes",
    "allocations",
    "contexts",
    "sizes",
    "cgroups",
    "accounts",
    "ends",
    "looks",
    "waits",
    "other",
];

/// A count for each counter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts([u64; COUNTERS]);

/// What was counted of a tenant or a device since the counting began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub counts: Counts,
    /// Memory calls were counted at some time, so that none of them means zero.
    pub memory_known: bool,
    /// Time in which not every hook was on: what was counted in it is scaled or too small.
    pub sampled_ns: u128,
}

/// Every counter, in the order of their numbers.
pub fn counters() -> impl Iterator<Item = CudaCounter> {
    (1..).map_while(|it| CudaCounter::try_from(it).ok())
}

/// A counter as programs read it: `kernel_launches`.
#[must_use]
pub fn name(counter: CudaCounter) -> String {
    counter.as_str_name().to_ascii_lowercase()
}

/// Whether a counter says something only where memory calls are counted.
#[must_use]
pub fn is_of_memory(counter: CudaCounter) -> bool {
    (CudaCounter::DeviceAllocations..=CudaCounter::Imports).contains(&counter)
        || matches!(counter, CudaCounter::HandleRetains | CudaCounter::Exports)
}

/// A cause as a label: one of a fixed list.
#[must_use]
pub fn loss_cause(text: &str) -> &'static str {
    LOSS_CAUSES.into_iter().find(|it| *it == text).unwrap_or("other")
}

// === impl Counts ===

impl Counts {
    /// The counters of a message that this version does not know are left out.
    #[must_use]
    pub fn of(message: &CudaCounts) -> Self {
        let mut counts = Self::default();
        for count in &message.counts {
            if let Some(sum) = place(count.counter()).and_then(|it| counts.0.get_mut(it)) {
                *sum = sum.saturating_add(count.value);
            }
        }
        counts
    }

    /// Only what is not zero.
    #[must_use]
    pub fn message(&self) -> CudaCounts {
        let counted = counters().zip(self.0).filter(|(_, value)| *value > 0);
        let counts =
            counted.map(|(counter, value)| CudaCount { counter: counter.into(), value }).collect();
        CudaCounts { counts }
    }

    /// Launches of every kind that put work on a device. Host functions do not.
    #[must_use]
    pub fn launches(&self) -> u64 {
        [CudaCounter::KernelLaunches, CudaCounter::CooperativeLaunches, CudaCounter::GraphLaunches]
            .into_iter()
            .fold(0, |sum, it| sum.saturating_add(self[it]))
    }

    /// Bytes of copies in every direction.
    #[must_use]
    pub fn copied_bytes(&self) -> u64 {
        [
            CudaCounter::HostToDeviceBytes,
            CudaCounter::DeviceToHostBytes,
            CudaCounter::DeviceToDeviceBytes,
            CudaCounter::UnknownBytes,
            CudaCounter::PeerBytes,
        ]
        .into_iter()
        .fold(0, |sum, it| sum.saturating_add(self[it]))
    }

    /// Whether a memory call was counted.
    #[must_use]
    pub fn has_memory(&self) -> bool {
        counters().filter(|it| is_of_memory(*it)).any(|it| self[it] > 0)
    }
}

impl Default for Counts {
    fn default() -> Self {
        Self([0; COUNTERS])
    }
}

/// Zero where the counter is the one that stands for none.
impl Index<CudaCounter> for Counts {
    type Output = u64;

    fn index(&self, counter: CudaCounter) -> &u64 {
        place(counter).and_then(|it| self.0.get(it)).unwrap_or(&0)
    }
}

impl IndexMut<CudaCounter> for Counts {
    fn index_mut(&mut self, counter: CudaCounter) -> &mut u64 {
        let place = place(counter).expect("nobody counts what is unspecified");
        &mut self.0[place]
    }
}

fn place(counter: CudaCounter) -> Option<usize> {
    (counter as usize).checked_sub(1)
}

// === impl Totals ===

impl Totals {
    /// Whether a memory counter that is zero was measured as zero.
    #[must_use]
    pub fn knows_memory(&self) -> bool {
        self.memory_known || self.counts.has_memory()
    }
}

#[cfg(test)]
mod tests {
    use super::{COUNTERS, Counts, counters, is_of_memory, loss_cause, name};
    use crate::telemetry::v1::{CudaCount, CudaCounter, CudaCounts};

    #[test]
    fn every_number_has_a_counter() {
        assert_eq!(counters().count(), COUNTERS, "none is missing, none comes later");
        assert_eq!(counters().last().map(|it| it as usize), Some(COUNTERS));
    }

    #[test]
    fn a_message_holds_what_is_not_zero() {
        let mut counts = Counts::default();
        counts[CudaCounter::GraphLaunches] = 3;
        counts[CudaCounter::HostFunctions] = 5;
        counts[CudaCounter::ContextSwitches] = u64::MAX;
        let message = counts.message();
        assert_eq!(message.counts.len(), 3);
        assert_eq!(Counts::of(&message), counts);
        assert_eq!((counts.launches(), counts.has_memory()), (3, false));
    }

    #[test]
    fn a_counter_of_a_later_version_is_nobodys() {
        let counts = vec![CudaCount { counter: 9_999, value: 7 }];
        assert_eq!(Counts::of(&CudaCounts { counts }), Counts::default());
    }

    #[test]
    fn names_are_those_of_the_schema() {
        assert_eq!(name(CudaCounter::SynchronizeWaitNs), "synchronize_wait_ns");
        assert!(is_of_memory(CudaCounter::UnmappedBytes));
        assert!(!is_of_memory(CudaCounter::HostToDeviceCalls));
        assert_eq!((loss_cause("records"), loss_cause("rm -rf")), ("records", "other"));
    }
}
