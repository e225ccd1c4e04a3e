//! Every configuration key is documented, and every documented one exists.

use std::collections::{BTreeMap, BTreeSet};

use super::Finding;
use super::source::Source;
use super::tree::Tree;

const DOCUMENT: &str = "docs/operations.md";
const RULE: &str =
    "docs/operations.md lists every configuration key, with its default, range and meaning";

/// A daemon's configuration, and the heading under which its keys are.
const DAEMONS: [(&str, &str); 2] = [
    ("agent/src/config.rs", "## Configuration of the agent"),
    ("collector/src/config.rs", "## Configuration of the collector"),
];

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let text = |path: &str| tree.files.iter().find(|it| it.path == path).map(|it| it.text.as_str());
    let document = text(DOCUMENT).unwrap_or_default();
    let mut findings = Vec::new();
    for (path, heading) in DAEMONS {
        let Some(source) = text(path) else { continue };
        let (known, written) = (keys(source), documented(document, heading));
        findings.extend(known.difference(&written).map(|it| Finding {
            place: path.to_owned(),
            rule: RULE,
            what_to_do: format!("add a row for `{it}` under \"{heading}\""),
        }));
        findings.extend(written.difference(&known).map(|it| Finding {
            place: DOCUMENT.to_owned(),
            rule: RULE,
            what_to_do: format!("{path} has no key `{it}`: remove its row"),
        }));
    }
    findings
}

/// `RawConfig`'s fields, and those of the tables in it as `table.field`.
fn keys(source: &str) -> BTreeSet<String> {
    let product = Source::parse(source).product;
    let structs: BTreeMap<&str, Vec<(&str, &str)>> = product
        .split("pub struct ")
        .skip(1)
        .filter_map(|it| {
            let (name, rest) = it.split_once(" {")?;
            Some((name, fields(rest.split('}').next()?)))
        })
        .collect();
    let top = structs.get("RawConfig").map(Vec::as_slice).unwrap_or_default();
    top.iter()
        .flat_map(|(name, kind)| match structs.get(kind) {
            Some(inner) => inner.iter().map(|(field, _)| format!("{name}.{field}")).collect(),
            None => vec![(*name).to_owned()],
        })
        .collect()
}

/// Name and type of each public field.
fn fields(body: &str) -> Vec<(&str, &str)> {
    body.lines()
        .filter_map(|it| it.trim().strip_prefix("pub ")?.trim_end_matches(',').split_once(": "))
        .collect()
}

/// The first cells of the table under `heading`.
fn documented(document: &str, heading: &str) -> BTreeSet<String> {
    let section = document.split(heading).nth(1).unwrap_or_default();
    let section = section.split("\n## ").next().unwrap_or_default();
    section
        .lines()
        .filter_map(|it| Some(it.strip_prefix("| `")?.split_once('`')?.0.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::tidy::tree::Tree;

    const SOURCE: &str = "//! x\npub struct RawConfig {\n    /// Doc.\n    pub tick_ms: u64,\n    \
                          pub nvml: RawNvml,\n}\npub struct RawNvml {\n    pub library: PathBuf,\n}\n";

    fn found(rows: &str) -> Vec<String> {
        let document = format!("## Configuration of the agent\n\n{rows}\n## Other\n| `x` |\n");
        let tree = Tree::of(&[("agent/src/config.rs", SOURCE), ("docs/operations.md", &document)]);
        check(&tree).into_iter().map(|it| it.what_to_do).collect()
    }

    #[test]
    fn code_and_document_agree() {
        assert!(found("| `tick_ms` | 1 |\n| `nvml.library` | x |").is_empty());
        let missing = found("| `tick_ms` | 1 |");
        assert_eq!(
            missing,
            ["add a row for `nvml.library` under \"## Configuration of the agent\""]
        );
        let stale = found("| `tick_ms` | 1 |\n| `nvml.library` | x |\n| `tock_ms` | 1 |");
        assert_eq!(stale, ["agent/src/config.rs has no key `tock_ms`: remove its row"]);
    }
}
