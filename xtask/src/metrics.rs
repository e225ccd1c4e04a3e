//! `cargo xtask metrics`: writes the tables of `docs/metrics.md` from the metric families that agent and
//! collector declare. A test of the package `tests` fails where they differ.

use crate::{bpf, shell};

pub(crate) fn run() -> anyhow::Result<()> {
    bpf::run()?;
    let package = ["run", "--quiet", "--locked", "--package", "tests"];
    let mut document = shell::cargo(package);
    document.args(["--bin", "metrics_document"]);
    shell::run(document)
}
