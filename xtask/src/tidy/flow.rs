//! Modules import only from the left of the flow, so that data has one direction.

use super::Finding;
use super::paths::paths;
use super::source::{Source, line_of};
use super::tree::{File, Tree};

const RULE: &str = "modules import only from the left of the flow, so that data has one direction";

/// The modules of a crate, left to right. A name with a slash is a file or folder below a module
/// and comes before its parent: the longest name that fits counts.
struct Crate {
    source: &'static str,
    order: &'static [&'static str],
}

const CRATES: [Crate; 2] = [
    Crate {
        source: "agent/src/",
        order: &[
            "model",
            "config",
            "clock",
            "samplers",
            "recorder",
            "attribution",
            "classify",
            "advice",
            "accounting",
            "totals",
            "pacing",
            "pipeline",
            "record",
            "spool",
            "uplink",
            "health",
            "status",
            "metrics",
            "doctor",
            "admin",
            "control",
            "run",
            "main",
        ],
    },
    Crate {
        source: "collector/src/",
        order: &[
            "model", "config", "clock", "metrics", "ledger", "state", "ingest", "capacity",
            "outputs", "run", "main",
        ],
    },
];

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for it in &CRATES {
        for file in tree.rust().filter(|file| file.path.starts_with(it.source)) {
            findings.extend(it.check(file));
        }
    }
    findings
}

impl Crate {
    fn check(&self, file: &File) -> Vec<Finding> {
        let module = file.path[self.source.len()..].trim_end_matches(".rs").replace("/mod", "");
        if module == "lib" || module.starts_with("bin/") {
            return Vec::new();
        }
        let Some(own) = self.rank(&module) else {
            return vec![Finding {
                place: file.path.clone(),
                rule: RULE,
                what_to_do: "give the module its place in the order in xtask/src/tidy/flow.rs"
                    .to_owned(),
            }];
        };
        let product = Source::parse(&file.text).product;
        let imports = paths(&product).into_iter().filter_map(|it| {
            let imported = it.path.strip_prefix("crate::")?.replace("::", "/");
            let rank = self.rank(&imported)?;
            (rank > own).then(|| Finding {
                place: format!("{}:{}", file.path, line_of(&product, it.at)),
                rule: RULE,
                what_to_do: format!(
                    "`{}` is to the right of `{}`: pass the value in, or move what both need to the left",
                    self.order[rank], self.order[own]
                ),
            })
        });
        imports.collect()
    }

    /// Position of the longest name that `module` is or lies in.
    fn rank(&self, module: &str) -> Option<usize> {
        let fits = |name: &str| {
            module.strip_prefix(name).is_some_and(|it| it.is_empty() || it.starts_with('/'))
        };
        (0..self.order.len())
            .filter(|it| fits(self.order[*it]))
            .max_by_key(|it| self.order[*it].len())
    }
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::tidy::tree::Tree;

    fn found(path: &str, text: &str) -> Vec<(String, String)> {
        let found = check(&Tree::of(&[(path, text)]));
        found.into_iter().map(|it| (it.place, it.what_to_do)).collect()
    }

    #[test]
    fn an_import_from_the_right_is_named() {
        let text = "//! x\nuse crate::{model::ids::DeviceId, spool};\n";
        let found = found("agent/src/samplers/nvml/decode.rs", text);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0, "agent/src/samplers/nvml/decode.rs:2");
        assert!(found[0].1.starts_with("`spool` is to the right of `samplers`"));
    }

    #[test]
    fn imports_from_the_left_and_in_tests_are_fine() {
        assert!(found("agent/src/uplink/mod.rs", "use crate::spool::Spool;").is_empty());
        let text = "#[cfg(test)]\nmod tests { use crate::run::start; }";
        assert!(found("agent/src/spool.rs", text).is_empty());
        assert!(found("agent/src/lib.rs", "use crate::run::start;").is_empty());
    }

    #[test]
    fn a_module_without_a_place_is_named() {
        assert_eq!(found("agent/src/novelty.rs", "//! x")[0].0, "agent/src/novelty.rs");
    }
}
