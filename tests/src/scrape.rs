//! What an HTTP port of the product says, and the Prometheus text format.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::wait::check;

/// One scrape of `/metrics`.
#[derive(Clone, Debug)]
pub struct Scrape {
    text: String,
    series: BTreeMap<String, Vec<Series>>,
}

/// One series with its value as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Series {
    pub labels: BTreeMap<String, String>,
    pub value: String,
}

/// The body of a page, or why there is none.
pub fn get(url: &str) -> Result<String, String> {
    let agent = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(5))).build();
    let answer = agent.new_agent().get(url).call().map_err(|error| format!("{url}: {error}"))?;
    answer.into_body().read_to_string().map_err(|error| format!("{url}: {error}"))
}

impl Scrape {
    pub fn of(url: &str) -> Result<Self, String> {
        Self::parse(get(url)?)
    }

    pub fn parse(text: String) -> Result<Self, String> {
        let mut series: BTreeMap<String, Vec<Series>> = BTreeMap::new();
        for line in text.lines().filter(|it| !it.is_empty() && !it.starts_with('#')) {
            let (name, one) = parse_line(line).ok_or_else(|| format!("not a sample: {line}"))?;
            series.entry(name).or_default().push(one);
        }
        Ok(Self { text, series })
    }

    /// As it was sent.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Every series with its name.
    pub fn series(&self) -> impl Iterator<Item = (&str, &Series)> {
        self.series.iter().flat_map(|(name, all)| all.iter().map(|it| (name.as_str(), it)))
    }

    /// Names and types of the families.
    pub fn types(&self) -> impl Iterator<Item = (&str, &str)> {
        self.text.lines().filter_map(|it| it.strip_prefix("# TYPE ")?.split_once(' '))
    }

    /// Series of a family that have at least these labels.
    pub fn all<'a>(
        &'a self,
        name: &str,
        labels: &'a [(&str, &str)],
    ) -> impl Iterator<Item = &'a Series> {
        let has = |it: &&Series| {
            labels.iter().all(|(name, value)| it.labels.get(*name).is_some_and(|it| it == value))
        };
        self.series.get(name).into_iter().flatten().filter(has)
    }

    /// The value of the one series with these labels; `None` when there is none.
    #[track_caller]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut found = self.all(name, labels);
        let one = found.next()?;
        assert_eq!(found.next(), None, "{name} with {labels:?} is more than one series");
        Some(one.number())
    }

    /// Sum over the series with these labels; `None` when there is none: absent is not zero.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let values: Vec<f64> = self.all(name, labels).map(Series::number).collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }

    /// As `sum`, of whole numbers.
    #[track_caller]
    pub fn count(&self, name: &str, labels: &[(&str, &str)]) -> Option<u64> {
        let whole = |it: &Series| it.value.parse::<u64>().expect("a count is a whole number");
        let values: Vec<u64> = self.all(name, labels).map(whole).collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }

    /// That a count is this, for `eventually`.
    pub fn counts(&self, name: &str, labels: &[(&str, &str)], expected: u64) -> Result<(), String> {
        let counted = self.count(name, labels);
        check(counted == Some(expected), || {
            format!("{name} {labels:?} is {counted:?}, expected {expected}")
        })
    }

    /// As `sum`, of seconds, to the nanosecond.
    #[track_caller]
    pub fn nanoseconds(&self, name: &str, labels: &[(&str, &str)]) -> Option<u128> {
        let values: Vec<u128> = self.all(name, labels).map(Series::nanoseconds).collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }

    /// The value of a label of the one series with these labels.
    #[track_caller]
    pub fn label(&self, name: &str, labels: &[(&str, &str)], wanted: &str) -> Option<String> {
        let mut found = self.all(name, labels);
        let one = found.next()?;
        assert_eq!(found.next(), None, "{name} with {labels:?} is more than one series");
        one.labels.get(wanted).cloned()
    }
}

impl Series {
    #[track_caller]
    fn number(&self) -> f64 {
        self.value.parse().expect("a value is a number")
    }

    /// Of a value in seconds with up to nine digits after the point.
    #[track_caller]
    fn nanoseconds(&self) -> u128 {
        let (whole, fraction) = self.value.split_once('.').unwrap_or((&self.value, ""));
        let digits = format!("{whole}{fraction:0<9}");
        assert!(fraction.len() <= 9, "{} has parts of a nanosecond", self.value);
        digits.parse().expect("a time is a decimal number")
    }
}

/// `name{a="x",b="y"} value`; `None` for what is not.
fn parse_line(line: &str) -> Option<(String, Series)> {
    let name_end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(name_end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = parse_labels(inside, &mut labels)?;
    }
    let value = rest.trim();
    (!value.is_empty() && !value.contains(' '))
        .then(|| (name.to_owned(), Series { labels, value: value.to_owned() }))
}

/// What follows the closing brace.
fn parse_labels<'a>(mut text: &'a str, labels: &mut BTreeMap<String, String>) -> Option<&'a str> {
    loop {
        if let Some(after) = text.strip_prefix('}') {
            return Some(after);
        }
        let (name, quoted) = text.split_once("=\"")?;
        let (value, after) = unquote(quoted)?;
        labels.insert(name.to_owned(), value);
        text = after.strip_prefix(',').unwrap_or(after);
    }
}

/// The text up to the closing quote, with its escapes resolved, and what follows.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::Scrape;

    const TEXT: &str = "# HELP a_seconds_total A.\n# TYPE a_seconds_total counter\n\
        a_seconds_total{tenant=\"x\",share=\"active\"} 1.000000001\n\
        a_seconds_total{tenant=\"x\",share=\"held_idle\"} 2.5\n\
        a_seconds_total{tenant=\"q\\\"u\\\\o\\nte\"} 7\nb 3\n";

    #[test]
    fn series_are_found_by_some_of_their_labels() {
        let scrape = Scrape::parse(TEXT.to_owned()).unwrap();
        assert_eq!(scrape.nanoseconds("a_seconds_total", &[("tenant", "x")]), Some(3_500_000_001));
        assert_eq!(scrape.count("a_seconds_total", &[("tenant", "q\"u\\o\nte")]), Some(7));
        assert_eq!(scrape.value("b", &[]), Some(3.0));
        assert_eq!(scrape.label("b", &[], "tenant"), None);
    }

    #[test]
    fn what_is_absent_is_not_zero() {
        let scrape = Scrape::parse(TEXT.to_owned()).unwrap();
        assert_eq!(scrape.sum("a_seconds_total", &[("tenant", "z")]), None);
        assert_eq!(scrape.value("c", &[]), None);
    }

    #[test]
    fn what_is_not_a_sample_is_refused() {
        for text in ["a{x=\"y} 1", "a", "a{x} 1", "a 1 2 3"] {
            Scrape::parse(text.to_owned()).expect_err(text);
        }
    }
}
