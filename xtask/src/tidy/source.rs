//! Rust source with the parts blanked that a rule must not look at.
//!
//! A lexer for comments, strings and test items only; positions and line numbers stay those of the
//! file.

/// One file, blanked in three ways. All have the length and the lines of the original.
#[derive(Debug)]
pub(super) struct Source {
    /// Without comments and without what strings and characters contain.
    pub(super) code: String,
    /// `code` without items under `#[cfg(test)]`.
    pub(super) product: String,
    /// As `product`, but with what strings contain.
    pub(super) product_with_texts: String,
}

impl Source {
    pub(super) fn parse(text: &str) -> Self {
        let mut without_comments = text.as_bytes().to_vec();
        let mut code = text.as_bytes().to_vec();
        for (part, range) in parts(text.as_bytes()) {
            blank(&mut code[range.clone()]);
            if part == Part::Comment {
                blank(&mut without_comments[range]);
            }
        }
        let (mut product, mut product_with_texts) = (code.clone(), without_comments);
        for range in test_items(&code) {
            blank(&mut product[range.clone()]);
            blank(&mut product_with_texts[range]);
        }
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self {
            code: text(code),
            product: text(product),
            product_with_texts: text(product_with_texts),
        }
    }
}

/// 1-based line of a byte position.
pub(super) fn line_of(text: &str, position: usize) -> usize {
    1 + text.as_bytes()[..position].iter().filter(|it| **it == b'\n').count()
}

/// Byte positions of `word` where it is not part of a longer identifier.
pub(super) fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let joins = |it: Option<&u8>| it.is_some_and(|it| it.is_ascii_alphanumeric() || *it == b'_');
    let bytes = text.as_bytes();
    text.match_indices(word).map(|(at, _)| at).filter(move |at| {
        let before = at.checked_sub(1).and_then(|it| bytes.get(it));
        let starts_word = word.starts_with(|c: char| c.is_ascii_alphanumeric());
        let longer = starts_word && joins(before) || joins(bytes.get(at + word.len()));
        !longer
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Comment,
    /// What stands between the quotes.
    Text,
}

fn blank(bytes: &mut [u8]) {
    for it in bytes.iter_mut().filter(|it| **it != b'\n') {
        *it = b' ';
    }
}

/// Comments and the insides of strings and characters, in order.
fn parts(bytes: &[u8]) -> Vec<(Part, std::ops::Range<usize>)> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let in_word = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
        let (part, from, end, next) = if rest.starts_with(b"//") {
            let end = at + find(rest, b"\n").unwrap_or(rest.len());
            (Part::Comment, at, end, end)
        } else if rest.starts_with(b"/*") {
            let end = at + block_comment(rest);
            (Part::Comment, at, end, end)
        } else if let Some((open, close)) = raw_string(rest).filter(|_| !in_word) {
            let end = at + open + find(&rest[open..], &close).unwrap_or(rest.len() - open);
            (Part::Text, at + open, end, (end + close.len()).min(bytes.len()))
        } else if rest[0] == b'"' {
            let end = at + 1 + string(&rest[1..]);
            (Part::Text, at + 1, end, (end + 1).min(bytes.len()))
        } else if let Some(length) = character(rest) {
            (Part::Text, at + 1, at + 1 + length, at + length + 2)
        } else {
            at += 1;
            continue;
        };
        found.push((part, from..end));
        at = next;
    }
    found
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|it| it == wanted)
}

/// Length of a block comment, which nests.
fn block_comment(bytes: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < bytes.len() {
        match &bytes[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// Where `r"`, `r#"`, `br#"` … opens, the length of the opening and what closes it.
fn raw_string(bytes: &[u8]) -> Option<(usize, Vec<u8>)> {
    let prefix = [&b"br"[..], b"cr", b"r"].into_iter().find(|it| bytes.starts_with(it))?;
    let hashes = bytes[prefix.len()..].iter().take_while(|it| **it == b'#').count();
    let open = prefix.len() + hashes;
    (bytes.get(open) == Some(&b'"')).then(|| {
        let close = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
        (open + 1, close)
    })
}

/// Length of what stands before the closing quote.
fn string(bytes: &[u8]) -> usize {
    let mut at = 0;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at.min(bytes.len())
}

/// Length of a character literal's inside; `None` for a lifetime.
fn character(bytes: &[u8]) -> Option<usize> {
    match bytes {
        [b'\'', b'\\', ..] => find(&bytes[3..], b"'").map(|it| it + 2),
        [b'\'', first, ..] => {
            let length = match first {
                0xF0.. => 4,
                0xE0.. => 3,
                0xC0.. => 2,
                _ => 1,
            };
            (bytes.get(1 + length) == Some(&b'\'')).then_some(length)
        }
        _ => None,
    }
}

/// From each `#[cfg(test)]` to the end of the item that it governs.
fn test_items(code: &[u8]) -> Vec<std::ops::Range<usize>> {
    const MARK: &[u8] = b"#[cfg(test)]";
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(start) = find(&code[at..], MARK).map(|it| at + it) {
        let body = start + MARK.len();
        let end = body + item(&code[body..]);
        found.push(start..end);
        at = end;
    }
    found
}

/// Length of an item: to its `;`, or to the brace that closes its first one.
fn item(code: &[u8]) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in code.iter().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth <= 1 => return at + 1,
            b'}' => depth -= 1,
            b';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

#[cfg(test)]
mod tests {
    use super::{Source, line_of, words};

    fn check(text: &str, code: &str) {
        assert_eq!(Source::parse(text).code, code);
    }

    #[test]
    fn comments_and_texts_are_blanked() {
        check("a // b\nc", "a     \nc");
        check("a /* b /* c */ d */ e", "a                   e");
        check(r#"f("a\"b", 'c', '\'')"#, r#"f("    ", ' ', '  ')"#);
        check("f::<'a>(r#\"x\"y\"#)", "f::<'a>(r#\"   \"#)");
        check("let url = \"http://x\"; g()", "let url = \"        \"; g()");
        check("var\"x\"", "var\" \"");
    }

    #[test]
    fn test_items_are_not_product() {
        let source = Source::parse("fn a() {}\n#[cfg(test)]\nmod t { fn b() { c() } }\nfn d() {}");
        let kept: Vec<&str> = source.product.split_whitespace().collect();
        assert_eq!(kept, ["fn", "a()", "{}", "fn", "d()", "{}"]);
        assert!(source.code.contains("fn b()"));
        assert!(!source.product_with_texts.contains("fn b()"));
    }

    #[test]
    fn words_are_whole() {
        assert_eq!(words("unsafe_code unsafe {", "unsafe").collect::<Vec<_>>(), [12]);
        assert_eq!(words("/meminfo /mem", "/mem").collect::<Vec<_>>(), [9]);
        assert_eq!(line_of("a\nb\nc", 4), 3);
    }
}
