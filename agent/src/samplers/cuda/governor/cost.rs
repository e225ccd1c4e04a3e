//! What hits cost the process that makes them.

use agent_ebpf::{COUNTERS, Counter};

use crate::model::readings::HitCosts;
use crate::samplers::cuda::hooks::Group;
use crate::samplers::cuda::probe::Point;

/// Parts of one: a share of time, or of a CPU, is given in millionths.
pub(crate) const MILLION: u64 = 1_000_000;

/// Where nothing could be measured: the dearest that was seen in virtual machines, so that the
/// budget is rather kept than not.
pub(crate) const ASSUMED: HitCosts =
    HitCosts { entry_ns: 680, pair_ns: 1_300, slow_ns: 12_000, measured: false };

fn cost_of(costs: HitCosts, point: &Point) -> u64 {
    let entry = if point.place.slow { costs.slow_ns } else { costs.entry_ns };
    match point.hook.kind.return_program() {
        Some(_) => entry + costs.pair_ns.saturating_sub(costs.entry_ns),
        None => entry,
    }
}

/// Nanoseconds that a call of each group costs in one library file: that of its dearest hook. Zero
/// where nothing of a group is hooked.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CallCosts([u64; Group::ALL.len()]);

impl CallCosts {
    pub(crate) fn of(&self, group: Group) -> u64 {
        self.0[group as usize]
    }

    pub(crate) fn raise(&mut self, group: Group, cost: u64) {
        let known = &mut self.0[group as usize];
        *known = cost.max(*known);
    }

    /// What a call costs at most that may be in either file.
    pub(crate) fn or(self, other: Self) -> Self {
        Self(std::array::from_fn(|it| self.0[it].max(other.0[it])))
    }
}

pub(crate) fn call_costs<'a>(
    costs: HitCosts,
    points: impl Iterator<Item = &'a Point>,
) -> CallCosts {
    let mut found = CallCosts::default();
    for point in points {
        found.raise(point.hook.group, cost_of(costs, point));
    }
    found
}

/// Groups that may be taken off. Memory never: live bytes would be wrong, and a process may have
/// changed the text of its memory functions by the time they are put on again. Nor contexts and streams
/// where they begin and end: what was missed would never be made good.
pub(crate) const GOVERNED: [Group; 5] =
    [Group::Launches, Group::Copies, Group::Waits, Group::Switches, Group::Extra];

/// The counters that a call of a governed group adds to, with the number of calls first.
const LAUNCHES: [Counter; 4] = [
    Counter::KernelLaunches,
    Counter::CooperativeLaunches,
    Counter::GraphLaunches,
    Counter::HostFunctions,
];
const COPIES: [Counter; 6] = [
    Counter::HostToDeviceCalls,
    Counter::DeviceToHostCalls,
    Counter::DeviceToDeviceCalls,
    Counter::UnknownCalls,
    Counter::PeerCalls,
    Counter::Memsets,
];
const WAITS: [Counter; 1] = [Counter::Synchronizations];
const SWITCHES: [Counter; 1] = [Counter::ContextSwitches];
const LIFE: [Counter; 4] =
    [Counter::Contexts, Counter::ContextsDestroyed, Counter::Streams, Counter::ModuleLoads];
const EXTRA: [Counter; 2] = [Counter::EventRecords, Counter::Queries];

/// Counters of calls, by group. What is not listed is called rarely.
fn calls_of(group: Group) -> &'static [Counter] {
    match group {
        Group::Launches => &LAUNCHES,
        Group::Copies => &COPIES,
        Group::Waits => &WAITS,
        Group::Memory => &MEMORY,
        Group::Switches => &SWITCHES,
        Group::Extra => &EXTRA,
        Group::Life => &LIFE,
    }
}

const MEMORY: [Counter; 18] = [
    Counter::DeviceAllocations,
    Counter::DeviceFailed,
    Counter::DeviceFrees,
    Counter::ManagedAllocations,
    Counter::ManagedFailed,
    Counter::ManagedFrees,
    Counter::VirtualAllocations,
    Counter::VirtualFailed,
    Counter::VirtualFrees,
    Counter::StreamOrderedAllocations,
    Counter::StreamOrderedFrees,
    Counter::HostAllocations,
    Counter::HostFrees,
    Counter::Maps,
    Counter::Unmaps,
    Counter::Imports,
    Counter::HandleRetains,
    Counter::Exports,
];

/// Calls of one group.
pub(crate) fn calls(counts: &[u64; COUNTERS], group: Group) -> u64 {
    calls_of(group).iter().fold(0, |sum, it| sum.saturating_add(counts[*it as usize]))
}

/// Which counters are scaled where a group is sampled: calls, and what goes with each call.
pub(crate) fn counters(group: Group) -> impl Iterator<Item = usize> {
    let amounts = match group {
        Group::Copies | Group::Waits => 2,
        Group::Launches | Group::Memory | Group::Switches | Group::Extra | Group::Life => 1,
    };
    calls_of(group).iter().flat_map(move |it| *it as usize..*it as usize + amounts)
}

/// Nanoseconds that calls cost.
pub(crate) fn spent(
    counts: &[u64; COUNTERS],
    costs: &CallCosts,
    groups: impl Iterator<Item = Group>,
) -> u64 {
    groups.fold(0, |sum, group| {
        sum.saturating_add(calls(counts, group).saturating_mul(costs.of(group)))
    })
}

/// `part` of `whole` in millionths.
pub(crate) fn share(part: u64, whole: u64) -> u64 {
    let share = u128::from(part) * u128::from(MILLION) / u128::from(whole.max(1));
    u64::try_from(share).unwrap_or(u64::MAX)
}

/// So many millionths of `whole`.
pub(crate) fn portion(share: u64, whole: u64) -> u64 {
    let portion = u128::from(share) * u128::from(whole) / u128::from(MILLION);
    u64::try_from(portion).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{Group, calls, counters};
    use crate::samplers::cuda::hooks::{HOOKS, Kind};
    use agent_ebpf::{COUNTERS, Counter};
    use std::collections::BTreeSet;

    #[test]
    fn amounts_are_scaled_with_their_calls() {
        let scaled: BTreeSet<usize> = counters(Group::Copies).collect();
        assert!(scaled.contains(&(Counter::MemsetBytes as usize)));
        assert!(
            counters(Group::Waits)
                .eq([Counter::Synchronizations as usize, Counter::SynchronizeWaitNs as usize])
        );
        assert!(!counters(Group::Launches).any(|it| scaled.contains(&it)));
    }

    #[test]
    fn a_call_of_a_governed_hook_is_seen_as_one_of_its_group() {
        for hook in &HOOKS {
            if hook.kind == Kind::Init || hook.group == Group::Life {
                continue;
            }
            let mut counts = [0; COUNTERS];
            counts[hook.cookie.counter()] = 1;
            assert_eq!(calls(&counts, hook.group), 1, "{}", hook.symbol);
        }
    }
}
