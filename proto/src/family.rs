//! What is told of a metric family: to Prometheus, and to the readers of `docs/metrics.md`.
//!
//! A family is declared once, as a constant beside the code that fills it, and listed in the `tables`
//! of its crate, from which the document is written. Values and text are `exposition`'s.

/// One metric family. What is empty was not said yet: a test over all families asks for it.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    pub name: &'static str,
    pub kind: Kind,
    /// What a value says, in one sentence. A scrape carries it too.
    pub help: &'static str,
    pub subject: Subject,
    /// Labels beside those of the subject.
    pub labels: &'static [Label],
    /// When there is no series.
    pub absent: &'static str,
    /// Where it comes from, and what a reader may get wrong; empty = the help says it all.
    pub note: &'static str,
    pub stability: Stability,
    unit: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// What a series is about, which decides the labels that each series of the family carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The program that serves it.
    Program,
    Node,
    Device,
    Instance,
    Tenant,
}

/// A label of a family's own.
#[derive(Clone, Copy, Debug)]
pub struct Label {
    pub name: &'static str,
    /// All that it can be; empty = not from a list.
    pub values: &'static [&'static str],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stability {
    /// Name, unit and labels stay within a major version.
    Stable,
    Experimental,
}

/// A table of `docs/metrics.md`: its name there, and families of it in the order of its rows.
#[derive(Clone, Debug)]
pub struct Table {
    pub name: &'static str,
    pub families: Vec<Family>,
}

/// The unit of what is true or not.
pub const FLAG: &str = "0 or 1";

/// Units that a name ends in; the longest that fits counts.
const SUFFIXES: [(&str, &str); 11] = [
    ("_bytes_per_second", "bytes per second"),
    ("_byte_seconds", "byte seconds"),
    ("_timestamp_seconds", "Unix time"),
    ("_seconds", "seconds"),
    ("_bytes", "bytes"),
    ("_joules", "joules"),
    ("_watts", "watts"),
    ("_celsius", "°C"),
    ("_hertz", "hertz"),
    ("_ratio", "0–1"),
    ("_info", "1"),
];

/// The names in a list of pairs, as the values of a label.
#[must_use]
pub const fn names<T, const N: usize>(pairs: &[(&'static str, T); N]) -> [&'static str; N] {
    let mut names = [""; N];
    let mut at = 0;
    while at < N {
        names[at] = pairs[at].0;
        at += 1;
    }
    names
}

// === impl Family ===

impl Family {
    #[must_use]
    pub const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self::new(Kind::Gauge, name, help)
    }

    /// `name` ends in `_total`.
    #[must_use]
    pub const fn counter(name: &'static str, help: &'static str) -> Self {
        Self::new(Kind::Counter, name, help)
    }

    #[must_use]
    pub const fn histogram(name: &'static str, help: &'static str) -> Self {
        Self::new(Kind::Histogram, name, help)
    }

    const fn new(kind: Kind, name: &'static str, help: &'static str) -> Self {
        Self {
            name,
            kind,
            help,
            subject: Subject::Program,
            labels: &[],
            absent: "",
            note: "",
            stability: Stability::Stable,
            unit: None,
        }
    }

    /// What its series are about, where that is not the program.
    #[must_use]
    pub const fn of(self, subject: Subject) -> Self {
        Self { subject, ..self }
    }

    #[must_use]
    pub const fn by(self, labels: &'static [Label]) -> Self {
        Self { labels, ..self }
    }

    /// For a name that does not end in its unit.
    #[must_use]
    pub const fn in_unit(self, unit: &'static str) -> Self {
        Self { unit: Some(unit), ..self }
    }

    #[must_use]
    pub const fn absent(self, when: &'static str) -> Self {
        Self { absent: when, ..self }
    }

    #[must_use]
    pub const fn note(self, note: &'static str) -> Self {
        Self { note, ..self }
    }

    #[must_use]
    pub const fn experimental(self) -> Self {
        Self { stability: Stability::Experimental, ..self }
    }

    /// Of its values; `None` = neither said nor in the name.
    #[must_use]
    pub fn unit(&self) -> Option<&'static str> {
        self.unit.or_else(|| unit_in(self.name))
    }

    /// Whether a series of it may have this label with this value. An empty one is none.
    #[must_use]
    pub fn takes(&self, name: &str, value: &str) -> bool {
        let mut of_subject = self.subject.labels().chain(self.subject.optional_labels());
        let own = self.labels.iter().find(|it| it.name == name);
        own.is_some_and(|it| it.takes(value)) || of_subject.any(|it| it == name)
    }
}

fn unit_in(name: &str) -> Option<&'static str> {
    let name = name.strip_suffix("_total").unwrap_or(name);
    SUFFIXES.iter().find(|(suffix, _)| name.ends_with(suffix)).map(|(_, unit)| *unit)
}

// === impl Kind ===

impl Kind {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

// === impl Subject ===

impl Subject {
    /// Labels that every series about it has.
    pub fn labels(self) -> impl Iterator<Item = &'static str> {
        let labels: &[&str] = match self {
            Self::Program => &[],
            Self::Node => &["node"],
            Self::Device | Self::Instance => &["node", "gpu_uuid"],
            Self::Tenant => &["tenant"],
        };
        labels.iter().copied()
    }

    /// Labels that a series about it has where there is something to say.
    pub fn optional_labels(self) -> impl Iterator<Item = &'static str> {
        let labels: &[&str] = match self {
            Self::Program | Self::Node | Self::Device => &[],
            Self::Instance => &["mig_uuid"],
            Self::Tenant => &["tenant_namespace", "tenant_pod", "tenant_container"],
        };
        labels.iter().copied()
    }
}

// === impl Label ===

impl Label {
    /// A label with every value that it can have.
    #[must_use]
    pub const fn of(name: &'static str, values: &'static [&'static str]) -> Self {
        Self { name, values }
    }

    /// A label whose values are not from a list.
    #[must_use]
    pub const fn free(name: &'static str) -> Self {
        Self { name, values: &[] }
    }

    fn takes(&self, value: &str) -> bool {
        value.is_empty() || self.values.is_empty() || self.values.contains(&value)
    }
}

#[cfg(test)]
mod tests {
    use super::{Family, Label, Subject, names};

    const STATES: [(&str, u8); 2] = [("cold", 1), ("hot", 2)];
    const FAMILY: Family = Family::gauge("gleaner_test_state", "A test.")
        .of(Subject::Instance)
        .by(&[Label::of("state", &names(&STATES)), Label::free("why")]);

    #[test]
    fn a_family_takes_the_labels_of_its_subject_and_its_own() {
        for (label, value) in [("node", "n"), ("mig_uuid", "MIG-1"), ("state", "hot"), ("why", "x")]
        {
            assert!(FAMILY.takes(label, value), "{label}={value}");
        }
        for (label, value) in [("tenant", "t"), ("state", "warm"), ("gpu", "0")] {
            assert!(!FAMILY.takes(label, value), "{label}={value}");
        }
    }

    #[test]
    fn a_unit_is_said_or_in_the_name() {
        let unit = |name| Family::counter(name, "A test.").unit();
        assert_eq!(unit("a_bytes_total"), Some("bytes"));
        assert_eq!(unit("a_memory_byte_seconds_total"), Some("byte seconds"));
        assert_eq!(unit("a_launches_total"), None);
        assert_eq!(FAMILY.in_unit("degrees").unit(), Some("degrees"));
    }
}
