//! Writes the exported entries of one build: each a few instructions, then a jump to the function of
//! `cuda-stub` that answers. Shared by the build scripts of the three builds.

use std::fmt::Write as _;
use std::path::PathBuf;

const LIST: &str = include_str!("symbols.txt");

/// What an entry consists of around the jump, on x86-64. Elsewhere it is the jump alone.
pub(crate) struct Entry {
    /// Before the jump. Leaves arguments and stack as they were.
    pub(crate) before: &'static [&'static str],
    pub(crate) after: &'static [&'static str],
    /// Operands that the instructions name.
    pub(crate) operands: &'static str,
}

/// Generates `entries.rs` and names the library as its callers ask for it.
#[expect(clippy::disallowed_methods, reason = "how cargo speaks to a build script")]
pub(crate) fn generate(entry: &Entry) {
    let architecture = std::env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    let folder = PathBuf::from(std::env::var("OUT_DIR").expect("cargo sets it"));
    let mut source = String::new();
    for (name, function) in symbols() {
        let code = if architecture == "x86_64" {
            on_x86(entry, function)
        } else {
            format!("\"b {{behaviour}}\", behaviour = sym cuda_stub::{function}")
        };
        write!(
            source,
            "#[unsafe(naked)]\n#[unsafe(no_mangle)]\nextern \"C\" fn {name}() {{\n    \
             std::arch::naked_asm!({code})\n}}\n"
        )
        .expect("writing to a string succeeds");
    }
    std::fs::write(folder.join("entries.rs"), source).expect("cargo's folder is writable");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libcuda.so.1");
    for file in ["build.rs", "../entries.rs", "../symbols.txt"] {
        println!("cargo::rerun-if-changed={file}");
    }
}

fn on_x86(entry: &Entry, function: &str) -> String {
    let lines = |lines: &[&str]| lines.iter().map(|it| format!("\"{it}\", ")).collect::<String>();
    let (before, after) = (lines(entry.before), lines(entry.after));
    let operands = entry.operands;
    // Whoever patches an entry needs more room than it fills: the driver's functions have it.
    let room = "\".p2align 4, 0xcc\", ";
    format!(
        "{before}\"jmp {{behaviour}}\", {after}{room}{operands}behaviour = sym cuda_stub::{function}"
    )
}

/// Name and function, line by line.
fn symbols() -> impl Iterator<Item = (&'static str, &'static str)> {
    let lines = LIST.lines().filter(|it| !it.is_empty() && !it.starts_with('#'));
    lines.map(|it| it.split_once(' ').expect("a name, a space, a function"))
}
