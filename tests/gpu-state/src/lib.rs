//! The simulated node behind the stand-ins for libcuda and libnvidia-ml.
//!
//! Both libraries, in however many processes, open the folder that they lie in: `scenario.toml` says
//! what the node is (`scenario`) and becomes (`timeline`), a mapped file holds what happens on it
//! (`region`, `slots`, `ring`).
//! `process` is what libcuda does there, `device` is what libnvidia-ml sees, `watch` is how it waits. A device is busy because
//! a process launched on it and for no other reason. This is not a simulator of CUDA: nothing is
//! computed, only time and memory are.

pub mod device;
pub mod node;
pub mod process;
pub mod scenario;
pub mod watch;

mod clock;
mod place;
mod region;
mod ring;
mod slots;
mod timeline;
