//! Entries that begin with `endbr64`, then `push`.

#[path = "../entries.rs"]
mod entries;

fn main() {
    entries::generate(&entries::Entry {
        before: &["endbr64", "push rbx", "pop rbx"],
        after: &[],
        operands: "",
    });
}
