//! What is pinned under which name, so that hooks and counts outlive a crash and pass to a successor.
//!
//! One folder for each ABI: `maps/` and `links/`. A link's name says which file it hooks, where, by
//! programs of which build, and since when: a link holds its file, so that device and inode mean the
//! same file for as long as the pin exists. The bpf file system takes no dot in a name, and forgets
//! all of them with the boot, as the clock does.

pub mod driver;

use std::collections::BTreeMap;

use agent_ebpf::layout::LAYOUT;

use super::bpf::driver::Places;
use super::hooks::Group;
use crate::model::units::BootNs;
use crate::samplers::process::decode::FileId;

/// What was pinned, by `gleaner-agent detach`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    pub links: usize,
    pub maps: usize,
}

/// The folder of one ABI.
pub(crate) fn version_folder(abi: u32) -> String {
    format!("v{abi}")
}

/// Whether an agent of some ABI made a folder of this name.
pub(crate) fn is_version_folder(name: &str) -> bool {
    name.strip_prefix('v').is_some_and(|it| it.parse::<u32>().is_ok())
}

/// Of a link: what it hooks, by which program. What begins alike and goes on otherwise hooks the same
/// elsewhere, or by a program of another build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LinkName {
    /// File and program.
    pub(crate) what: String,
    /// Ends what hooks the same places.
    pub(crate) places: String,
    /// Names the programs.
    pub(crate) build: String,
}

impl LinkName {
    pub(crate) fn of_life(tracepoint: &str, build: u64) -> Self {
        Self { what: format!("life-{tracepoint}-"), places: "0-".to_owned(), build: hex(build) }
    }

    pub(crate) fn of_library(
        file: FileId,
        group: Group,
        program: &str,
        places: &Places,
        build: u64,
    ) -> Self {
        let FileId { major, minor, inode } = file;
        Self {
            what: format!("file-{major}-{minor}-{inode}-{group:?}-{program}-"),
            places: format!("{}-", fingerprint(places)),
            build: hex(build),
        }
    }

    /// Of the pin, without the time since when it hooks.
    pub(crate) fn stem(&self) -> String {
        format!("{}{}{}-", self.what, self.places, self.build)
    }

    pub(crate) fn since(&self, since: BootNs) -> String {
        format!("{}{}", self.stem(), since.0)
    }

    /// Since when the link of this name hooks; `None` = it is not this one.
    pub(crate) fn parse(&self, name: &str) -> Option<BootNs> {
        name.strip_prefix(&self.stem())?.parse().ok().map(BootNs)
    }

    /// Whether a link of this name hooks the same by the same program, wherever, of whatever build.
    pub(crate) fn is_like(&self, name: &str) -> bool {
        name.starts_with(&self.what)
    }

    /// Whether a link of this name hooks the same places, by whatever build.
    pub(crate) fn is_there(&self, name: &str) -> bool {
        name.strip_prefix(&self.what).is_some_and(|it| it.starts_with(&self.places))
    }
}

/// Size of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MapSize {
    pub(crate) key: u32,
    pub(crate) value: u32,
    pub(crate) entries: u32,
}

/// What a predecessor left, in the maps that are pinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeftMaps {
    pub(crate) sizes: BTreeMap<String, MapSize>,
    /// `None` = they do not say.
    pub(crate) layout: Option<u64>,
}

impl LeftMaps {
    /// Whether this agent can go on with them, as it has `wanted`. They may have another bound.
    pub(crate) fn fit(&self, wanted: &BTreeMap<String, MapSize>) -> bool {
        let alike = |(name, it): (&String, &MapSize)| {
            self.sizes.get(name).is_some_and(|left| (left.key, left.value) == (it.key, it.value))
        };
        self.layout == Some(LAYOUT) && self.sizes.len() == wanted.len() && wanted.iter().all(alike)
    }

    /// How many entries a map has room for.
    pub(crate) fn room(&self, map: &str) -> Option<u32> {
        self.sizes.get(map).map(|it| it.entries)
    }
}

fn hex(number: u64) -> String {
    format!("{number:016x}")
}

fn fingerprint(places: &Places) -> String {
    let mut hash = blake3::Hasher::new();
    for number in places.offsets.iter().chain(&places.cookies) {
        hash.update(&number.to_le_bytes());
    }
    hex::encode(&hash.finalize().as_bytes()[..8])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use agent_ebpf::layout::LAYOUT;

    use super::{LeftMaps, LinkName, MapSize, is_version_folder, version_folder};
    use crate::model::units::BootNs;
    use crate::samplers::cuda::bpf::driver::Places;
    use crate::samplers::cuda::hooks::Group;
    use crate::samplers::process::decode::FileId;

    const FILE: FileId = FileId { major: 8, minor: 1, inode: 77 };

    fn link(program: &str, offset: u64, build: u64) -> LinkName {
        let places = Places { offsets: vec![offset], cookies: vec![3] };
        LinkName::of_library(FILE, Group::Copies, program, &places, build)
    }

    /// Whether a pin of `other` is the link, hooks the same places, and the same program.
    fn check(other: &LinkName, expected: (bool, bool, bool)) {
        let name = other.since(BootNs(5));
        let wanted = link("cuda_copy", 10, 1);
        let found =
            (wanted.parse(&name) == Some(BootNs(5)), wanted.is_there(&name), wanted.is_like(&name));
        assert_eq!(found, expected, "{name}");
    }

    #[test]
    fn a_name_says_file_and_program_and_places_and_build_and_since_when() {
        assert!(link("cuda_copy", 10, 1).stem().starts_with("file-8-1-77-Copies-cuda_copy-"));
        check(&link("cuda_copy", 10, 1), (true, true, true));
        check(&link("cuda_copy", 10, 2), (false, true, true));
        check(&link("cuda_copy", 11, 1), (false, false, true));
        check(&link("cuda_copy_return", 10, 1), (false, false, false));
        check(&LinkName::of_life("sched_process_exit", 1), (false, false, false));
        assert!(!link("cuda_copy", 10, 1).since(BootNs(5)).contains('.'));
    }

    #[test]
    fn maps_of_another_layout_do_not_fit_and_those_of_another_bound_do() {
        let size = |value, entries| MapSize { key: 4, value, entries };
        let maps = |it: &[(&str, MapSize)]| -> BTreeMap<String, MapSize> {
            it.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect()
        };
        let left = LeftMaps {
            sizes: maps(&[("ROWS", size(8, 64)), ("LOST", size(8, 3))]),
            layout: Some(LAYOUT),
        };
        assert!(left.fit(&maps(&[("ROWS", size(8, 128)), ("LOST", size(8, 3))])));
        assert!(!left.fit(&maps(&[("ROWS", size(16, 64)), ("LOST", size(8, 3))])));
        assert!(!left.fit(&maps(&[("ROWS", size(8, 64))])));
        assert!(!left.fit(&maps(&[("ROWS", size(8, 64)), ("LIVE", size(8, 3))])));
        for layout in [None, Some(LAYOUT + 1)] {
            assert!(!LeftMaps { layout, ..left.clone() }.fit(&left.sizes));
        }
    }

    #[test]
    fn folders_of_other_versions_are_known() {
        assert!(is_version_folder(&version_folder(12)));
        assert!(!is_version_folder("v") && !is_version_folder("somebody"));
    }
}
