//! Process life: exec, fork and exit from the kernel, identity and mapped libraries from `/proc`.
//!
//! Serves `samplers/cuda`, which owns the eBPF object that both share, and whoever else asks `/proc`.

pub mod decode;
pub mod driver;
pub mod probe;
