//! What a bench found, for people and for programs.

use std::fmt;

use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) bench: &'static str,
    pub(super) rows: Vec<Row>,
}

/// One figure; what it has nothing to be compared with is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) value: f64,
    pub(super) unit: String,
    /// In the same unit.
    pub(super) baseline: Option<f64>,
    /// `value` by `baseline`.
    pub(super) ratio: Option<f64>,
    /// As people write it: `ratio <= 1.15`.
    pub(super) target: Option<String>,
    pub(super) ok: Option<bool>,
}

impl Row {
    pub(super) fn new(name: &str, value: f64, unit: &str) -> Self {
        Self { name: name.to_owned(), value, unit: unit.to_owned(), ..Self::default() }
    }

    pub(super) fn against(mut self, baseline: f64) -> Self {
        self.baseline = Some(baseline);
        self.ratio = Some(self.value / baseline).filter(|it| it.is_finite());
        self
    }

    pub(super) fn value_at_most(mut self, bound: f64) -> Self {
        self.target = Some(format!("value <= {bound}"));
        self.ok = Some(self.value <= bound);
        self
    }

    /// Missed where there is no ratio.
    pub(super) fn ratio_at_most(mut self, bound: f64) -> Self {
        self.target = Some(format!("ratio <= {bound}"));
        self.ok = Some(self.ratio.is_some_and(|it| it <= bound));
        self
    }

    fn cells(&self) -> [String; 7] {
        let number = |it: f64| if it < 10.0 { format!("{it:.3}") } else { format!("{it:.1}") };
        let optional = |it: Option<f64>| it.map(number).unwrap_or_default();
        let ok = self.ok.map_or("", |it| if it { "met" } else { "MISSED" });
        [
            self.name.clone(),
            number(self.value),
            self.unit.clone(),
            optional(self.baseline),
            optional(self.ratio),
            self.target.clone().unwrap_or_default(),
            ok.to_owned(),
        ]
    }
}

impl fmt::Display for Report {
    /// Names and words to the left, numbers to the right.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["", "value", "unit", "baseline", "ratio", "target", ""].map(str::to_owned);
        let rows: Vec<[String; 7]> =
            std::iter::once(head).chain(self.rows.iter().map(Row::cells)).collect();
        let widths: [usize; 7] = std::array::from_fn(|column| {
            rows.iter().map(|it| it[column].chars().count()).max().unwrap_or(0)
        });
        writeln!(f, "bench {}", self.bench)?;
        for row in &rows {
            let cells = row.iter().zip(widths).enumerate().map(|(column, (cell, width))| {
                if matches!(column, 1 | 3 | 4) {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                }
            });
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Report, Row};

    fn report() -> Report {
        let rows = vec![
            Row::new("launch probe", 612.0, "ns").against(600.0).ratio_at_most(1.15),
            Row::new("memory", 26.5, "MiB").value_at_most(25.0),
        ];
        Report { bench: "example", rows }
    }

    #[test]
    fn people_see_a_table() {
        let expected = "bench example\n              value  unit  baseline  ratio  target\n\
                        launch probe  612.0  ns       600.0  1.020  ratio <= 1.15  met\n\
                        memory         26.5  MiB                    value <= 25    MISSED\n";
        assert_eq!(report().to_string(), expected);
    }

    #[test]
    fn programs_see_one_object() {
        let text = serde_json::to_string(&report()).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["bench"], "example");
        assert_eq!(value["rows"][0]["ok"], true);
        assert_eq!(value["rows"][1]["baseline"], serde_json::Value::Null);
        assert_eq!(value["rows"][1]["target"], "value <= 25");
    }

    #[test]
    fn without_a_baseline_there_is_no_ratio() {
        assert_eq!(Row::new("x", 1.0, "ns").against(0.0).ratio_at_most(2.0).ok, Some(false));
    }
}
