//! Names that somebody else chose, made fit for labels, logs and terminals. No I/O.

/// A longer name is cut and ends in a hash of the whole, so that two never become one.
const MAX_BYTES: usize = 128;
const HASH_HEX: usize = 16;

/// Control characters, direction marks and the like are escaped. Not empty where `raw` is not.
pub(crate) fn printable(raw: &str) -> String {
    let mut clean = String::with_capacity(raw.len());
    for letter in raw.chars() {
        match letter {
            // Printable, and what systemd escapes with.
            '\\' | '\'' | '"' => clean.push(letter),
            other => clean.extend(other.escape_debug()),
        }
    }
    if clean.len() > MAX_BYTES {
        let hash = blake3::hash(raw.as_bytes()).to_hex();
        clean.truncate(clean.floor_char_boundary(MAX_BYTES - HASH_HEX - 1));
        clean.push('~');
        clean.push_str(&hash[..HASH_HEX]);
    }
    clean
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::printable;

    #[test]
    fn what_can_be_printed_stays() {
        for name in ["vllm@7", r"dev-\x2d", "it's", "größe"] {
            assert_eq!(printable(name), name);
        }
        assert_eq!(printable("a\u{7}b\u{202e}c\n"), r"a\u{7}b\u{202e}c\n");
    }

    #[test]
    fn long_names_are_cut_and_stay_apart() {
        let (one, other) = (printable(&"é".repeat(200)), printable(&"é".repeat(201)));
        assert!(one.len() <= 128 && other.len() <= 128 && one != other, "{one} {other}");
    }

    proptest! {
        #[test]
        fn any_name_is_printable_and_bounded(raw in any::<String>()) {
            let name = printable(&raw);
            assert!(name.len() <= 128 && name.is_empty() == raw.is_empty());
            assert!(!name.chars().any(char::is_control), "{name:?}");
        }
    }
}
