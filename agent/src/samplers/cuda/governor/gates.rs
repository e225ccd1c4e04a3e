//! Which gates the hooks of a library file are behind: one for each governed group.

use std::collections::BTreeSet;

use agent_ebpf::cookie::{FILES, GATES_OF_FILE, SWITCHES};

use super::cost::GOVERNED;
use crate::model::units::BootNs;
use crate::samplers::cuda::hooks::{Group, Hook};

const _: () = assert!(GOVERNED.len() <= GATES_OF_FILE as usize);
const _: () = assert!(matches!(GOVERNED[SWITCHES as usize], Group::Switches));

/// What a gate holds that was opened or closed at `at`: never the same twice.
pub(crate) fn held(closed: bool, at: BootNs) -> u64 {
    at.0 & !1 | u64::from(closed)
}

/// Whether a gate that holds this is closed.
pub(crate) fn is_closed(held: u64) -> bool {
    held & 1 == 1
}

/// The number of a library file, and with it its gates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Gates(u32);

impl Gates {
    /// Gates that no file has; files beyond those that there are gates for share the last ones,
    /// which is more than are ever hooked.
    pub(crate) fn free(taken: &BTreeSet<Self>) -> Self {
        (0..FILES).map(Self).find(|it| !taken.contains(it)).unwrap_or(Self(FILES - 1))
    }

    /// `None` = the group is never taken off.
    pub(crate) fn of(self, group: Group) -> Option<u32> {
        let place = (0..).zip(GOVERNED).find(|(_, it)| *it == group)?.0;
        Some(self.0 * GATES_OF_FILE + place)
    }

    /// What the kernel is told of a hook.
    pub(crate) fn cookie(self, hook: &Hook) -> u64 {
        let cookie = hook.cookie.in_file(self.0);
        self.of(hook.group).map_or(cookie, |gate| cookie.behind(gate)).0
    }

    /// What the kernel knows the file by.
    pub(crate) fn file(self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::{BootNs, GOVERNED, Gates, Group, held, is_closed};
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
        assert_eq!(first.of(Group::Memory), None);
        assert_ne!(first.file(), second.file());
    }

    #[test]
    fn a_gate_says_whether_it_is_closed_and_when_that_was_last_changed() {
        let [open, closed, later] =
            [(false, 7), (true, 7), (false, 9)].map(|(closed, at)| held(closed, BootNs(at)));
        assert!(is_closed(closed) && !is_closed(open) && !is_closed(later));
        assert_ne!(open, later);
    }
}
