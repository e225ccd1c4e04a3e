//! Dashboards are JSON, and links between documents lead somewhere.

use std::collections::BTreeSet;

use super::Finding;
use super::tree::{File, Tree};

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let dashboards = tree.files.iter().filter(|it| it.path.starts_with("dashboards/"));
    let known: BTreeSet<&str> = tree.files.iter().map(|it| it.path.as_str()).collect();
    let documents = tree.files.iter().filter(|it| it.path.ends_with(".md"));
    dashboards
        .filter_map(unreadable)
        .chain(documents.flat_map(|it| dead_links(it, &known)))
        .collect()
}

fn unreadable(file: &File) -> Option<Finding> {
    let error = serde_json::from_str::<serde_json::Value>(&file.text).err()?;
    Some(Finding {
        place: format!("{}:{}", file.path, error.line()),
        rule: "a dashboard is JSON that Grafana can import",
        what_to_do: error.to_string(),
    })
}

/// Links to files of the repository; those with a scheme or only an anchor are left alone.
fn dead_links(file: &File, known: &BTreeSet<&str>) -> Vec<Finding> {
    let folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let links = file.text.lines().enumerate().flat_map(|(index, line)| {
        line.split("](").skip(1).filter_map(move |it| Some((index + 1, it.split_once(')')?.0)))
    });
    links
        .filter(|(_, link)| !link.contains("://") && !link.starts_with('#'))
        .filter(|(_, link)| {
            let target = resolve(folder, link.split('#').next().unwrap_or(link));
            !known.iter().any(|it| *it == target || it.starts_with(&format!("{target}/")))
        })
        .map(|(line, link)| Finding {
            place: format!("{}:{line}", file.path),
            rule: "a link in a document leads to a file of the repository",
            what_to_do: format!("correct or remove the link to {link}"),
        })
        .collect()
}

fn resolve(folder: &str, link: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').filter(|it| !it.is_empty()).collect();
    for part in link.trim_end_matches('/').split('/') {
        match part {
            "." | "" => {}
            ".." => drop(parts.pop()),
            it => parts.push(it),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::tidy::tree::Tree;

    #[test]
    fn broken_json_is_named_with_its_line() {
        let found = check(&Tree::of(&[("dashboards/a.json", "{\n\"a\": }")]));
        assert_eq!(found[0].place, "dashboards/a.json:2");
    }

    #[test]
    fn dead_links_are_named() {
        let tree = Tree::of(&[
            ("docs/a.md", "[b](b.md) [up](../README.md#x) [web](https://x.y)\n[gone](c.md)"),
            ("docs/b.md", "[folder](../docs/)"),
            ("README.md", ""),
        ]);
        let found = check(&tree);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].place, "docs/a.md:2");
    }
}
