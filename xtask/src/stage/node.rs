//! A simulated node: copies of the stand-in libraries beside a scenario file.
//!
//! The libraries find the scenario and their shared state in the folder that they lie in, so two
//! nodes never meet.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::folder::Folder;

/// Where the two libraries of a node are.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) nvml: PathBuf,
    pub(crate) cuda: PathBuf,
}

impl Node {
    /// `built` is where cargo put the libraries; `settings` are lines of the scenario before its devices. The libcuda is the one whose
    /// entries look like the real driver's.
    pub(crate) fn make(
        folder: &Folder,
        built: &Path,
        gpus: u32,
        settings: &str,
    ) -> anyhow::Result<Self> {
        let scenario = folder.write("node/scenario.toml", &scenario(gpus, settings))?;
        let place = scenario.parent().expect("the scenario lies in the node's folder");
        Ok(Self {
            nvml: copy(&built.join("libnvml_stub.so"), &place.join("libnvidia-ml.so.1"))?,
            cuda: copy(&built.join("libcuda_stub_cmp.so"), &place.join("libcuda.so.1"))?,
        })
    }
}

fn scenario(gpus: u32, settings: &str) -> String {
    let mut text = format!("{settings}\n");
    for index in 0..gpus {
        writeln!(
            text,
            "[[gpus]]\nuuid = \"GPU-51300000-0000-4000-8000-{index:012}\"\n\
             pci_bus_id = \"00000000:{:02X}:00.0\"\n",
            0x10 + index
        )
        .expect("writing to a string succeeds");
    }
    text
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<PathBuf> {
    std::fs::copy(from, to)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(to.to_owned())
}

#[cfg(test)]
mod tests {
    use super::scenario;

    #[test]
    fn devices_differ_in_what_must_differ() {
        let text = scenario(2, "release_ms = 500");
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(table["release_ms"].as_integer(), Some(500));
        let gpus = table["gpus"].as_array().unwrap();
        assert_eq!(gpus.len(), 2);
        assert_ne!(gpus[0]["uuid"], gpus[1]["uuid"]);
        assert_ne!(gpus[0]["pci_bus_id"], gpus[1]["pci_bus_id"]);
    }
}
