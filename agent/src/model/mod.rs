//! The nouns of the agent. No I/O, no serde, no protobuf: `uplink/encode.rs` alone knows the wire.

pub mod figures;
pub mod ids;
pub mod metering;
pub mod readings;
pub mod units;
pub mod usage;
