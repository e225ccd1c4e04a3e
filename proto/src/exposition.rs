//! Prometheus text format 0.0.4, written from snapshots.
//!
//! Own code because series appear and vanish with their agents, which registries are not made for.
//! A value that is `None` writes nothing: absent is never zero. A series with a label or a label's value
//! that its family does not declare is a bug, and fails every test that writes it.

use std::fmt::Write as _;

use crate::family::Family;

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

    /// These labels and the family's own one, where it has one.
    #[must_use]
    pub fn with_own(&self, family: &Family, value: &str) -> Self {
        family.labels.first().map_or_else(|| self.clone(), |it| self.with(it.name, value))
    }

    /// Names and values as they are written, with their escapes.
    fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut rest = self.0.as_str();
        std::iter::from_fn(move || {
            let (name, quoted) = rest.split_once("=\"")?;
            let (value, after) = quoted.split_at(closing_quote(quoted));
            rest = after.trim_start_matches(['"', ',']);
            Some((name, value))
        })
    }
}

/// Builds one scrape body. Call `family` once per family, then its samples.
#[derive(Debug, Default)]
pub struct Text {
    body: String,
    family: Option<Family>,
    /// False until a sample of the family is written: a family without samples leaves no header
    /// behind.
    has_header: bool,
}

impl Text {
    pub fn family(&mut self, family: Family) -> &mut Self {
        self.family = Some(family);
        self.has_header = false;
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

    /// Millijoules as joules, likewise.
    pub fn joules(&mut self, labels: &Labels, millijoules: u128) -> &mut Self {
        let (whole, fraction) = (millijoules / 1_000, millijoules % 1_000);
        self.line(labels, |body| write!(body, "{whole}.{fraction:03}"));
        self
    }

    pub fn into_body(self) -> String {
        self.body
    }

    fn line(&mut self, labels: &Labels, value: impl FnOnce(&mut String) -> std::fmt::Result) {
        let family = self.family.as_ref().expect("a sample belongs to the family named before it");
        debug_assert_eq!(undeclared(family, labels), None, "{} declares it", family.name);
        if !self.has_header {
            header(&mut self.body, family);
            self.has_header = true;
        }
        self.body.push_str(family.name);
        if !labels.0.is_empty() {
            self.body.push('{');
            self.body.push_str(&labels.0);
            self.body.push('}');
        }
        self.body.push(' ');
        value(&mut self.body).expect("writing to a string succeeds");
        self.body.push('\n');
    }
}

fn header(body: &mut String, family: &Family) {
    let (name, kind) = (family.name, family.kind.as_str());
    write!(body, "# HELP {name} {}\n# TYPE {name} {kind}\n", family.help)
        .expect("writing to a string succeeds");
}

/// The first label that the family does not declare, or not with this value.
fn undeclared<'a>(family: &Family, labels: &'a Labels) -> Option<(&'a str, &'a str)> {
    labels.pairs().find(|(name, value)| !family.takes(name, value))
}

/// Where an escaped value ends.
fn closing_quote(text: &str) -> usize {
    let mut is_escaped = false;
    let closes = |it: char| {
        let closes = it == '"' && !is_escaped;
        is_escaped = it == '\\' && !is_escaped;
        closes
    };
    text.find(closes).unwrap_or(text.len())
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
    use proptest::prelude::{any, proptest};

    use super::{Labels, Text, undeclared};
    use crate::family::{Family, Label, Subject};

    const FAMILY: Family = Family::counter("gleaner_test_seconds_total", "A test.")
        .of(Subject::Node)
        .by(&[Label::free("tenant"), Label::of("share", &["free"])]);

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

    #[test]
    fn what_a_family_does_not_declare_is_found() {
        let labels = Labels::new([("node", "a\\\"b\"=\","), ("share", "free")]);
        assert_eq!(undeclared(&FAMILY, &labels), None);
        assert_eq!(undeclared(&FAMILY, &labels.with("gpu", "0")), Some(("gpu", "0")));
        assert_eq!(undeclared(&FAMILY, &labels.with("share", "x")), Some(("share", "x")));
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
