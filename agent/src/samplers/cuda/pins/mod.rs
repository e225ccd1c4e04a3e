//! What is pinned under which name, so that hooks and counts outlive a crash and pass to a successor.
//!
//! One folder for each ABI: `maps/` and `links/`. A link's name says which file it hooks, and where:
//! a link holds its file, so that device and inode mean the same file for as long as the pin exists.
//! The bpf file system takes no dot in a name.

pub mod driver;

use super::bpf::driver::Places;
use super::hooks::Group;
use crate::samplers::process::decode::FileId;

/// What was pinned, by `gleaner-agent detach`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    pub links: usize,
    pub maps: usize,
}

/// The folder of one ABI.
pub(super) fn version_folder(abi: u32) -> String {
    format!("v{abi}")
}

/// Whether an agent of some ABI made a folder of this name.
pub(super) fn is_version_folder(name: &str) -> bool {
    name.strip_prefix('v').is_some_and(|it| it.parse::<u32>().is_ok())
}

/// Of a link to a tracepoint.
pub(super) fn life_link(tracepoint: &str) -> String {
    format!("life-{tracepoint}")
}

/// Of a link of one program to the places of one group in one file.
pub(super) fn library_link(file: FileId, group: Group, program: &str, places: &Places) -> String {
    format!("{}{}", library_prefix(file, group, program), fingerprint(places))
}

/// What all links of this program to this group of this file have in common, wherever they attach.
pub(super) fn library_prefix(file: FileId, group: Group, program: &str) -> String {
    let FileId { major, minor, inode } = file;
    format!("file-{major}-{minor}-{inode}-{group:?}-{program}-")
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
    use super::{is_version_folder, library_link, library_prefix, version_folder};
    use crate::samplers::cuda::bpf::driver::Places;
    use crate::samplers::cuda::hooks::Group;
    use crate::samplers::process::decode::FileId;

    const FILE: FileId = FileId { major: 8, minor: 1, inode: 77 };

    #[test]
    fn a_name_says_the_file_and_the_places() {
        let name = |offset| {
            let places = Places { offsets: vec![offset], cookies: vec![3] };
            library_link(FILE, Group::Copies, "cuda_copy", &places)
        };
        assert_ne!(name(10), name(11));
        let prefix = library_prefix(FILE, Group::Copies, "cuda_copy");
        assert_eq!(prefix, "file-8-1-77-Copies-cuda_copy-");
        assert!(name(10).starts_with(&prefix) && !name(10).contains('.'));
    }

    #[test]
    fn folders_of_other_versions_are_known() {
        assert!(is_version_folder(&version_folder(12)));
        assert!(!is_version_folder("v") && !is_version_folder("somebody"));
    }
}
