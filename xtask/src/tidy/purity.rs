//! The pure half does no I/O and reads no clock: that is what makes it testable by values. Of the rest
//! only drivers know the files of the system.

use super::Finding;
use super::paths::paths;
use super::source::{Source, line_of};
use super::tree::{File, Tree};
use super::wording::is_product;

const RULE: &str = "attribution, accounting, classify, state, capacity/policy, decode.rs and probe.rs do no I/O \
     and read no clock, so that every case is a test with values";

/// What reaches outside the process. Channels do not: `tokio::sync` is not here.
const OUTSIDE: [&str; 30] = [
    "std::env",
    "std::fs",
    "std::io",
    "std::net",
    "std::os",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "aya",
    "axum",
    "hyper_util",
    "libc",
    "libloading",
    "nix",
    "nvml_wrapper::Nvml",
    "nvml_wrapper::Device",
    "nvml_wrapper::device",
    "rusqlite",
    "tokio::fs",
    "tokio::io",
    "tokio::net",
    "tokio::process",
    "tokio::runtime",
    "tokio::signal",
    "tokio::spawn",
    "tokio::task",
    "tokio::time",
    "tonic",
    "crate::clock",
];

const DRIVERS: &str = "of the agent only samplers/*/driver.rs reads /proc and other files of the system: what is \
     where is then known in one place. Spool, configuration, control and recorder have files of their own";

/// What reads files.
const FILES: [&str; 2] = ["std::fs", "tokio::fs"];

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let pure = tree.rust().filter(|it| is_pure(&it.path)).flat_map(findings);
    let without_files = tree.rust().filter(|it| !may_have_files(&it.path)).flat_map(files);
    pure.chain(without_files).collect()
}

fn is_pure(path: &str) -> bool {
    let modules = [
        "agent/src/model/",
        "agent/src/advice",
        "agent/src/attribution",
        "agent/src/accounting",
        "agent/src/classify",
        "agent/src/pipeline",
        "agent/src/samplers/cuda/probe/",
        "agent/src/totals",
        "collector/src/model/",
        "collector/src/state/",
        "collector/src/capacity/policy",
    ];
    let product = path.starts_with("agent/src/") || path.starts_with("collector/src/");
    modules.iter().any(|it| path.starts_with(it))
        || product && (path.ends_with("/decode.rs") || path.ends_with("/probe.rs"))
}

fn may_have_files(path: &str) -> bool {
    let Some(inner) = path.strip_prefix("agent/src/") else { return true };
    // What is pure is looked at already.
    is_pure(path)
        || !is_product(path)
        || inner.starts_with("samplers/") && inner.ends_with("/driver.rs")
        || ["spool/", "control/", "recorder/", "config.rs"].iter().any(|it| inner.starts_with(it))
}

fn files(file: &File) -> Vec<Finding> {
    let Source { product, product_with_texts, .. } = Source::parse(&file.text);
    let named = paths(&product).into_iter();
    let named = named.filter(|it| FILES.iter().any(|files| it.is_within(files))).map(|it| it.at);
    let written = product_with_texts.match_indices("/proc/").map(|(at, _)| at);
    named
        .chain(written)
        .map(|at| Finding {
            place: format!("{}:{}", file.path, line_of(&product, at)),
            rule: DRIVERS,
            what_to_do: "ask samplers/process/driver.rs, or another driver".to_owned(),
        })
        .collect()
}

fn findings(file: &File) -> Vec<Finding> {
    let product = Source::parse(&file.text).product;
    let named = paths(&product).into_iter();
    named
        .filter_map(|it| {
            let outside = OUTSIDE.iter().find(|outside| it.is_within(outside))?;
            Some(Finding {
                place: format!("{}:{}", file.path, line_of(&product, it.at)),
                rule: RULE,
                what_to_do: format!(
                    "`{outside}` reaches outside: read it in a driver and pass the value in"
                ),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::tidy::tree::Tree;

    fn check_one(path: &str, text: &str, expected: &[&str]) {
        let found: Vec<String> =
            check(&Tree::of(&[(path, text)])).into_iter().map(|it| it.place).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_pure_module_reaches_nothing() {
        check_one(
            "agent/src/accounting.rs",
            "//! x\nuse std::{collections::BTreeMap, fs};",
            &["agent/src/accounting.rs:2"],
        );
        check_one(
            "agent/src/samplers/nvml/decode.rs",
            "fn f() { nix::unistd::getpid(); }",
            &["agent/src/samplers/nvml/decode.rs:1"],
        );
        check_one(
            "collector/src/state/node.rs",
            "let now = std::time::Instant::now();",
            &["collector/src/state/node.rs:1"],
        );
    }

    #[test]
    fn what_is_in_proc_is_known_to_drivers() {
        let reads = "//! x\nfn f(root: &Path) { std::fs::read(root.join(\"self/cgroup\")) }";
        check_one("agent/src/doctor/mod.rs", reads, &["agent/src/doctor/mod.rs:2"]);
        check_one("agent/src/clock.rs", "use std::{fs::read, io};", &["agent/src/clock.rs:1"]);
        let names = "fn f() { open(\"/proc/self/maps\") } // not /proc/self/mem";
        check_one("agent/src/samplers/cuda/mod.rs", names, &["agent/src/samplers/cuda/mod.rs:1"]);
        check_one("agent/src/samplers/process/driver.rs", names, &[]);
        check_one("agent/src/run/mod.rs", "fn f() { \"the host's /proc is mounted\" }", &[]);
    }

    #[test]
    fn others_and_tests_may() {
        check_one("agent/src/spool/writer.rs", "use std::fs;", &[]);
        check_one("agent/src/accounting.rs", "use std::time::Duration;", &[]);
        check_one("agent/src/classify.rs", "#[cfg(test)]\nmod tests { use std::fs; }", &[]);
    }
}
