//! What a row of the kernel means.

use agent_ebpf::{Counter, Row};

use crate::model::ids::ProcessId;
use crate::model::readings::{CopyCounts, CudaCounts, Direction};
use crate::model::units::BootNs;

const SECOND_NS: u64 = 1_000_000_000;

/// Identity of a row's process, with the start time in the ticks that `/proc` shows.
pub(crate) fn process_id(tgid: u32, row: &Row, ticks_per_second: u64) -> ProcessId {
    let tick_ns = SECOND_NS / ticks_per_second.clamp(1, SECOND_NS);
    ProcessId { tgid, start_ticks: row.start_boottime_ns / tick_ns }
}

pub(crate) fn counts(row: &Row) -> CudaCounts {
    let count = |counter: Counter| row.counts[counter as usize];
    let copies = |calls, bytes| CopyCounts { calls: count(calls), bytes: count(bytes) };
    CudaCounts {
        launches: count(Counter::Launches),
        graph_launches: count(Counter::GraphLaunches),
        allocations: count(Counter::Allocations),
        allocated_bytes: count(Counter::AllocatedBytes),
        failed_allocations: count(Counter::FailedAllocations),
        frees: count(Counter::Frees),
        copies: Direction::ALL.map(|direction| match direction {
            Direction::HostToDevice => {
                copies(Counter::HostToDeviceCalls, Counter::HostToDeviceBytes)
            }
            Direction::DeviceToHost => {
                copies(Counter::DeviceToHostCalls, Counter::DeviceToHostBytes)
            }
            Direction::DeviceToDevice => {
                copies(Counter::DeviceToDeviceCalls, Counter::DeviceToDeviceBytes)
            }
            Direction::Unknown => copies(Counter::UnknownCalls, Counter::UnknownBytes),
            Direction::Peer => copies(Counter::PeerCalls, Counter::PeerBytes),
        }),
        synchronizations: count(Counter::Synchronizations),
        synchronize_wait_ns: count(Counter::SynchronizeWaitNs),
    }
}

/// `None` = no launch was seen.
pub(crate) fn last_launch(row: &Row) -> Option<BootNs> {
    Some(BootNs(row.last_launch_ns)).filter(|it| it.0 != 0)
}

#[cfg(test)]
mod tests {
    use super::{counts, last_launch, process_id};
    use crate::model::readings::Direction;
    use crate::model::units::BootNs;
    use agent_ebpf::{Counter, Row};

    #[test]
    fn every_counter_has_one_place() {
        let mut row = Row::default();
        for (index, count) in row.counts.iter_mut().enumerate() {
            *count = 1 << index;
        }
        let counts = counts(&row);
        assert_eq!(counts.launches, 1 << Counter::Launches as u8);
        assert_eq!(counts.graph_launches, 1 << Counter::GraphLaunches as u8);
        let copies = |direction: Direction| counts.copies[direction as usize];
        assert_eq!(copies(Direction::HostToDevice).calls, 1 << Counter::HostToDeviceCalls as u8);
        assert_eq!(copies(Direction::Peer).bytes, 1 << Counter::PeerBytes as u8);
        let copied: u64 = counts.copies.iter().map(|it| it.calls + it.bytes).sum();
        let others = counts.launches
            + counts.graph_launches
            + counts.allocations
            + counts.allocated_bytes
            + counts.failed_allocations
            + counts.frees
            + counts.synchronizations
            + counts.synchronize_wait_ns;
        assert_eq!(copied + others, (1 << row.counts.len()) - 1);
    }

    #[test]
    fn start_times_are_cut_to_ticks_as_the_kernel_does() {
        let row = Row { start_boottime_ns: 12_349_999_999, ..Row::default() };
        assert_eq!(process_id(7, &row, 100).start_ticks, 1234);
    }

    #[test]
    fn a_process_that_launched_nothing_has_no_last_launch() {
        assert_eq!(last_launch(&Row::default()), None);
        let row = Row { last_launch_ns: 5, ..Row::default() };
        assert_eq!(last_launch(&row), Some(BootNs(5)));
    }
}
