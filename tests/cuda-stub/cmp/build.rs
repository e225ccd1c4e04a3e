//! Entries that begin with a comparison and a conditional jump, as the real driver's do.

#[path = "../entries.rs"]
mod entries;

fn main() {
    entries::generate(&entries::Entry {
        before: &["cmp dword ptr [rip + {torn_down}], 0x321cba00", "je 2f"],
        // What the driver answers when it is torn down: CUDA_ERROR_DEINITIALIZED.
        after: &["2:", "mov eax, 4", "ret"],
        operands: "torn_down = sym TORN_DOWN, ",
    });
}
