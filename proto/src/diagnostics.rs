//! Configuration mistakes, said so that they can be corrected.
//!
//! The reader of a configuration file refuses keys that it does not know. This module finds which
//! key it was, on which line, and which known key is nearest.

use serde::{Serialize, de::DeserializeOwned};

/// Why a configuration file was refused. Nothing was started.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigFileError {
    #[error("unknown key \"{key}\" (line {line}){}", hint(.nearest.as_deref()))]
    UnknownKey { key: String, line: usize, nearest: Option<String> },
    #[error("{}{message} (line {line})", of_key(.key.as_deref()))]
    Value { key: Option<String>, message: String, line: usize },
}

fn of_key(key: Option<&str>) -> String {
    key.map(|it| format!("\"{it}\": ")).unwrap_or_default()
}

fn hint(nearest: Option<&str>) -> String {
    nearest.map(|it| format!(": did you mean \"{it}\"?")).unwrap_or_default()
}

/// Reads a TOML file into `T`. `T` must have a default for every key and refuse unknown ones; its
/// default is also the list of known keys that a misspelt one is compared with.
pub fn parse<T>(text: &str) -> Result<T, ConfigFileError>
where
    T: DeserializeOwned + Serialize + Default,
{
    if let Some((key, line)) = first_unknown::<T>(text) {
        let known = known_keys::<T>();
        let nearest = known
            .iter()
            .map(|it| (strsim::damerau_levenshtein(it, &key), it))
            .filter(|(distance, it)| *distance <= 1 + it.len() / 3)
            .min_by_key(|(distance, _)| *distance)
            .map(|(_, it)| it.clone());
        return Err(ConfigFileError::UnknownKey { key, line, nearest });
    }
    toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(text, span.start));
        // A file that is no TOML has no keys yet.
        let key = text.parse::<toml::Table>().ok().and_then(|_| key_at(text, line));
        ConfigFileError::Value { key, message: in_words(error.message()), line }
    })
}

/// The key that is written on a line, with its table.
fn key_at(text: &str, line: usize) -> Option<String> {
    let mut table = "";
    for (index, written) in text.lines().enumerate().take(line) {
        let written = written.trim();
        if let Some(header) = written.strip_prefix('[') {
            table = header.split(']').next()?.trim_start_matches('[').trim();
        } else if index + 1 == line {
            let key = written.split_once('=')?.0.trim();
            return Some(if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") });
        }
    }
    None
}

/// The reader names the types of the program; an operator writes TOML.
fn in_words(message: &str) -> String {
    let words = [
        ("expected u64", "expected a whole number"),
        ("expected u32", "expected a whole number"),
        ("expected path string", "expected a path in quotes"),
        ("expected a string", "expected a text in quotes"),
        ("expected a boolean", "expected true or false"),
    ];
    let found = words.into_iter().find(|(said, _)| message.contains(said));
    found.map_or_else(|| message.to_owned(), |(said, meant)| message.replace(said, meant))
}

fn known_keys<T: Serialize + Default>() -> Vec<String> {
    let mut keys = Vec::new();
    if let Ok(toml::Value::Table(table)) = toml::Value::try_from(T::default()) {
        collect_keys("", &table, &mut keys);
    }
    keys
}

fn collect_keys(prefix: &str, table: &toml::Table, keys: &mut Vec<String>) {
    for (name, value) in table {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        if let toml::Value::Table(inner) = value {
            collect_keys(&key, inner, keys);
        }
        keys.push(key);
    }
}

/// The first key in the file that `T` does not have, with its line.
fn first_unknown<T: Serialize + Default>(text: &str) -> Option<(String, usize)> {
    let table: toml::Table = text.parse().ok()?;
    let known = known_keys::<T>();
    let mut written = Vec::new();
    collect_keys("", &table, &mut written);
    written
        .into_iter()
        .filter(|key| !known.contains(key) && !inside_known_leaf(key, &known))
        .map(|key| {
            let line = line_of_key(text, &key);
            (key, line)
        })
        .min_by_key(|(_, line)| *line)
}

/// A table written where a plain value is expected is an ill-typed value, not an unknown key.
fn inside_known_leaf(key: &str, known: &[String]) -> bool {
    key.rsplit_once('.').is_some_and(|(parent, _)| {
        known.iter().any(|it| it == parent)
            && !known.iter().any(|it| it.starts_with(&format!("{parent}.")))
    })
}

fn line_of_key(text: &str, key: &str) -> usize {
    let last = key.rsplit('.').next().unwrap_or(key);
    text.lines()
        .position(|line| {
            let line = line.trim_start().trim_start_matches('[');
            line.strip_prefix(last)
                .or_else(|| line.strip_prefix(key))
                .is_some_and(|rest| rest.trim_start().starts_with(['=', ']', '.']))
                || line.split(['=', ']']).next().is_some_and(|it| it.trim() == key)
        })
        .map_or(1, |index| index + 1)
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes().iter().take(offset).filter(|it| **it == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::{ConfigFileError, parse};

    #[derive(Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Example {
        tick_ms: u64,
        spool: Spool,
    }

    #[derive(Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Spool {
        max_bytes: u64,
    }

    fn check(text: &str, expected: &str) {
        let error = parse::<Example>(text).expect_err("the file is refused");
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn mistakes_are_named() {
        check("tick_m = 5", "unknown key \"tick_m\" (line 1): did you mean \"tick_ms\"?");
        check(
            "tick_ms = 5\n\n[spool]\nmax_byte = 1\n",
            "unknown key \"spool.max_byte\" (line 4): did you mean \"spool.max_bytes\"?",
        );
        check("colour = 'red'", "unknown key \"colour\" (line 1)");
        check(
            "tick_ms = \"often\"",
            "\"tick_ms\": invalid type: string \"often\", expected a whole number (line 1)",
        );
        check(
            "tick_ms = 5\n[spool]\n# a remark\nmax_bytes = true",
            "\"spool.max_bytes\": invalid type: boolean `true`, expected a whole number (line 4)",
        );
        assert!(matches!(
            parse::<Example>("tick_ms = = 3"),
            Err(ConfigFileError::Value { key: None, line: 1, .. })
        ));
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(parse::<Example>("").unwrap(), Example::default());
    }
}
