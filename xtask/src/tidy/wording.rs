//! Words that must not occur in a source file, by place.

use super::Finding;
use super::source::{Source, line_of, words};
use super::tree::{File, Tree};

/// One rule: where it holds, what must not be written there, and why.
struct Rule {
    holds: fn(&str) -> bool,
    look_in: fn(&Source) -> &str,
    words: &'static [&'static str],
    rule: &'static str,
    what_to_do: &'static str,
}

const RULES: [Rule; 4] = [
    Rule {
        holds: is_product,
        look_in: |it| &it.product_with_texts,
        words: &["environ", "cmdline", "/mem"],
        rule: "the agent never opens a process's environment, command line or memory: they hold \
               other people's secrets",
        what_to_do: "identify the process by its cgroup, user and start time",
    },
    Rule {
        holds: |path| !may_be_unsafe(path),
        look_in: |it| &it.code,
        words: &["unsafe"],
        rule: "unsafe code lives in agent-ebpf, samplers/*/driver.rs and under tests/",
        what_to_do: "move it behind a safe function of a driver",
    },
    Rule {
        holds: |_| true,
        look_in: |it| &it.code,
        words: &["#[ignore", "#[should_panic", "todo!", "unimplemented!"],
        rule: "a test that does not run and a function that is not written look finished and are not",
        what_to_do: "finish it, or leave it out",
    },
    Rule {
        holds: |_| true,
        look_in: |it| &it.code,
        words: &["macro_rules!", "cfg(feature", "cfg_attr(feature"],
        rule: "no macros and no features of our own: capability is found at run time, code is \
               written out",
        what_to_do: "write a function, or decide at run time",
    },
];

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    tree.rust().flat_map(findings).collect()
}

fn findings(file: &File) -> Vec<Finding> {
    let source = Source::parse(&file.text);
    let rules = RULES.iter().filter(|it| (it.holds)(&file.path));
    rules
        .flat_map(|rule| {
            let text = (rule.look_in)(&source);
            let hits = rule.words.iter().flat_map(move |word| words(text, word));
            hits.map(|at| Finding {
                place: format!("{}:{}", file.path, line_of(text, at)),
                rule: rule.rule,
                what_to_do: rule.what_to_do.to_owned(),
            })
        })
        .collect()
}

/// What runs on a user's machine.
pub(super) fn is_product(path: &str) -> bool {
    ["agent/", "agent-ebpf/", "collector/", "proto/"].iter().any(|it| path.starts_with(it))
        && !path.contains("/tests/")
        && !path.ends_with("/tests.rs")
}

/// Under `tests/` the lint table asks each file that has any for its reason.
fn may_be_unsafe(path: &str) -> bool {
    let driver = path.starts_with("agent/src/samplers/") && path.ends_with("/driver.rs");
    driver || path.starts_with("agent-ebpf/") || path.starts_with("tests/")
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::tidy::tree::Tree;

    fn places(path: &str, text: &str) -> Vec<String> {
        check(&Tree::of(&[(path, text)])).into_iter().map(|it| it.place).collect()
    }

    #[test]
    fn secrets_of_processes_are_out_of_bounds() {
        let open = "//! x\nfn f() { open(\"/proc/1/environ\"); }\n";
        assert_eq!(places("agent/src/x.rs", open), ["agent/src/x.rs:2"]);
        assert!(places("tests/e2e/x.rs", open).is_empty());
        assert!(places("agent/src/x.rs", "//! Never reads `environ`.\n").is_empty());
        assert!(places("agent/src/x.rs", "fn f() { \"/proc/meminfo\" }").is_empty());
    }

    #[test]
    fn unsafe_code_has_its_places() {
        let block = "//! x\n\nfn f() { unsafe { g() } }";
        assert_eq!(places("agent/src/spool.rs", block), ["agent/src/spool.rs:3"]);
        assert_eq!(places("xtask/src/main.rs", block), ["xtask/src/main.rs:3"]);
        assert!(places("agent/src/samplers/nvml/driver.rs", block).is_empty());
        assert!(places("tests/nvml-stub/src/lib.rs", block).is_empty());
        assert!(places("agent/src/spool.rs", "#![deny(unsafe_code)]").is_empty());
    }

    #[test]
    fn what_never_runs_is_named() {
        assert_eq!(places("proto/src/x.rs", "#[ignore = \"later\"]").len(), 1);
        assert_eq!(places("agent/src/x.rs", "fn f() { todo!() }").len(), 1);
        assert!(places("agent/src/x.rs", "fn f() { \"todo!\" }").is_empty());
    }

    #[test]
    fn features_and_macros_are_named() {
        assert_eq!(places("agent/src/x.rs", "#[cfg(feature = \"gpu\")]").len(), 1);
        assert_eq!(places("collector/src/x.rs", "macro_rules! m {}").len(), 1);
    }
}
