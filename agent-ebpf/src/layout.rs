//! What tells one layout of the pinned maps from another, whatever its number says.

use crate::ABI;

/// Names the text of everything that user space and the programs of two builds must agree on: rows,
/// records, counters, keys, cookies and maps. Comments and spaces do not count.
pub const LAYOUT: u64 = {
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ ABI as u64;
    hash = add(hash, include_str!("lib.rs").as_bytes());
    hash = add(hash, include_str!("keys.rs").as_bytes());
    hash = add(hash, include_str!("cookie.rs").as_bytes());
    add(hash, include_str!("maps.rs").as_bytes())
};

/// FNV-1a over the code before the tests.
const fn add(mut hash: u64, text: &[u8]) -> u64 {
    let mut at = 0;
    while at < text.len() && !begins(text, at, b"#[cfg(test)]") {
        if begins(text, at, b"//") {
            while at < text.len() && text[at] != b'\n' {
                at += 1;
            }
        } else {
            if !text[at].is_ascii_whitespace() {
                hash = (hash ^ text[at] as u64).wrapping_mul(0x0100_0000_01b3);
            }
            at += 1;
        }
    }
    hash
}

const fn begins(text: &[u8], at: usize, with: &[u8]) -> bool {
    let mut index = 0;
    while index < with.len() {
        if at + index >= text.len() || text[at + index] != with[index] {
            return false;
        }
        index += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::{LAYOUT, add};
    use crate::ABI;

    /// The number of the layout, and the layout that it was given to.
    const NUMBERED: (u32, u64) = (8, 4_162_798_281_671_077_149);

    #[test]
    fn a_layout_has_a_number_of_its_own() {
        assert_eq!(
            (ABI, LAYOUT),
            NUMBERED,
            "rows, records, counters, keys, cookies or maps are not what number {} was given to. \
             If anything of it lies elsewhere or means something else now, raise `ABI` in lib.rs: \
             an agent would go on with counts that it misreads. Then put the pair on the left into \
             NUMBERED; under the same number only if nothing but the text has changed",
            NUMBERED.0
        );
    }

    #[test]
    fn comments_spaces_and_tests_are_no_part_of_a_layout() {
        let of = |text: &str| add(1, text.as_bytes());
        assert_eq!(of("a: u64, // what\n b"), of("/// why\na:u64,b#[cfg(test)]mod tests;"));
        assert_ne!(of("a, b"), of("b, a"));
    }
}
