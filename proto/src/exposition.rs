//! Prometheus text format 0.0.4, written from snapshots.
//!
//! Own code because series appear and vanish with their agents, which registries are not made for.
//! A value that is `None` writes nothing: absent is never zero.

use std::fmt::Write as _;

/// What Prometheus is told about a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
}

/// Name, type and help of one metric family. Declared as constants beside the code that fills them.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
}

// === impl Family ===

impl Family {
    #[must_use]
    pub const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::Gauge, help }
    }

    /// `name` ends in `_total`.
    #[must_use]
    pub const fn counter(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::Counter, help }
    }
}

/// Label pairs of one series, rendered once: `a="x",b="y"`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels(String);

impl Labels {
    pub fn new<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut labels = Self::default();
        for (name, value) in pairs {
            labels.push(name, value);
        }
        labels
    }

    pub fn push(&mut self, name: &str, value: &str) {
        if !self.0.is_empty() {
            self.0.push(',');
        }
        self.0.push_str(name);
        self.0.push_str("=\"");
        escape_into(&mut self.0, value);
        self.0.push('"');
    }

    /// These labels and one more.
    #[must_use]
    pub fn with(&self, name: &str, value: &str) -> Self {
        let mut labels = self.clone();
        labels.push(name, value);
        labels
    }
}

/// Builds one scrape body. Call `family` once per family, then its samples.
#[derive(Debug, Default)]
pub struct Text {
    body: String,
    /// Set while a family's header has been asked for and none of its samples was written: a family
    /// without samples leaves no header behind.
    pending: Option<Family>,
    current: &'static str,
}

impl Text {
    pub fn family(&mut self, family: Family) -> &mut Self {
        self.current = family.name;
        self.pending = Some(family);
        self
    }

    /// One sample of the family named last; `None` is left out.
    pub fn sample(&mut self, labels: &Labels, value: Option<f64>) -> &mut Self {
        if let Some(value) = value {
            self.line(labels, |body| write!(body, "{value}"));
        }
        self
    }

    /// As `sample`, for counts: integers keep every digit.
    pub fn count(&mut self, labels: &Labels, value: Option<u64>) -> &mut Self {
        if let Some(value) = value {
            self.line(labels, |body| write!(body, "{value}"));
        }
        self
    }

    /// Nanoseconds as seconds, exact to the last digit: a counter must never be rounded up.
    pub fn seconds(&mut self, labels: &Labels, nanoseconds: u128) -> &mut Self {
        let (whole, fraction) = (nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
        self.line(labels, |body| write!(body, "{whole}.{fraction:09}"));
        self
    }

    pub fn into_body(self) -> String {
        self.body
    }

    fn line(&mut self, labels: &Labels, value: impl FnOnce(&mut String) -> std::fmt::Result) {
        if let Some(family) = self.pending.take() {
            self.header(family);
        }
        self.body.push_str(self.current);
        if !labels.0.is_empty() {
            self.body.push('{');
            self.body.push_str(&labels.0);
            self.body.push('}');
        }
        self.body.push(' ');
        value(&mut self.body).expect("writing to a string succeeds");
        self.body.push('\n');
    }

    fn header(&mut self, family: Family) {
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        writeln!(self.body, "# HELP {} {}", family.name, family.help)
            .and_then(|()| writeln!(self.body, "# TYPE {} {kind}", family.name))
            .expect("writing to a string succeeds");
    }
}

fn escape_into(out: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Family, Kind, Labels, Text};
    use proptest::prelude::{any, proptest};

    const FAMILY: Family =
        Family { name: "gleaner_test_seconds_total", kind: Kind::Counter, help: "A test." };

    #[test]
    fn absent_values_leave_no_trace() {
        let mut text = Text::default();
        text.family(FAMILY).sample(&Labels::default(), None);
        assert_eq!(text.into_body(), "");
    }

    #[test]
    fn seconds_keep_every_nanosecond() {
        let mut text = Text::default();
        text.family(FAMILY).seconds(&Labels::new([("node", "a")]), 1_000_000_000_000_000_001);
        assert!(text.into_body().ends_with("{node=\"a\"} 1000000000.000000001\n"));
    }

    proptest! {
        #[test]
        fn any_label_value_stays_on_its_line(value in any::<String>()) {
            let mut text = Text::default();
            text.family(FAMILY).count(&Labels::new([("tenant", value.as_str())]), Some(1));
            let body = text.into_body();
            let line = body.split('\n').nth(2).expect("two header lines, then the sample");
            let quoted = &line[line.find('"').unwrap() + 1..line.rfind('"').unwrap()];
            let back = quoted.replace("\\n", "\u{0}n").replace("\\\"", "\"");
            assert!(!quoted.contains('\n'));
            assert!(back.len() <= quoted.len() + value.len());
        }
    }
}
