//! What no compiler checks: each rule of the architecture is a function over the source tree.
//!
//! A check is pure: it takes a `Tree` and returns what is wrong, so that its own tests need no
//! repository. Only `Tree::read` and `dependencies` touch the machine.

mod paths;
mod source;
mod tree;

mod dependencies;
mod documents;
mod families;
mod flow;
mod keys;
mod layout;
mod module_docs;
mod purity;
mod size;
mod wording;

use tree::Tree;

use crate::shell;

/// One thing that is wrong, said so that it can be corrected.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    /// `path:line`, or a path where no line is to blame.
    place: String,
    /// Which rule, and why it exists.
    rule: &'static str,
    what_to_do: String,
}

pub(crate) fn run() -> anyhow::Result<()> {
    let tree = Tree::read(&shell::root())?;
    let findings = [
        layout::check(&tree),
        module_docs::check(&tree),
        wording::check(&tree),
        flow::check(&tree),
        purity::check(&tree),
        families::check(&tree),
        keys::check(&tree),
        documents::check(&tree),
        dependencies::check()?,
    ]
    .concat();
    for it in &findings {
        println!("{}\n    rule: {}\n    do:   {}", it.place, it.rule, it.what_to_do);
    }
    for (lines, path) in size::long_files(&tree) {
        println!("note: {path} has {lines} lines: look again whether it is one thing");
    }
    anyhow::ensure!(findings.is_empty(), "tidy: {} finding(s), listed above", findings.len());
    Ok(())
}
