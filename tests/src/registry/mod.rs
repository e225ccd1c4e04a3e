//! Every metric family of the product, and whether a scrape keeps to what they declare.

pub mod document;

use proto::family::{Family, Kind, Table};

use crate::scrape::{Scrape, Series};

/// Who serves a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    Agent,
    Collector,
    Both,
}

/// What the code declares, by who serves it.
fn tables() -> [(Server, Vec<Table>); 3] {
    [
        (Server::Both, proto::series::tables()),
        (Server::Agent, agent::metrics::tables()),
        (Server::Collector, collector::outputs::tables()),
    ]
}

/// Every family, with who serves it and the table that it is in.
fn rows() -> impl Iterator<Item = (Server, &'static str, Family)> {
    tables().into_iter().flat_map(|(server, tables)| {
        tables.into_iter().flat_map(move |table| {
            table.families.into_iter().map(move |it| (server, table.name, it))
        })
    })
}

/// Where a scrape of one of the two differs from what its families declare; empty = nowhere.
pub fn findings(scrape: &Scrape, server: Server) -> Vec<String> {
    let served = |it: Server| it == server || it == Server::Both;
    let families: Vec<Family> =
        rows().filter(|(it, ..)| served(*it)).map(|(_, _, family)| family).collect();
    let types = scrape.types().filter_map(|(name, kind)| {
        let family = families.iter().find(|it| it.name == name);
        let declared = family.map(|it| it.kind.as_str());
        (declared != Some(kind)).then(|| format!("{name} is a {kind}, declared is {declared:?}"))
    });
    let labels = scrape.series().filter_map(|(name, series)| {
        let family = families.iter().find(|it| is_of(it, name))?;
        let wrong = wrong_label(family, series)?;
        Some(format!("{name} {:?}: {wrong} is not what is declared", series.labels))
    });
    types.chain(labels).collect()
}

/// Whether samples of this name are of the family: a histogram has three names.
fn is_of(family: &Family, name: &str) -> bool {
    let rest = name.strip_prefix(family.name);
    let of_histogram = ["_bucket", "_sum", "_count"];
    rest == Some("")
        || family.kind == Kind::Histogram && rest.is_some_and(|it| of_histogram.contains(&it))
}

/// A label that the family does not take, or one of its subject that is missing.
fn wrong_label<'a>(family: &Family, series: &'a Series) -> Option<&'a str> {
    let is_bound = |name: &str| family.kind == Kind::Histogram && name == "le";
    let mut labels = series.labels.iter();
    let unknown = labels.find(|(name, value)| !family.takes(name, value) && !is_bound(name));
    let missing = || family.subject.labels().find(|it| !series.labels.contains_key(*it));
    unknown.map(|(name, _)| name.as_str()).or_else(missing)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proto::family::{Family, Kind};

    use super::{Server, findings, rows};
    use crate::scrape::Scrape;

    /// What is not said of a family, or said badly.
    fn fault(it: &Family) -> Option<&'static str> {
        let is_name = |name: &str| name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
        let labels = it.subject.labels().chain(it.subject.optional_labels());
        let labels: Vec<&str> = labels.chain(it.labels.iter().map(|it| it.name)).collect();
        let once: BTreeSet<&str> = labels.iter().copied().collect();
        let (is_counter, is_ours) = (it.kind == Kind::Counter, !it.name.starts_with("DCGM_"));
        let in_one_cell = |text: &str| !text.contains(['|', '\n', '\\']);
        let faults = [
            (!is_name(it.name) || !labels.iter().all(|it| is_name(it)), "a name"),
            (is_ours && is_counter != it.name.ends_with("_total"), "type and ending"),
            (it.unit().is_none(), "no unit"),
            (!it.help.ends_with('.') || !in_one_cell(it.help), "the help is no sentence"),
            (it.absent.is_empty() || !in_one_cell(it.absent), "when is it absent?"),
            (!in_one_cell(it.note), "the note"),
            (once.len() != labels.len(), "a label twice"),
        ];
        faults.into_iter().find(|(is_wrong, _)| *is_wrong).map(|(_, what)| what)
    }

    #[test]
    fn everything_is_said_of_every_family() {
        let faults: Vec<_> = rows().filter_map(|(_, _, it)| Some((it.name, fault(&it)?))).collect();
        assert_eq!(faults, []);
    }

    #[test]
    fn every_family_is_declared_once() {
        let names: Vec<&str> = rows().map(|(_, _, it)| it.name).collect();
        let once: BTreeSet<&str> = names.iter().copied().collect();
        assert_eq!(once.len(), names.len());
    }

    fn found(text: &str) -> Vec<String> {
        findings(&Scrape::parse(text.to_owned()).unwrap(), Server::Agent)
    }

    #[test]
    fn what_is_declared_is_fine() {
        let text = "# TYPE gleaner_tracing_on gauge\ngleaner_tracing_on{node=\"n\"} 1\n\
            # TYPE gleaner_agent_reading_seconds histogram\n\
            gleaner_agent_reading_seconds_bucket{le=\"0.1\"} 1\n\
            gleaner_agent_reading_seconds_sum 0.1\ngleaner_agent_reading_seconds_count 1\n";
        assert_eq!(found(text), Vec::<String>::new());
    }

    #[test]
    fn what_is_not_declared_is_found() {
        for text in [
            "# TYPE gleaner_new gauge\ngleaner_new 1\n",
            "# TYPE gleaner_node_up gauge\ngleaner_node_up{node=\"n\"} 1\n",
            "# TYPE gleaner_tracing_on counter\ngleaner_tracing_on{node=\"n\"} 1\n",
            "# TYPE gleaner_tracing_on gauge\ngleaner_tracing_on 1\n",
            "# TYPE gleaner_tracing_on gauge\ngleaner_tracing_on{node=\"n\",gpu=\"0\"} 1\n",
            "# TYPE gleaner_tracing_lost_total counter\n\
                gleaner_tracing_lost_total{node=\"n\",cause=\"x\"} 1\n",
        ] {
            assert_eq!(found(text).len(), 1, "{text}");
        }
    }
}
