//! The paths that Rust code names, with the groups of `use` written out.

/// A path such as `crate::model::ids`, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) path: String,
    pub(super) at: usize,
}

impl Named {
    /// Whether it is `prefix` or something inside it.
    pub(super) fn is_within(&self, prefix: &str) -> bool {
        self.path.strip_prefix(prefix).is_some_and(|it| it.is_empty() || it.starts_with("::"))
    }
}

/// Every path in `code`, whose comments and texts are blanked.
pub(super) fn paths(code: &str) -> Vec<Named> {
    let mut reader = Reader { bytes: code.as_bytes(), at: 0, found: Vec::new() };
    while reader.at < reader.bytes.len() {
        let continues = reader.at > 0 && matches!(reader.bytes[reader.at - 1], b'.' | b':' | b'\'');
        if is_word(reader.bytes[reader.at]) && !continues {
            reader.path("");
        } else if is_word(reader.bytes[reader.at]) {
            reader.word();
        } else {
            reader.at += 1;
        }
    }
    reader.found
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    found: Vec<Named>,
}

impl Reader<'_> {
    fn path(&mut self, prefix: &str) {
        let at = self.at;
        let mut path = prefix.to_owned();
        loop {
            let word = self.word();
            if word != "self" || path.is_empty() {
                if !path.is_empty() {
                    path.push_str("::");
                }
                path.push_str(&word);
            }
            if !self.bytes[self.at..].starts_with(b"::") {
                break;
            }
            self.at += 2;
            match self.bytes.get(self.at) {
                Some(b'{') => return self.group(&path),
                Some(byte) if is_word(*byte) => {}
                _ => break,
            }
        }
        self.found.push(Named { path, at });
    }

    /// `{a, b::{c, d}, self}` after `prefix::`.
    fn group(&mut self, prefix: &str) {
        self.at += 1;
        while let Some(byte) = self.bytes.get(self.at) {
            match byte {
                b'}' => {
                    self.at += 1;
                    return;
                }
                it if is_word(*it) => self.path(prefix),
                _ => self.at += 1,
            }
        }
    }

    fn word(&mut self) -> String {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().take_while(|it| is_word(**it)).count();
        self.at += length;
        String::from_utf8_lossy(&rest[..length]).into_owned()
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

#[cfg(test)]
mod tests {
    use super::paths;

    fn check(code: &str, expected: &[&str]) {
        let found: Vec<String> = paths(code).into_iter().map(|it| it.path).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn groups_are_written_out() {
        check("use std::fs;", &["use", "std::fs"]);
        check(
            "use a::{b, c::{self, d}, e as f};",
            &["use", "a::b", "a::c", "a::c::d", "a::e", "a::as", "a::f"],
        );
        check("x.y(crate::m::f::<u8>())", &["x", "crate::m::f", "u8"]);
    }
}
