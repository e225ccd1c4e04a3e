//! The parts of bpf(2) that aya 0.14 does not offer: attaching one program to many places of a
//! file at once, and reading a map in batches.
//!
//! aya 0.15 has the first; then `multi.rs` and two thirds of `driver.rs` go.

pub mod driver;
pub(crate) mod multi;
