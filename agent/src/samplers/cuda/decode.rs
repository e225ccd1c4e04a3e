//! What a row of the kernel means.

use std::collections::BTreeMap;

use agent_ebpf::keys::Program;
use agent_ebpf::{Cgroup, Counter, LOSSES, NO_DEVICE, Row, UNKNOWN_DEVICE, flag};

use super::belongings::Uuids;
use crate::model::ids::ProcessId;
use crate::model::readings::{CudaCounts, CudaDevice, CudaMemory};
use crate::model::units::BootNs;

const SECOND_NS: u64 = 1_000_000_000;
/// Id of the root of the unified hierarchy.
const ROOT_CGROUP: u64 = 1;
/// Names of the kernel's losses, in the order of `Loss`.
const LOSS_NAMES: [&str; LOSSES] =
    ["calls", "records", "results", "processes", "cgroups", "allocations", "contexts", "sizes"];
/// Lives that ended beyond what is kept between two readings.
const ENDS: &str = "ends";
/// Times at which hooks were off for a look, and calls were missed.
const LOOKS: &str = "looks";
/// Waits that outlasted their hooks: how long they took is missing.
const WAITS: &str = "waits";

/// Identity of a row's process, with the start time in the ticks that `/proc` shows.
pub(crate) fn process_id(tgid: u32, row: &Row, ticks_per_second: u64) -> ProcessId {
    ProcessId { tgid, start_ticks: row.start_boottime_ns / tick_ns(ticks_per_second) }
}

pub(crate) fn counts(row: &Row) -> CudaCounts {
    row.counts.into()
}

/// Start of the process that runs a program, in the ticks that `/proc` shows.
pub(crate) fn started(program: Program, ticks_per_second: u64) -> u64 {
    program.program / tick_ns(ticks_per_second)
}

fn tick_ns(ticks_per_second: u64) -> u64 {
    SECOND_NS / ticks_per_second.clamp(1, SECOND_NS)
}

/// With the span of pending work that is open: it may end at any time, and lasts until now at least.
pub(crate) fn counts_at(row: &Row, at: BootNs) -> CudaCounts {
    let mut counts = counts(row);
    if row.pending_since_ns != 0 {
        counts[Counter::BusyUpperNs] += at.0.saturating_sub(row.pending_since_ns);
    }
    counts
}

/// Below zero while a free was seen before its allocation. Where memory may have gone unseen, there is at
/// least none.
pub(crate) fn memory(row: &Row) -> CudaMemory {
    if row.flags[flag::UNCLEAR_MEMORY] != 0 {
        return CudaMemory { at_least: true, ..CudaMemory::default() };
    }
    let sum = |bytes: u64| if bytes.cast_signed() < 0 { 0 } else { bytes };
    let live_bytes = sum(row.live_bytes);
    CudaMemory {
        live_bytes,
        peak_bytes: row.peak_bytes.max(live_bytes),
        host_bytes: sum(row.host_bytes),
        at_least: row.flags[flag::UNTRACKED] != 0,
    }
}

/// Of a device as the kernel stores it.
pub(crate) fn ordinal(device: u32) -> Option<u32> {
    Some(device).filter(|it| *it != NO_DEVICE && *it != UNKNOWN_DEVICE).map(|it| it - 1)
}

pub(crate) fn device(of: Program, device: u32, uuids: &Uuids) -> CudaDevice {
    CudaDevice { ordinal: ordinal(device), uuid: uuids.get(&(of, device)).copied() }
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

/// What was lost outside of the kernel's maps.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Losses {
    /// Lives that could not be kept here.
    pub(crate) ends: u64,
    /// Times at which nothing counted.
    pub(crate) looks: u64,
    /// Waits whose length is not known.
    pub(crate) waits: u64,
}

/// By cause.
pub(crate) fn lost(kernel: &[u64; LOSSES], others: Losses) -> BTreeMap<&'static str, u64> {
    let Losses { ends, looks, waits } = others;
    let others = [(ENDS, ends), (LOOKS, looks), (WAITS, waits)];
    LOSS_NAMES.into_iter().zip(*kernel).chain(others).collect()
}

/// `None` = no launch was seen.
pub(crate) fn last_launch(row: &Row) -> Option<BootNs> {
    Some(BootNs(row.last_launch_ns)).filter(|it| it.0 != 0)
}

#[cfg(test)]
mod tests {
    use super::{
        Losses, cgroup, cgroup_path, counts_at, device, last_launch, lost, memory, ordinal,
        process_id,
    };
    use crate::model::units::BootNs;
    use agent_ebpf::keys::Program;
    use agent_ebpf::{
        CGROUP_LEVELS, CGROUP_NAME, Cgroup, Counter, FLAGS, LOSSES, Loss, Row, UNKNOWN_DEVICE, flag,
    };
    use std::collections::BTreeMap;

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
        let found = lost(&kernel, Losses { ends: 7, looks: 2, waits: 3 });
        assert_eq!((found["records"], found["ends"], found["calls"]), (5, 7, 0));
        assert_eq!((found["looks"], found["waits"]), (2, 3));
        assert!(found.keys().all(|it| proto::cuda::loss_cause(it) == *it), "each is a label");
    }

    #[test]
    fn work_that_is_pending_lasts_until_now() {
        let mut row = Row { pending_since_ns: 100, ..Row::default() };
        row.counts[Counter::BusyUpperNs as usize] = 7;
        assert_eq!(counts_at(&row, BootNs(130))[Counter::BusyUpperNs], 37);
        assert_eq!(counts_at(&row, BootNs(90))[Counter::BusyUpperNs], 7);
        row.pending_since_ns = 0;
        assert_eq!(counts_at(&row, BootNs(130))[Counter::BusyUpperNs], 7);
    }

    #[test]
    fn memory_is_never_below_zero_and_says_when_it_is_a_lower_bound() {
        let mut row = Row { live_bytes: 5_u64.wrapping_neg(), ..Row::default() };
        row.flags[flag::UNTRACKED] = 1;
        let found = memory(&row);
        assert_eq!((found.live_bytes, found.peak_bytes, found.at_least), (0, 0, true));
        let found = memory(&Row { live_bytes: 9, peak_bytes: 7, host_bytes: 3, ..Row::default() });
        assert_eq!((found.live_bytes, found.peak_bytes, found.host_bytes), (9, 9, 3));
        assert!(!found.at_least);
        row.flags = [0; FLAGS];
        (row.live_bytes, row.flags[flag::UNCLEAR_MEMORY]) = (9, 1);
        let found = memory(&row);
        assert_eq!((found.live_bytes, found.peak_bytes, found.at_least), (0, 0, true));
    }

    #[test]
    fn devices_have_the_ordinals_of_their_program() {
        assert_eq!([0, 1, 3, UNKNOWN_DEVICE].map(ordinal), [None, Some(0), Some(2), None]);
        let program = Program { program: 9, tgid: 5 };
        let uuids = BTreeMap::from([((program, 3), [7; 16])]);
        assert_eq!(device(program, 3, &uuids).uuid, Some([7; 16]));
        assert_eq!(device(program, 2, &uuids).uuid, None);
    }

    #[test]
    fn a_process_that_launched_nothing_has_no_last_launch() {
        assert_eq!(last_launch(&Row::default()), None);
        let row = Row { last_launch_ns: 5, ..Row::default() };
        assert_eq!(last_launch(&row), Some(BootNs(5)));
    }
}
