//! Sums of CUDA activity: what the ledger keeps of it, and in which order.
//!
//! Amounts have no names in the database, only places. A place is for ever; what is new goes to the end,
//! and a list that an earlier version wrote is shorter and means zero for the rest.

use std::ops::{Index, IndexMut};

use proto::cuda::{self, COUNTERS, counters};
use proto::telemetry::v1::CudaCounter;

/// The counters of the first version; the times follow them, then the other counters by number.
const FIRST: [CudaCounter; 18] = [
    CudaCounter::KernelLaunches,
    CudaCounter::GraphLaunches,
    CudaCounter::DeviceAllocations,
    CudaCounter::DeviceAllocatedBytes,
    CudaCounter::DeviceFailed,
    CudaCounter::DeviceFrees,
    CudaCounter::Synchronizations,
    CudaCounter::SynchronizeWaitNs,
    CudaCounter::HostToDeviceCalls,
    CudaCounter::HostToDeviceBytes,
    CudaCounter::DeviceToHostCalls,
    CudaCounter::DeviceToHostBytes,
    CudaCounter::DeviceToDeviceCalls,
    CudaCounter::DeviceToDeviceBytes,
    CudaCounter::UnknownCalls,
    CudaCounter::UnknownBytes,
    CudaCounter::PeerCalls,
    CudaCounter::PeerBytes,
];
const TIMES: usize = 3;
/// How many amounts there are.
const AMOUNTS: usize = COUNTERS + TIMES;

/// Deltas of one record, or running totals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaSums {
    /// By place.
    counts: [u128; AMOUNTS],
    /// Of the activities, which may lie side by side.
    pub span_ns: u128,
    /// How much of it every hook was on.
    pub watched_ns: u128,
    /// How much of it memory calls were counted all along.
    pub memory_ns: u128,
}

/// By number of the counter; place 0 is nobody's.
const PLACES: [usize; COUNTERS + 1] = {
    let mut places = [0; COUNTERS + 1];
    let mut next = FIRST.len() + TIMES;
    let mut number = 1;
    while number <= COUNTERS {
        places[number] = match first(number) {
            Some(place) => place,
            None => {
                next += 1;
                next - 1
            }
        };
        number += 1;
    }
    assert!(next == AMOUNTS, "a counter is in FIRST twice");
    places
};

const fn first(number: usize) -> Option<usize> {
    let mut place = 0;
    while place < FIRST.len() {
        if FIRST[place] as usize == number {
            return Some(place);
        }
        place += 1;
    }
    None
}

// === impl CudaSums ===

impl CudaSums {
    /// As the ledger stores them, without the zeros at the end.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u128> {
        let mut amounts = self.counts.to_vec();
        let times = [self.span_ns, self.watched_ns, self.memory_ns];
        amounts[FIRST.len()..FIRST.len() + TIMES].copy_from_slice(&times);
        let end = amounts.iter().rposition(|it| *it > 0).map_or(0, |it| it + 1);
        amounts.truncate(end);
        amounts
    }

    /// The reverse of `to_vec`. What a later version added is left out.
    #[must_use]
    pub fn from_slice(amounts: &[u128]) -> Self {
        let mut sums = Self::default();
        for (sum, amount) in sums.counts.iter_mut().zip(amounts) {
            *sum = *amount;
        }
        let mut time = |index: usize| std::mem::take(&mut sums.counts[FIRST.len() + index]);
        (sums.span_ns, sums.watched_ns, sums.memory_ns) = (time(0), time(1), time(2));
        sums
    }

    /// What series and clients are made from. They count in 64 bits; the ledger in 128.
    #[must_use]
    pub fn totals(&self) -> cuda::Totals {
        let mut totals = cuda::Totals {
            memory_known: self.memory_ns > 0,
            sampled_ns: self.span_ns.saturating_sub(self.watched_ns),
            ..cuda::Totals::default()
        };
        for counter in counters() {
            totals.counts[counter] = u64::try_from(self[counter]).unwrap_or(u64::MAX);
        }
        totals
    }
}

impl Default for CudaSums {
    fn default() -> Self {
        Self { counts: [0; AMOUNTS], span_ns: 0, watched_ns: 0, memory_ns: 0 }
    }
}

impl Index<CudaCounter> for CudaSums {
    type Output = u128;

    fn index(&self, counter: CudaCounter) -> &u128 {
        &self.counts[place(counter)]
    }
}

impl IndexMut<CudaCounter> for CudaSums {
    fn index_mut(&mut self, counter: CudaCounter) -> &mut u128 {
        &mut self.counts[place(counter)]
    }
}

fn place(counter: CudaCounter) -> usize {
    assert!(counter != CudaCounter::Unspecified, "nobody counts what is unspecified");
    PLACES[counter as usize]
}

#[cfg(test)]
mod tests {
    use super::{AMOUNTS, CudaSums, FIRST, PLACES, TIMES};
    use proto::cuda::counters;
    use proto::telemetry::v1::CudaCounter;
    use std::collections::BTreeSet;

    #[test]
    fn every_counter_has_a_place_of_its_own() {
        let taken: BTreeSet<usize> = PLACES[1..].iter().copied().collect();
        let times = FIRST.len()..FIRST.len() + TIMES;
        assert_eq!(taken, (0..AMOUNTS).filter(|it| !times.contains(it)).collect());
    }

    #[test]
    fn sums_come_back_as_they_were() {
        let mut sums = CudaSums { span_ns: 11, watched_ns: 7, memory_ns: 5, ..CudaSums::default() };
        for (value, counter) in (1_000..).zip(counters()) {
            sums[counter] = value;
        }
        assert_eq!(sums.to_vec().len(), AMOUNTS);
        assert_eq!(CudaSums::from_slice(&sums.to_vec()), sums);
        assert_eq!(sums.totals().sampled_ns, 4);
    }

    #[test]
    fn what_the_first_version_wrote_is_read() {
        let old: Vec<u128> = (1..=18).collect();
        let sums = CudaSums::from_slice(&old);
        assert_eq!((sums[CudaCounter::KernelLaunches], sums[CudaCounter::PeerBytes]), (1, 18));
        assert_eq!((sums[CudaCounter::HostAllocations], sums.span_ns), (0, 0));
        assert!(sums.totals().knows_memory(), "allocations that were counted are known");
        assert_eq!(sums.to_vec(), old);
    }

    #[test]
    fn what_a_later_version_added_is_left_out() {
        let later = vec![1; AMOUNTS + 5];
        assert_eq!(CudaSums::from_slice(&later).to_vec(), vec![1; AMOUNTS]);
    }
}
