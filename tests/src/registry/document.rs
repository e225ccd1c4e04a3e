//! `docs/metrics.md`: its text is written by people, the tables in it from what the code declares.
//!
//! A table stands between two comments, of which the first names it.

use std::path::{Path, PathBuf};

use proto::family::{Family, Label, Stability, Subject};

use super::{Server, rows};

const OPEN: &str = "<!-- table: ";
const CLOSE: &str = "<!-- end of table -->";
const HEAD: &str = "| name | type | unit | labels | meaning | absent when | stability | served by |\n\
                    |---|---|---|---|---|---|---|---|\n";

/// Where the document is.
pub fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md")
}

/// The document with the tables that it should have; or which of them it lacks, or has too many.
pub fn fresh(document: &str) -> Result<String, String> {
    let known: Vec<&str> = rows().map(|(_, table, _)| table).collect();
    let mut written = Vec::new();
    let mut text = String::new();
    let mut lines = document.lines();
    while let Some(line) = lines.next() {
        text.push_str(line);
        text.push('\n');
        let Some(name) = line.strip_prefix(OPEN).and_then(|it| it.strip_suffix(" -->")) else {
            continue;
        };
        if !known.contains(&name) || written.contains(&name) {
            return Err(format!("no family is in the table {name}, or it is there already"));
        }
        if !lines.any(|it| it == CLOSE) {
            return Err(format!("the table {name} does not end with {CLOSE}"));
        }
        text.push_str(&table(name));
        text.push_str(CLOSE);
        text.push('\n');
        written.push(name);
    }
    match known.iter().find(|it| !written.contains(it)) {
        Some(name) => Err(format!("there is no {OPEN}{name} --> for its families")),
        None => Ok(text),
    }
}

fn table(name: &str) -> String {
    let rows = rows().filter(|(_, table, _)| *table == name);
    rows.fold(HEAD.to_owned(), |text, (server, _, family)| text + &row(server, &family))
}

fn row(server: Server, family: &Family) -> String {
    let stability = match family.stability {
        Stability::Stable => "stable",
        Stability::Experimental => "experimental",
    };
    let server = match server {
        Server::Agent => "agent",
        Server::Collector => "collector",
        Server::Both => "both",
    };
    let meaning = [family.help, family.note].join(" ");
    format!(
        "| `{}` | {} | {} | {} | {} | {} | {stability} | {server} |\n",
        family.name,
        family.kind.as_str(),
        family.unit().unwrap_or_default(),
        labels(family),
        meaning.trim_end(),
        family.absent,
    )
}

fn labels(family: &Family) -> String {
    let of_subject = match family.subject {
        Subject::Program => None,
        Subject::Node => Some("`node`".to_owned()),
        Subject::Device => Some("device labels".to_owned()),
        Subject::Instance => Some("instance labels".to_owned()),
        Subject::Tenant => Some("tenant labels".to_owned()),
    };
    let own = family.labels.iter().map(label);
    let all: Vec<String> = of_subject.into_iter().chain(own).collect();
    if all.is_empty() { "–".to_owned() } else { all.join(", ") }
}

fn label(label: &Label) -> String {
    let values: Vec<String> = label.values.iter().map(|it| format!("`{it}`")).collect();
    let name = format!("`{}`", label.name);
    if values.is_empty() { name } else { format!("{name} ({})", values.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::{CLOSE, OPEN, fresh, path, rows};

    #[test]
    fn the_document_is_what_the_code_declares() {
        let document = std::fs::read_to_string(path()).unwrap();
        let is_fresh = fresh(&document).as_ref() == Ok(&document);
        assert!(is_fresh, "docs/metrics.md is stale: run `cargo xtask metrics` and commit it");
    }

    /// A document with every table, empty.
    fn empty() -> String {
        let mut names: Vec<&str> = rows().map(|(_, table, _)| table).collect();
        names.dedup();
        names.sort_unstable();
        names.dedup();
        names.iter().map(|it| format!("text\n{OPEN}{it} -->\noutdated\n{CLOSE}\n")).collect()
    }

    #[test]
    fn tables_are_written_and_text_is_left_alone() {
        let written = fresh(&empty()).unwrap();
        assert!(!written.contains("outdated"));
        assert_eq!(written.matches("text\n").count(), empty().matches("text\n").count());
        let row = "| `gleaner_gpu_power_watts` | gauge | watts | device labels | Power draw of the \
                   device. | the device was not read, or does not say | stable | both |\n";
        assert!(written.contains(row), "{written}");
        assert_eq!(fresh(&written).unwrap(), written);
    }

    #[test]
    fn a_table_is_there_once() {
        let other = format!("{}{OPEN}novelty -->\n{CLOSE}\n", empty());
        assert!(fresh(&other).unwrap_err().contains("novelty"));
        let less = empty().replace("table: tracing", "table tracing");
        assert!(fresh(&less).unwrap_err().contains("tracing"));
        let open = empty().replacen(CLOSE, "", 1_000);
        assert!(fresh(&open).unwrap_err().contains("does not end"));
    }
}
