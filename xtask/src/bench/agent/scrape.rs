//! What a scrape says, as far as two of them are compared.

/// Every value of a family, with its labels as they are written.
pub(super) fn values<'a>(body: &'a str, family: &str) -> Vec<(&'a str, f64)> {
    let value = |line: &'a str| {
        let rest = line.strip_prefix(family)?;
        let (labels, value) = rest.rsplit_once(' ')?;
        (labels.is_empty() || labels.starts_with('{')).then_some((labels, value.parse().ok()?))
    };
    body.lines().filter_map(value).collect()
}

pub(super) fn sum(body: &str, family: &str) -> f64 {
    values(body, family).iter().map(|it| it.1).sum()
}

/// Of one label of a series.
pub(super) fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = labels.split_once(&format!("{name}=\""))?;
    rest.split_once('"').map(|(value, _)| value)
}

/// Series whose names begin so and that have a value.
pub(super) fn of_gpus(body: &str, prefixes: &[&str]) -> usize {
    let is_one =
        |line: &&str| prefixes.iter().any(|it| line.starts_with(it)) && !line.ends_with(" NaN");
    body.lines().filter(is_one).count()
}

#[cfg(test)]
mod tests {
    use super::{label, of_gpus, sum, values};

    const BODY: &str =
        "# TYPE a gauge\na{gpu_uuid=\"x\",n=\"1\"} 2.5\na{gpu_uuid=\"y\"} 1\na_b 7\nb NaN\n";

    #[test]
    fn a_family_is_not_one_that_begins_like_it() {
        let found = values(BODY, "a");
        assert_eq!(found.len(), 2);
        assert_eq!(label(found[0].0, "gpu_uuid"), Some("x"));
        assert_eq!(label(found[1].0, "n"), None);
        assert!((sum(BODY, "a") - 3.5).abs() < 1e-9);
        assert!((sum(BODY, "a_b") - 7.0).abs() < 1e-9);
    }

    #[test]
    fn a_series_without_a_value_is_none() {
        assert_eq!((of_gpus(BODY, &["a", "b"]), of_gpus(BODY, &["a_"])), (3, 1));
    }
}
