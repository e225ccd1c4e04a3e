//! What a row of the kernel means.

use agent_ebpf::Row;

use crate::model::ids::ProcessId;
use crate::model::readings::CudaCounts;
use crate::model::units::BootNs;

const SECOND_NS: u64 = 1_000_000_000;

/// Identity of a row's process, with the start time in the ticks that `/proc` shows.
pub(crate) fn process_id(tgid: u32, row: &Row, ticks_per_second: u64) -> ProcessId {
    let tick_ns = SECOND_NS / ticks_per_second.clamp(1, SECOND_NS);
    ProcessId { tgid, start_ticks: row.start_boottime_ns / tick_ns }
}

pub(crate) fn counts(row: &Row) -> CudaCounts {
    row.counts.into()
}

/// `None` = no launch was seen.
pub(crate) fn last_launch(row: &Row) -> Option<BootNs> {
    Some(BootNs(row.last_launch_ns)).filter(|it| it.0 != 0)
}

#[cfg(test)]
mod tests {
    use super::{last_launch, process_id};
    use crate::model::units::BootNs;
    use agent_ebpf::Row;

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
