//! The nouns of the collector. No I/O, no serde; of the schema only the names of CUDA counters.

pub mod cuda;
pub mod ids;
pub mod metering;
pub mod record;
