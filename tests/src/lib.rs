//! The vocabulary of the tests: a node with its tenants, a collector, a scheduler, and how to wait.
//!
//! Everything here runs the product's real binaries as an operator would: a configuration file, a
//! folder, signals, ports. Every value cleans up after itself when it is dropped, also by a panic:
//! processes end, cgroups and folders go.

pub mod artefacts;
pub mod bpffs;
pub mod browser;
pub mod cgroups;
pub mod collector;
pub mod counted;
pub mod daemon;
pub mod node;
pub mod ports;
pub mod program;
pub mod prometheus;
pub mod registry;
pub mod scheduler;
pub mod scrape;
pub mod tenant;
pub mod text;
pub mod usage;
pub mod wait;
