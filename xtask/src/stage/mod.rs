//! What the demo and the benches are played on: a temporary folder, processes, cgroups, ports and a
//! simulated node. Everything here is taken back when it is dropped.

pub(crate) mod cgroups;
pub(crate) mod folder;
pub(crate) mod http;
pub(crate) mod node;
pub(crate) mod ports;
pub(crate) mod process;

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Folders `PREFIXpidSUFFIX` of this user whose process is gone: it was killed and could not clear up.
fn left_over(place: &Path, prefix: &str, suffix: &str) -> Vec<PathBuf> {
    let user = nix::unistd::geteuid().as_raw();
    let entries = std::fs::read_dir(place).into_iter().flatten().flatten();
    entries
        .filter(|it| {
            let name = it.file_name();
            let pid = name.to_str().and_then(|it| it.strip_prefix(prefix)?.strip_suffix(suffix));
            let gone = pid
                .and_then(|it| it.parse::<u32>().ok())
                .is_some_and(|it| !Path::new("/proc").join(it.to_string()).exists());
            gone && it.metadata().is_ok_and(|it| it.is_dir() && it.uid() == user)
        })
        .map(|it| it.path())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::left_over;

    #[test]
    fn only_folders_of_the_dead_are_left_over() {
        let place = std::env::temp_dir().join(format!("gleaner-stage-{}", std::process::id()));
        let alive = format!("gleaner-up-{}", std::process::id());
        for name in [alive.as_str(), "gleaner-up-4194305", "gleaner-up-x", "other-4194305"] {
            std::fs::create_dir_all(place.join(name)).unwrap();
        }
        // Beyond the largest pid that Linux gives.
        let expected = [place.join("gleaner-up-4194305")];
        assert_eq!(left_over(&place, "gleaner-up-", ""), expected);
        std::fs::remove_dir_all(&place).unwrap();
    }
}
