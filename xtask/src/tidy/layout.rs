//! The root shows what the design names, and nothing else.

use std::collections::BTreeSet;

use super::Finding;
use super::tree::Tree;

/// Besides dotfiles.
const ROOT: [&str; 14] = [
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "agent",
    "agent-ebpf",
    "collector",
    "dashboards",
    "deploy",
    "docs",
    "proto",
    "tests",
    "xtask",
];
const RULE: &str =
    "the root holds the parts of the design and no more: it is the map of the project";

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let found: BTreeSet<&str> = tree
        .files
        .iter()
        .filter_map(|it| it.path.split('/').next())
        .filter(|it| !it.starts_with('.'))
        .collect();
    let expected = BTreeSet::from(ROOT);
    let finding = |entry: &&str, what_to_do: &str| Finding {
        place: (*entry).to_owned(),
        rule: RULE,
        what_to_do: what_to_do.to_owned(),
    };
    let extra = found.difference(&expected).map(|it| finding(it, "move it below one of the parts"));
    let missing = expected.difference(&found).map(|it| finding(it, "it is missing: restore it"));
    extra.chain(missing).collect()
}

#[cfg(test)]
mod tests {
    use super::{ROOT, check};
    use crate::tidy::tree::Tree;

    #[test]
    fn extra_and_missing_entries_are_named() {
        let mut files: Vec<(&str, &str)> = ROOT.iter().map(|it| (*it, "")).collect();
        files.push((".gitignore", ""));
        assert_eq!(check(&Tree::of(&files)), []);
        files.retain(|(path, _)| *path != "LICENSE");
        files.push(("scripts/run.sh", ""));
        let places: Vec<String> = check(&Tree::of(&files)).into_iter().map(|it| it.place).collect();
        assert_eq!(places, ["scripts", "LICENSE"]);
    }
}
