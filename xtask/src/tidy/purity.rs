//! The pure half does no I/O and reads no clock: that is what makes it testable by values.

use super::Finding;
use super::paths::paths;
use super::source::{Source, line_of};
use super::tree::{File, Tree};

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

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    tree.rust().filter(|it| is_pure(&it.path)).flat_map(findings).collect()
}

fn is_pure(path: &str) -> bool {
    let modules = [
        "agent/src/model/",
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
    fn others_and_tests_may() {
        check_one("agent/src/spool.rs", "use std::fs;", &[]);
        check_one("agent/src/accounting.rs", "use std::time::Duration;", &[]);
        check_one("agent/src/classify.rs", "#[cfg(test)]\nmod tests { use std::fs; }", &[]);
    }
}
