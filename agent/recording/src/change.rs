//! What is different between two states of a device, and putting it on top of the earlier one.
//!
//! Tables are compared key by key, everything else as a whole. A key never goes away: what a device
//! no longer answers is refused.

use toml::{Table, Value};

/// The keys of `after` that `before` lacks, or has with another value.
#[must_use]
pub fn difference(before: &Table, after: &Table) -> Table {
    let changed = |(key, value): (&String, &Value)| {
        let change = match (before.get(key), value) {
            (Some(Value::Table(before)), Value::Table(after)) => {
                let change = difference(before, after);
                (!change.is_empty()).then_some(Value::Table(change))
            }
            (Some(before), value) if before == value => None,
            (_, value) => Some(value.clone()),
        };
        Some((key.clone(), change?))
    };
    after.iter().filter_map(changed).collect()
}

/// Puts a change on top of what was.
pub fn apply(table: &mut Table, change: &Table) {
    for (key, value) in change {
        match (table.get_mut(key), value) {
            (Some(Value::Table(table)), Value::Table(change)) => apply(table, change),
            _ => drop(table.insert(key.clone(), value.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use toml::Table;

    use super::{apply, difference};

    fn table(text: &str) -> Table {
        text.parse().unwrap()
    }

    fn check(before: &str, after: &str, expected: &str) {
        let (mut before, after) = (table(before), table(after));
        let change = difference(&before, &after);
        assert_eq!(change, table(expected));
        apply(&mut before, &change);
        assert_eq!(before, after);
    }

    #[test]
    fn only_what_changes_is_in_a_change() {
        check("a = 1\nb = 2", "a = 1\nb = 3", "b = 3");
        check("", "a = [[1, 2]]", "a = [[1, 2]]");
        check("a = [[1, 2], [3, 4]]", "a = [[3, 4]]", "a = [[3, 4]]");
        check("[a]\nb = 1\nc = 2", "[a]\nb = 1\nc = 3\nd = 4", "[a]\nc = 3\nd = 4");
        check("[a]\nb = 1", "[a]\nb = 1", "");
        check("a = 1", "[a]\nb = 1", "[a]\nb = 1");
    }
}
