//! Every file says what it is for before it says anything else.

use super::Finding;
use super::tree::Tree;

const RULE: &str =
    "a Rust file opens with `//!`: the reader learns what it is for and what it is not";

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    tree.rust()
        .filter(|it| !it.text.starts_with("//! "))
        .map(|it| Finding {
            place: format!("{}:1", it.path),
            rule: RULE,
            what_to_do: "write a module comment as its first line".to_owned(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::tidy::tree::Tree;

    #[test]
    fn a_file_without_a_module_comment_is_named() {
        let tree = Tree::of(&[
            ("agent/src/a.rs", "//! Fine.\n"),
            ("agent/src/b.rs", "use std::fmt;\n//! Too late.\n"),
            ("proto/src/generated/c.rs", "// machine-made\n"),
        ]);
        let found = check(&tree);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].place, "agent/src/b.rs:1");
    }
}
