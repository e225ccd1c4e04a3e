//! `libcuda.so.1` whose entries begin with `endbr64`, which the kernel must single-step under a
//! uprobe, and a `push`, which it can emulate.
#![expect(unsafe_code, reason = "exports a C ABI")]

include!(concat!(env!("OUT_DIR"), "/entries.rs"));
