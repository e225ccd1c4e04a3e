//! Counts of CUDA calls on the wire: which counter of the kernel is which of the schema.

use proto::cuda::Counts;
use proto::telemetry::v1::{self, CudaCounter as Wire};

use crate::model::readings::{COUNTERS, Counter, CudaCounts};
use crate::record::{RecordError, unknown};

/// In the order of `Counter`, so that none can be forgotten.
const WIRE: [(Counter, Wire); COUNTERS] = [
    (Counter::KernelLaunches, Wire::KernelLaunches),
    (Counter::CooperativeLaunches, Wire::CooperativeLaunches),
    (Counter::GraphLaunches, Wire::GraphLaunches),
    (Counter::HostFunctions, Wire::HostFunctions),
    (Counter::DeviceAllocations, Wire::DeviceAllocations),
    (Counter::DeviceAllocatedBytes, Wire::DeviceAllocatedBytes),
    (Counter::DeviceFailed, Wire::DeviceFailed),
    (Counter::DeviceOutOfMemory, Wire::DeviceOutOfMemory),
    (Counter::DeviceFrees, Wire::DeviceFrees),
    (Counter::DeviceFreedBytes, Wire::DeviceFreedBytes),
    (Counter::ManagedAllocations, Wire::ManagedAllocations),
    (Counter::ManagedAllocatedBytes, Wire::ManagedAllocatedBytes),
    (Counter::ManagedFailed, Wire::ManagedFailed),
    (Counter::ManagedOutOfMemory, Wire::ManagedOutOfMemory),
    (Counter::ManagedFrees, Wire::ManagedFrees),
    (Counter::ManagedFreedBytes, Wire::ManagedFreedBytes),
    (Counter::VirtualAllocations, Wire::VirtualAllocations),
    (Counter::VirtualAllocatedBytes, Wire::VirtualAllocatedBytes),
    (Counter::VirtualFailed, Wire::VirtualFailed),
    (Counter::VirtualOutOfMemory, Wire::VirtualOutOfMemory),
    (Counter::VirtualFrees, Wire::VirtualFrees),
    (Counter::VirtualFreedBytes, Wire::VirtualFreedBytes),
    (Counter::StreamOrderedAllocations, Wire::StreamOrderedAllocations),
    (Counter::StreamOrderedAllocatedBytes, Wire::StreamOrderedAllocatedBytes),
    (Counter::StreamOrderedFailed, Wire::StreamOrderedFailed),
    (Counter::StreamOrderedOutOfMemory, Wire::StreamOrderedOutOfMemory),
    (Counter::StreamOrderedFrees, Wire::StreamOrderedFrees),
    (Counter::StreamOrderedFreedBytes, Wire::StreamOrderedFreedBytes),
    (Counter::HostAllocations, Wire::HostAllocations),
    (Counter::HostAllocatedBytes, Wire::HostAllocatedBytes),
    (Counter::HostFailed, Wire::HostFailed),
    (Counter::HostOutOfMemory, Wire::HostOutOfMemory),
    (Counter::HostFrees, Wire::HostFrees),
    (Counter::HostFreedBytes, Wire::HostFreedBytes),
    (Counter::Maps, Wire::Maps),
    (Counter::MappedBytes, Wire::MappedBytes),
    (Counter::Unmaps, Wire::Unmaps),
    (Counter::UnmappedBytes, Wire::UnmappedBytes),
    (Counter::Imports, Wire::Imports),
    (Counter::HostToDeviceCalls, Wire::HostToDeviceCalls),
    (Counter::HostToDeviceBytes, Wire::HostToDeviceBytes),
    (Counter::DeviceToHostCalls, Wire::DeviceToHostCalls),
    (Counter::DeviceToHostBytes, Wire::DeviceToHostBytes),
    (Counter::DeviceToDeviceCalls, Wire::DeviceToDeviceCalls),
    (Counter::DeviceToDeviceBytes, Wire::DeviceToDeviceBytes),
    (Counter::UnknownCalls, Wire::UnknownCalls),
    (Counter::UnknownBytes, Wire::UnknownBytes),
    (Counter::PeerCalls, Wire::PeerCalls),
    (Counter::PeerBytes, Wire::PeerBytes),
    (Counter::Memsets, Wire::Memsets),
    (Counter::MemsetBytes, Wire::MemsetBytes),
    (Counter::Synchronizations, Wire::Synchronizations),
    (Counter::SynchronizeWaitNs, Wire::SynchronizeWaitNs),
    (Counter::BusyUpperNs, Wire::BusyUpperNs),
    (Counter::EventRecords, Wire::EventRecords),
    (Counter::Queries, Wire::Queries),
    (Counter::ModuleLoads, Wire::ModuleLoads),
    (Counter::ModuleLoadNs, Wire::ModuleLoadNs),
    (Counter::Contexts, Wire::Contexts),
    (Counter::ContextsDestroyed, Wire::ContextsDestroyed),
    (Counter::Streams, Wire::Streams),
    (Counter::ContextSwitches, Wire::ContextSwitches),
    (Counter::HandleRetains, Wire::HandleRetains),
    (Counter::Exports, Wire::Exports),
];

const _: () = {
    let mut index = 0;
    while index < COUNTERS {
        assert!(WIRE[index].0 as usize == index, "a counter is missing or out of order");
        index += 1;
    }
};

/// Only what is not zero.
#[must_use]
pub fn wire_counts(counts: &CudaCounts) -> v1::CudaCounts {
    dense(counts).message()
}

/// Every counter, as series are made from it.
#[must_use]
pub fn dense(counts: &CudaCounts) -> Counts {
    let mut dense = Counts::default();
    for (counter, wire) in WIRE {
        dense[wire] = counts[counter];
    }
    dense
}

/// What `wire_counts` wrote. A message without a counter was written by another version.
pub(super) fn read_counts(message: Option<&v1::CudaCounts>) -> Result<CudaCounts, RecordError> {
    let message = message.filter(|it| !it.counts.is_empty());
    let message = message.ok_or(RecordError::Missing("count"))?;
    let mut counts = CudaCounts::default();
    for count in &message.counts {
        let known = WIRE.into_iter().find(|it| it.1 as i32 == count.counter);
        let (counter, _) = known.ok_or_else(|| unknown("counter", count.counter))?;
        counts[counter] = count.value;
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::{WIRE, dense, read_counts, wire_counts};
    use crate::model::readings::{COUNTERS, CudaCounts};
    use crate::record::RecordError;
    use proto::telemetry::v1::{CudaCount, CudaCounts as Message};

    #[test]
    fn counters_have_the_same_names_on_both_sides() {
        for (counter, wire) in WIRE {
            assert_eq!(format!("{counter:?}"), format!("{wire:?}"));
        }
    }

    #[test]
    fn every_counter_comes_back() {
        let values: [u64; COUNTERS] = std::array::from_fn(|it| 7_919 + it as u64);
        let counts = CudaCounts::from(values);
        let message = wire_counts(&counts);
        assert_eq!(message.counts.len(), COUNTERS);
        assert_eq!(read_counts(Some(&message)).unwrap(), counts);
        assert_eq!(dense(&counts).launches(), counts.launches());
    }

    #[test]
    fn what_another_version_counted_is_refused() {
        let later = Message { counts: vec![CudaCount { counter: 9_999, value: 1 }] };
        assert!(matches!(read_counts(Some(&later)), Err(RecordError::Unknown("counter", _))));
        assert!(matches!(read_counts(Some(&Message::default())), Err(RecordError::Missing(_))));
        assert!(matches!(read_counts(None), Err(RecordError::Missing(_))));
    }
}
