//! Entries that begin with `push`.

#[path = "../entries.rs"]
mod entries;

fn main() {
    entries::generate(&entries::Entry {
        before: &["push rbp", "mov rbp, rsp", "pop rbp"],
        after: &[],
        operands: "",
    });
}
