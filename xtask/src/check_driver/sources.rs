//! The machine's package sources, turned into ones for the component that holds the driver.

use std::path::{Path, PathBuf};

const COMPONENT: &str = "non-free";

/// One line for each archive of Debian among the files, in the one-line style.
pub(super) fn with_non_free(files: &[(PathBuf, String)]) -> String {
    let lines =
        files.iter().flat_map(
            |(path, text)| {
                if is_stanzas(path) { from_stanzas(text) } else { from_lines(text) }
            },
        );
    lines.map(|it| it + "\n").collect()
}

fn is_stanzas(path: &Path) -> bool {
    path.extension().is_some_and(|it| it == "sources")
}

/// Updates of security are an archive of their own, without this component's packages.
fn is_debian(uri: &str) -> bool {
    uri.contains("/debian") && !uri.contains("/debian-security")
}

fn from_stanzas(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for stanza in text.split("\n\n") {
        let field = |name: &str| {
            stanza.lines().find_map(|it| it.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
        };
        let (Some(uris), Some(suites)) = (field("URIs"), field("Suites")) else { continue };
        let signed = field("Signed-By").filter(|it| it.starts_with('/'));
        let options = signed.map(|it| format!("[signed-by={it}] ")).unwrap_or_default();
        for uri in uris.split_whitespace().filter(|it| is_debian(it)) {
            let suites = suites.split_whitespace();
            lines.extend(suites.map(|it| format!("deb {options}{uri} {it} {COMPONENT}")));
        }
    }
    lines
}

fn from_lines(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| {
            let rest = line.trim().strip_prefix("deb ")?.trim_start();
            let (options, rest) = match rest.split_once(']') {
                Some((options, rest)) if rest.starts_with(' ') => (format!("{options}] "), rest),
                _ => (String::new(), rest),
            };
            let mut words = rest.split_whitespace();
            let (uri, suite) = (words.next()?, words.next()?);
            is_debian(uri).then(|| format!("deb {options}{uri} {suite} {COMPONENT}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::with_non_free;

    fn check(name: &str, text: &str, expected: &str) {
        assert_eq!(with_non_free(&[(name.into(), text.to_owned())]), expected, "{text}");
    }

    #[test]
    fn stanzas_keep_their_key_and_get_the_component() {
        let text = "Types: deb\n# a comment\nURIs: http://mirror.example/debian\nSuites: one two\n\
                    Components: main\nSigned-By: /keys/debian.gpg\n\n\
                    Types: deb\nURIs: http://mirror.example/debian-security\nSuites: one-security\n";
        let line = "deb [signed-by=/keys/debian.gpg] http://mirror.example/debian";
        check("debian.sources", text, &format!("{line} one non-free\n{line} two non-free\n"));
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
}
