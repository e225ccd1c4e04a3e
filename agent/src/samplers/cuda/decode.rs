//! What a row of the kernel means.

use std::collections::BTreeMap;

use agent_ebpf::{Cgroup, LOSSES, Row};

use crate::model::ids::ProcessId;
use crate::model::readings::CudaCounts;
use crate::model::units::BootNs;

const SECOND_NS: u64 = 1_000_000_000;
/// Id of the root of the unified hierarchy.
const ROOT_CGROUP: u64 = 1;
/// Names of the kernel's losses, in the order of `Loss`.
const LOSS_NAMES: [&str; LOSSES] = ["calls", "records", "results", "processes", "cgroups"];
/// Lives that ended beyond what is kept between two readings.
const ENDS: &str = "ends";

/// Identity of a row's process, with the start time in the ticks that `/proc` shows.
pub(crate) fn process_id(tgid: u32, row: &Row, ticks_per_second: u64) -> ProcessId {
    let tick_ns = SECOND_NS / ticks_per_second.clamp(1, SECOND_NS);
    ProcessId { tgid, start_ticks: row.start_boottime_ns / tick_ns }
}

pub(crate) fn counts(row: &Row) -> CudaCounts {
    row.counts.into()
}

/// `None` where the process is in no group that says anything: also on nodes that use the old
/// hierarchies only.
pub(crate) fn cgroup(row: &Row) -> Option<u64> {
    Some(row.cgroup_id).filter(|it| *it > ROOT_CGROUP)
}

/// As `/proc` shows it. `None` = it is empty, which no group's is.
pub(crate) fn cgroup_path(group: &Cgroup) -> Option<String> {
    let levels = usize::try_from(group.levels).ok()?;
    let names = group.names.get(..levels)?.iter().rev();
    let path = names.map(|name| {
        let end = name.iter().position(|it| *it == 0).unwrap_or(name.len());
        format!("/{}", String::from_utf8_lossy(&name[..end]))
    });
    Some(path.collect::<String>()).filter(|it| !it.is_empty())
}

/// Losses by cause: those of the kernel, and the lives that could not be kept here.
pub(crate) fn lost(kernel: &[u64; LOSSES], ends: u64) -> BTreeMap<&'static str, u64> {
    LOSS_NAMES.into_iter().zip(*kernel).chain([(ENDS, ends)]).collect()
}

/// `None` = no launch was seen.
pub(crate) fn last_launch(row: &Row) -> Option<BootNs> {
    Some(BootNs(row.last_launch_ns)).filter(|it| it.0 != 0)
}

#[cfg(test)]
mod tests {
    use super::{cgroup, cgroup_path, last_launch, lost, process_id};
    use crate::model::units::BootNs;
    use agent_ebpf::{CGROUP_LEVELS, CGROUP_NAME, Cgroup, LOSSES, Loss, Row};

    #[test]
    fn start_times_are_cut_to_ticks_as_the_kernel_does() {
        let row = Row { start_boottime_ns: 12_349_999_999, ..Row::default() };
        assert_eq!(process_id(7, &row, 100).start_ticks, 1234);
    }

    #[test]
    fn the_root_of_the_hierarchy_is_no_group() {
        let of = |cgroup_id| cgroup(&Row { cgroup_id, ..Row::default() });
        assert_eq!([of(0), of(1), of(77)], [None, None, Some(77)]);
    }

    #[test]
    fn a_group_is_named_from_its_own_name_upwards() {
        let mut names = [[0; CGROUP_NAME]; CGROUP_LEVELS];
        names[0][..9].copy_from_slice(b"x.service");
        names[1][..12].copy_from_slice(b"system.slice");
        // Left there by a longer path.
        names[2][..3].copy_from_slice(b"old");
        let path = |levels| cgroup_path(&Cgroup { levels, names });
        assert_eq!(path(2).as_deref(), Some("/system.slice/x.service"));
        assert_eq!((path(0), path(99)), (None, None));
    }

    #[test]
    fn losses_have_the_names_of_their_causes() {
        let mut kernel = [0; LOSSES];
        kernel[Loss::Records as usize] = 5;
        let found = lost(&kernel, 7);
        assert_eq!((found["records"], found["ends"], found["calls"]), (5, 7, 0));
        assert!(found.keys().all(|it| proto::cuda::loss_cause(it) == *it), "each is a label");
    }

    #[test]
    fn a_process_that_launched_nothing_has_no_last_launch() {
        assert_eq!(last_launch(&Row::default()), None);
        let row = Row { last_launch_ns: 5, ..Row::default() };
        assert_eq!(last_launch(&row), Some(BootNs(5)));
    }
}
