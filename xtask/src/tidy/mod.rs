//! What no compiler checks: each rule of the architecture is a function over the source tree.
//!
//! A check is pure: it takes a `Tree` and returns what is wrong, so that its own tests need no
//! repository. Only `Tree::read` and `dependencies` touch the machine.

mod module_docs;
mod tree;

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
    let findings: Vec<Finding> = [module_docs::check(&tree)].concat();
    for it in &findings {
        println!("{}: {}\n    {}", it.place, it.rule, it.what_to_do);
    }
    anyhow::ensure!(findings.is_empty(), "tidy found {} problem(s), listed above", findings.len());
    Ok(())
}
