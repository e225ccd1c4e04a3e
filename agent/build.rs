//! Puts the eBPF object where `samplers/cuda/driver.rs` embeds it, and refuses to build an agent
//! without one or with one that is older than its sources. Builds nothing itself: the object needs
//! another compiler, which `cargo xtask bpf` finds.

#[path = "../agent-ebpf/fingerprint.rs"]
mod fingerprint;

use std::path::{Path, PathBuf};

fn main() {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let root = manifest.parent().expect("the agent is a folder of the workspace");
    let sources = root.join("agent-ebpf");
    let object = root.join("target/bpf/gleaner-ebpf");
    for watched in [&sources.join("src"), &sources.join("Cargo.toml"), &stamp(&object)] {
        println!("cargo::rerun-if-changed={}", watched.display());
    }
    if let Err(why) = embed(&sources, &object) {
        println!("cargo::error={why}; run `cargo xtask bpf`, then build again");
    }
}

fn embed(sources: &Path, object: &Path) -> Result<(), String> {
    let wanted = fingerprint::fingerprint(sources).map_err(|it| format!("agent-ebpf: {it}"))?;
    let built_from = std::fs::read_to_string(stamp(object))
        .map_err(|it| format!("there is no eBPF object {} ({it})", object.display()))?;
    if built_from != wanted {
        return Err(format!("the eBPF object {} is older than its sources", object.display()));
    }
    let out = std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts");
    std::fs::copy(object, Path::new(&out).join("gleaner-ebpf"))
        .map(|_| ())
        .map_err(|it| format!("cannot copy {}: {it}", object.display()))
}

fn stamp(object: &Path) -> PathBuf {
    object.with_extension("source")
}
