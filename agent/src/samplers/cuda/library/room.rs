//! How many library files stay hooked. Each is held open and costs the kernel memory for its hooks,
//! and who runs processes decides which there are: so there is a cap, and a smaller one for each
//! tenant. What no process maps any more goes before what one does, and nobody's file goes for
//! somebody else's.

use std::collections::BTreeMap;

use crate::model::units::BootNs;
use crate::samplers::process::decode::FileId;

#[derive(Clone, Copy, Debug)]
pub(super) struct Caps {
    /// Of all files, those at the configured paths included.
    pub(super) all: usize,
    /// Of files that a tenant's processes led to.
    pub(super) tenant: usize,
}

/// A file that is hooked.
#[derive(Clone, Debug)]
pub(super) struct Occupant {
    pub(super) file: FileId,
    /// `None` = it was found at a configured path.
    pub(super) tenant: Option<String>,
    /// A configured path leads to it now.
    pub(super) current: bool,
    /// A process was seen to map it a short time ago.
    pub(super) in_use: bool,
    pub(super) used: BootNs,
}

/// Whether one more file can be hooked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Room {
    Free,
    /// After this one is let go.
    After(FileId),
    /// Not now; the text says which cap it is.
    None(String),
}

impl Caps {
    /// For a file that a process of this tenant led to; `None` = for one at a configured path.
    pub(super) fn room(&self, occupants: &[Occupant], tenant: Option<&str>) -> Room {
        if let Some(tenant) = tenant {
            let own: Vec<&Occupant> =
                occupants.iter().filter(|it| it.tenant.as_deref() == Some(tenant)).collect();
            if own.len() >= self.tenant {
                return oldest_unused(own.into_iter()).map_or_else(
                    || {
                        Room::None(format!(
                            "{tenant} has {} library files hooked already \
                             (cuda.max_libraries_per_tenant)",
                            self.tenant
                        ))
                    },
                    Room::After,
                );
            }
        }
        if occupants.len() < self.all {
            return Room::Free;
        }
        if let Some(file) = oldest_unused(occupants.iter()) {
            return Room::After(file);
        }
        let full = format!("{} library files are hooked already (cuda.max_libraries)", self.all);
        match tenant {
            // The driver of this node comes before anybody's copy.
            None => largest_tenants_oldest(occupants).map_or(Room::None(full), Room::After),
            Some(_) => Room::None(full),
        }
    }
}

fn oldest_unused<'a>(occupants: impl Iterator<Item = &'a Occupant>) -> Option<FileId> {
    let unused = occupants.filter(|it| !it.current && !it.in_use);
    unused.min_by_key(|it| it.used).map(|it| it.file)
}

fn largest_tenants_oldest(occupants: &[Occupant]) -> Option<FileId> {
    let mut sizes: BTreeMap<&str, usize> = BTreeMap::new();
    for tenant in occupants.iter().filter_map(|it| it.tenant.as_deref()) {
        *sizes.entry(tenant).or_default() += 1;
    }
    let removable = occupants.iter().filter(|it| !it.current);
    let size = |it: &Occupant| it.tenant.as_deref().and_then(|tenant| sizes.get(tenant)).copied();
    removable.min_by_key(|it| (std::cmp::Reverse(size(it).unwrap_or(0)), it.used)).map(|it| it.file)
}

#[cfg(test)]
mod tests {
    use super::{Caps, Occupant, Room};
    use crate::model::units::BootNs;
    use crate::samplers::process::decode::FileId;

    const CAPS: Caps = Caps { all: 4, tenant: 2 };

    fn file(inode: u64) -> FileId {
        FileId { major: 8, minor: 1, inode }
    }

    /// A file for each letter, the first one used longest ago: `a` and `b` are tenants' files in use,
    /// `A` and `B` files that nobody uses, `-` is the node's own.
    fn occupants(letters: &str) -> Vec<Occupant> {
        let occupant = |(index, letter): (u64, char)| Occupant {
            file: file(index),
            tenant: letter.is_alphabetic().then(|| letter.to_lowercase().to_string()),
            current: letter == '-',
            in_use: letter.is_lowercase(),
            used: BootNs(index),
        };
        (0..).zip(letters.chars()).map(occupant).collect()
    }

    fn check(letters: &str, tenant: Option<&str>, expected: &Room) {
        assert_eq!(&CAPS.room(&occupants(letters), tenant), expected, "{letters} {tenant:?}");
    }

    #[test]
    fn there_is_room_up_to_the_caps() {
        check("", Some("a"), &Room::Free);
        check("-ab", Some("a"), &Room::Free);
        check("-ab", None, &Room::Free);
    }

    #[test]
    fn a_tenant_at_its_cap_makes_room_among_its_own_unused_files_only() {
        let full = "a has 2 library files hooked already (cuda.max_libraries_per_tenant)";
        check("aa", Some("a"), &Room::None(full.to_owned()));
        check("Baa", Some("a"), &Room::None(full.to_owned()));
        check("BaA", Some("a"), &Room::After(file(2)));
    }

    #[test]
    fn what_nobody_uses_goes_first_and_the_longest_unused_of_it() {
        check("-abC", Some("b"), &Room::After(file(3)));
        check("aBCd", Some("e"), &Room::After(file(1)));
    }

    #[test]
    fn what_is_used_goes_only_for_the_nodes_own_driver_and_from_the_largest_tenant() {
        let full = "4 library files are hooked already (cuda.max_libraries)".to_owned();
        check("abcd", Some("e"), &Room::None(full.clone()));
        check("abbc", None, &Room::After(file(1)));
        check("----", None, &Room::None(full));
    }
}
