//! The behaviour behind the three stand-in builds of `libcuda.so.1`.
//!
//! The builds (`cmp`, `push`, `endbr64`) differ in how their exported entries begin and in nothing
//! else; `symbols` lists what they export and which function here answers. Results and sizes are
//! those of the driver API as far as an observer of calls can tell; no device memory is touched and no
//! kernel is computed. The node that it all happens on is `gpu-state`'s.
//!
//! Each function keeps the contract that `cuda.h` gives the driver function of its name: a pointer is
//! null, or valid for what the function reads and writes there.
#![expect(clippy::missing_safety_doc, reason = "the contract is cuda.h, as said above")]

pub mod blocks;
pub mod contexts;
pub mod copies;
pub mod host;
pub mod launches;
pub mod legacy;
pub mod memory;
pub mod modules;
pub mod streams;
pub mod system;
pub mod virtual_memory;
pub mod waits;

mod codes;
mod driver;
mod out;
mod tables;
