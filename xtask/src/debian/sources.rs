//! The machine's package sources, turned into ones for another component or another release.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// One release in one archive.
struct Source {
    /// In brackets with a space behind them, or nothing.
    options: String,
    uri: String,
    suite: String,
}

/// One line for each release and archive of Debian among the files, in the one-line style.
pub(crate) fn with_component(files: &[(PathBuf, String)], component: &str) -> String {
    let line = |it: Source| format!("deb {}{} {} {component}\n", it.options, it.uri, it.suite);
    all(files).map(line).collect()
}

/// The same archives with another release and its updates of security. Which key that has been signed
/// with is for apt to know.
pub(crate) fn with_release(files: &[(PathBuf, String)], release: &str) -> String {
    let uris: BTreeSet<String> = all(files).map(|it| it.uri).collect();
    let lines = |uri: String| {
        let security = uri.replace("/debian", "/debian-security");
        format!("deb {uri} {release} main\ndeb {security} {release}-security main\n")
    };
    uris.into_iter().map(lines).collect()
}

fn all(files: &[(PathBuf, String)]) -> impl Iterator<Item = Source> {
    files.iter().flat_map(
        |(path, text)| {
            if is_stanzas(path) { from_stanzas(text) } else { from_lines(text) }
        },
    )
}

fn is_stanzas(path: &Path) -> bool {
    path.extension().is_some_and(|it| it == "sources")
}

/// Updates of security are an archive of their own, which has not all components.
fn is_debian(uri: &str) -> bool {
    uri.contains("/debian") && !uri.contains("/debian-security")
}

fn from_stanzas(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for stanza in text.split("\n\n") {
        let field = |name: &str| {
            stanza.lines().find_map(|it| it.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
        };
        let (Some(uris), Some(suites)) = (field("URIs"), field("Suites")) else { continue };
        let signed = field("Signed-By").filter(|it| it.starts_with('/'));
        let options = signed.map(|it| format!("[signed-by={it}] ")).unwrap_or_default();
        for uri in uris.split_whitespace().filter(|it| is_debian(it)) {
            let source = |suite: &str| Source {
                options: options.clone(),
                uri: uri.to_owned(),
                suite: suite.to_owned(),
            };
            sources.extend(suites.split_whitespace().map(source));
        }
    }
    sources
}

fn from_lines(text: &str) -> Vec<Source> {
    text.lines()
        .filter_map(|line| {
            let rest = line.trim().strip_prefix("deb ")?.trim_start();
            let (options, rest) = match rest.split_once(']') {
                Some((options, rest)) if rest.starts_with(' ') => (format!("{options}] "), rest),
                _ => (String::new(), rest),
            };
            let mut words = rest.split_whitespace();
            let (uri, suite) = (words.next()?.to_owned(), words.next()?.to_owned());
            is_debian(&uri).then_some(Source { options, uri, suite })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{with_component, with_release};

    const STANZAS: &str = "Types: deb\n# a comment\nURIs: http://mirror.example/debian\nSuites: one two\n\
                           Components: main\nSigned-By: /keys/debian.gpg\n\n\
                           Types: deb\nURIs: http://mirror.example/debian-security\nSuites: one-security\n";

    fn check(name: &str, text: &str, expected: &str) {
        let files = [(name.into(), text.to_owned())];
        assert_eq!(with_component(&files, "non-free"), expected, "{text}");
    }

    #[test]
    fn stanzas_keep_their_key_and_get_the_component() {
        let line = "deb [signed-by=/keys/debian.gpg] http://mirror.example/debian";
        let expected = format!("{line} one non-free\n{line} two non-free\n");
        check("debian.sources", STANZAS, &expected);
    }

    #[test]
    fn lines_keep_their_options() {
        let text = "# deb http://mirror.example/debian old main\n\
                    deb http://mirror.example/debian one main contrib\n\
                    deb [arch=amd64] http://mirror.example/debian two main\n\
                    deb-src http://mirror.example/debian one main\n";
        let expected = "deb http://mirror.example/debian one non-free\n\
                        deb [arch=amd64] http://mirror.example/debian two non-free\n";
        check("sources.list", text, expected);
    }

    #[test]
    fn other_archives_are_left_out() {
        check("other.list", "deb https://packages.example/apt stable main\n", "");
        check("other.sources", "URIs: https://packages.example/node\nSuites: x\n", "");
    }

    #[test]
    fn another_release_comes_from_the_same_archives() {
        let files = [("debian.sources".into(), STANZAS.to_owned())];
        let expected = "deb http://mirror.example/debian old main\n\
                        deb http://mirror.example/debian-security old-security main\n";
        assert_eq!(with_release(&files, "old"), expected);
        assert_eq!(with_release(&[], "old"), "");
    }
}
