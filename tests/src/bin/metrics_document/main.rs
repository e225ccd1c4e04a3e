//! Writes the tables of `docs/metrics.md` from what the code declares; `cargo xtask metrics` runs it.
#![expect(clippy::print_stdout, reason = "it talks to the person who runs it")]

use anyhow::Context;
use tests::registry::document::{fresh, path};

fn main() -> anyhow::Result<()> {
    let old = std::fs::read_to_string(path()).context("docs/metrics.md cannot be read")?;
    let new = fresh(&old).map_err(|error| anyhow::anyhow!("docs/metrics.md: {error}"))?;
    if old != new {
        std::fs::write(path(), new).context("docs/metrics.md cannot be written")?;
        println!("docs/metrics.md is written anew: commit it");
    }
    Ok(())
}
