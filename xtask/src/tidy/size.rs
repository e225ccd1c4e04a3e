//! Long files, as a question to the author and not as a failure.

use super::tree::Tree;

const PROMPT: usize = 400;

/// Files beyond the length at which one should look again, longest first.
pub(super) fn long_files(tree: &Tree) -> Vec<(usize, &str)> {
    let mut long: Vec<(usize, &str)> = tree
        .rust()
        .map(|it| (it.text.lines().count(), it.path.as_str()))
        .filter(|(lines, _)| *lines > PROMPT)
        .collect();
    long.sort_by_key(|(lines, _)| std::cmp::Reverse(*lines));
    long
}

#[cfg(test)]
mod tests {
    use super::{PROMPT, long_files};
    use crate::tidy::tree::Tree;

    #[test]
    fn only_long_hand_written_files_are_listed() {
        let (long, longer) = ("x\n".repeat(PROMPT + 1), "x\n".repeat(PROMPT + 2));
        let tree = Tree::of(&[
            ("agent/src/a.rs", &long),
            ("agent/src/b.rs", &longer),
            ("agent/src/c.rs", "x\n"),
            ("proto/src/generated/d.rs", &longer),
        ]);
        let listed = [(PROMPT + 2, "agent/src/b.rs"), (PROMPT + 1, "agent/src/a.rs")];
        assert_eq!(long_files(&tree), listed);
    }
}
