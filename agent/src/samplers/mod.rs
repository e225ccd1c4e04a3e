//! The sources. Each is a folder of `probe` (what is there), `driver` (the only I/O) and `decode` (what it means).

pub mod cuda;
pub mod holders;
pub mod nvml;
pub mod process;
pub mod sources;
