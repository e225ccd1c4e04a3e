//! What a crate must not depend on, read from cargo's own tree.

use std::collections::BTreeSet;

use super::Finding;
use crate::shell;

/// A package, and what its build may and must contain. `holds` guards against a misspelt `lacks`,
/// which would pass for ever.
struct Rule {
    package: &'static str,
    lacks: &'static [&'static str],
    holds: &'static [&'static str],
    rule: &'static str,
}

const RULES: [Rule; 4] = [
    Rule {
        package: "collector",
        lacks: &["aya", "aya-obj", "nvml-wrapper", "agent", "agent-ebpf", "gpu-state", "tests"],
        holds: &["proto", "hyper", "rusqlite"],
        rule: "the collector knows neither the kernel side nor NVML: it runs anywhere",
    },
    Rule {
        package: "agent",
        lacks: &["collector", "gpu-state", "nvml-stub", "cuda-stub", "workload", "tests", "kube"],
        holds: &["aya", "aya-obj", "nvml-wrapper", "agent-ebpf", "proto"],
        rule: "the agent knows neither the collector nor that tests exist",
    },
    Rule {
        package: "proto",
        lacks: &["hyper", "rustls", "agent", "collector", "agent-ebpf"],
        holds: &["tonic", "prost"],
        rule: "the wire contract brings no transport",
    },
    Rule {
        package: "agent-ebpf",
        lacks: &["agent", "collector", "proto", "tokio"],
        holds: &["aya"],
        rule: "the kernel side depends on nothing of ours",
    },
];

pub(super) fn check() -> anyhow::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for rule in &RULES {
        let edges = "normal,build";
        let arguments = ["tree", "--package", rule.package, "--edges", edges, "--prefix", "none"];
        findings.extend(rule.check(&shell::output(shell::cargo(arguments))?));
    }
    Ok(findings)
}

impl Rule {
    /// `tree` has one package per line: `name v1.2.3 …`.
    fn check(&self, tree: &str) -> Vec<Finding> {
        let names: BTreeSet<&str> =
            tree.lines().filter_map(|it| it.split_whitespace().next()).collect();
        let finding = |what_to_do: String| Finding {
            place: format!("{}/Cargo.toml", self.package),
            rule: self.rule,
            what_to_do,
        };
        let lacks = self.lacks.iter().filter(|it| names.contains(**it)).map(|it| {
            finding(format!(
                "remove it: `cargo tree -p {} -i {it}` shows who brings it",
                self.package
            ))
        });
        let holds = self.holds.iter().filter(|it| !names.contains(**it)).map(|it| {
            finding(format!(
                "`{it}` is gone; if that is meant, correct xtask/src/tidy/dependencies.rs"
            ))
        });
        lacks.chain(holds).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::RULES;

    #[test]
    fn what_must_not_be_there_and_what_must_are_named() {
        let rule = &RULES[2];
        assert_eq!(rule.check("proto v0.1.0 (/x)\ntonic v0.14.9\nprost v0.14.4"), []);
        let found = rule.check("proto v0.1.0 (/x)\ntonic v0.14.9\nhyper v1.12.0");
        assert!(found[0].what_to_do.contains("cargo tree -p proto -i hyper"));
        assert!(found[1].what_to_do.starts_with("`prost` is gone"));
    }
}
