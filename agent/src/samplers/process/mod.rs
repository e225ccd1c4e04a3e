//! Process life: exec, fork and exit from the kernel, identity and mapped libraries from `/proc`.
//!
//! Serves `samplers/cuda`, which owns the eBPF object that both share.

pub mod decode;
pub(crate) mod driver;
pub mod probe;
