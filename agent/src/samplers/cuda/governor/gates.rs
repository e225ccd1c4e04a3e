//! Which gates the hooks of a library file are behind: one for each governed group.

use std::collections::BTreeSet;

use agent_ebpf::cookie::GATES;

use super::cost::GOVERNED;
use crate::samplers::cuda::hooks::{Group, Hook};

/// Gates of one file: room for groups to come.
const EACH: u32 = 8;

/// The gates of one library file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Gates(u32);

impl Gates {
    /// Gates that no file has; files beyond those that there are gates for share the last ones,
    /// which is more than are ever hooked.
    pub(crate) fn free(taken: &BTreeSet<Self>) -> Self {
        let all = (0..GATES / EACH).map(Self);
        all.into_iter().find(|it| !taken.contains(it)).unwrap_or(Self(GATES / EACH - 1))
    }

    /// `None` = the group is never taken off.
    pub(crate) fn of(self, group: Group) -> Option<u32> {
        let place = (0..).zip(GOVERNED).find(|(_, it)| *it == group)?.0;
        Some(self.0 * EACH + place)
    }

    /// What the kernel is told of a hook.
    pub(crate) fn cookie(self, hook: &Hook) -> u64 {
        self.of(hook.group).map_or(hook.cookie, |gate| hook.cookie.behind(gate)).0
    }
}

#[cfg(test)]
mod tests {
    use super::{EACH, GOVERNED, Gates, Group};
    use std::collections::BTreeSet;

    #[test]
    fn no_two_groups_share_a_gate() {
        let first = Gates::free(&BTreeSet::new());
        let second = Gates::free(&[first].into());
        let gates: BTreeSet<u32> = [first, second]
            .iter()
            .flat_map(|it| GOVERNED.map(|group| it.of(group)))
            .flatten()
            .collect();
        assert_eq!(gates.len(), 2 * GOVERNED.len());
        assert!(GOVERNED.len() <= EACH as usize);
        assert_eq!(first.of(Group::Memory), None);
    }
}
