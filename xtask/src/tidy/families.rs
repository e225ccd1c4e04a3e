//! Every metric in the code is in the document that is written from what the code declares: one that is
//! not was forgotten in its crate's `tables`. Dashboards ask only for what exists.

use std::collections::{BTreeMap, BTreeSet};

use super::Finding;
use super::source::{Source, line_of};
use super::tree::Tree;
use super::wording::is_product;

const DOCUMENT: &str = "docs/metrics.md";
const RULE: &str = "docs/metrics.md lists every metric family, and dashboards ask for no others";

/// Name of a family → where it was seen first.
type Seen = BTreeMap<String, String>;

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let documented = in_document(tree);
    let finding = |place: String, what_to_do: String| Finding { place, rule: RULE, what_to_do };
    let unknown = |seen: Seen| seen.into_iter().filter(|(name, _)| !documented.contains(name));
    let missing = unknown(in_code(tree)).map(|(name, place)| {
        let what_to_do =
            format!("list `{name}` in the `tables` of its crate and run `cargo xtask metrics`");
        finding(place, what_to_do)
    });
    let queried = unknown(in_dashboards(tree))
        .map(|(name, place)| finding(place, format!("there is no `{name}`: correct the query")));
    missing.chain(queried).collect()
}

/// String literals of the product that are a family's name.
fn in_code(tree: &Tree) -> Seen {
    let mut seen = Seen::new();
    for file in tree.rust().filter(|it| is_product(&it.path)) {
        let text = Source::parse(&file.text).product_with_texts;
        collect(&mut seen, &file.path, &text, '"');
    }
    seen
}

/// Names in backticks in the first cell of a table row.
fn in_document(tree: &Tree) -> BTreeSet<String> {
    let document = tree.files.iter().filter(|it| it.path == DOCUMENT);
    document
        .flat_map(|it| it.text.lines())
        .filter_map(|it| Some(it.strip_prefix("| `")?.split_once('`')?.0.to_owned()))
        .collect()
}

fn in_dashboards(tree: &Tree) -> Seen {
    let mut seen = Seen::new();
    for file in tree.files.iter().filter(|it| it.path.starts_with("dashboards/")) {
        for (at, _) in file.text.match_indices("gleaner_") {
            let name: String =
                file.text[at..].chars().take_while(|it| is_family_character(*it)).collect();
            let place = format!("{}:{}", file.path, line_of(&file.text, at));
            seen.entry(name).or_insert(place);
        }
    }
    seen
}

fn collect(seen: &mut Seen, path: &str, text: &str, quote: char) {
    let opening = format!("{quote}gleaner_");
    for (at, _) in text.match_indices(&opening) {
        let name = text[at + 1..].split(quote).next().unwrap_or_default();
        if is_family(name) {
            seen.entry(name.to_owned()).or_insert(format!("{path}:{}", line_of(text, at)));
        }
    }
}

fn is_family(name: &str) -> bool {
    name.starts_with("gleaner_") && name.chars().all(is_family_character)
}

fn is_family_character(it: char) -> bool {
    it.is_ascii_lowercase() || it.is_ascii_digit() || it == '_'
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::tidy::tree::Tree;

    #[test]
    fn code_document_and_dashboards_agree() {
        let code = ("agent/src/metrics.rs", "//! x\nconst A: &str = \"gleaner_a_total\";");
        let row =
            ("docs/metrics.md", "| name | type |\n|---|---|\n| `gleaner_a_total` | counter |\n");
        let query = ("dashboards/fleet.json", "{\"expr\": \"rate(gleaner_a_total[5m])\"}");
        assert_eq!(check(&Tree::of(&[code, row, query])), []);

        let found = check(&Tree::of(&[code, query]));
        assert_eq!(found[0].place, "agent/src/metrics.rs:2");
        assert_eq!(found[1].what_to_do, "there is no `gleaner_a_total`: correct the query");
    }
}
