//! `libcuda.so.1` whose entries begin with a `push`, which the kernel emulates under a uprobe.
#![expect(unsafe_code, reason = "exports a C ABI")]

include!(concat!(env!("OUT_DIR"), "/entries.rs"));
