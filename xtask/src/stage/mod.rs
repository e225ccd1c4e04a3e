//! What the demo and the benches are played on: a temporary folder, processes, cgroups, ports and a
//! simulated node. Everything here is taken back when it is dropped.

pub(crate) mod cgroups;
pub(crate) mod folder;
pub(crate) mod http;
pub(crate) mod node;
pub(crate) mod ports;
pub(crate) mod process;
