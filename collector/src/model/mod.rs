//! The nouns of the collector. No I/O, no serde, no protobuf.

pub mod ids;
pub mod record;
