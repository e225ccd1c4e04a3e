//! The stand-ins for the driver: one for each way in which its functions may begin.

use std::path::{Path, PathBuf};

use anyhow::Context;
use gpu_state::scenario::{NAME, Scenario};
use tests::artefacts::Build;

/// A copy in a folder of its own, with one device: probes of others hang on other files.
pub(crate) fn install(build: Build, folder: &Path) -> anyhow::Result<PathBuf> {
    let programs = std::env::current_exe().context("this program has no path")?;
    let built = programs.with_file_name(build.file());
    std::fs::create_dir_all(folder).context("cannot make a folder")?;
    let scenario = toml::to_string(&Scenario::with_gpus(1)).context("a scenario is TOML")?;
    std::fs::write(folder.join(NAME), scenario).context("cannot write the scenario")?;
    let library = folder.join("libcuda.so.1");
    std::fs::copy(&built, &library).with_context(|| {
        format!("cannot copy {}: build the package cuda-stub-*", built.display())
    })?;
    Ok(library)
}
