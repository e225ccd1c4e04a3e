//! What agent, collector and client agree on.
//!
//! `telemetry`, `capacity` and `usage` are generated from the `.proto` files beside `src`, which are
//! the contract and carry its comments; `tests/fresh.rs` fails when they differ. `family` is what is
//! told of a metric family, `exposition` writes Prometheus text, `series` is what agent and collector
//! both serve in it. `names` is how the schema's words are written, `cuda` what the counters of CUDA
//! calls are. `diagnostics` turns a configuration mistake into a message that names the key.
//! No transport and no I/O here.

pub mod cuda;
pub mod diagnostics;
pub mod exposition;
pub mod family;
pub mod names;
pub mod series;

#[expect(
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::clone_on_ref_ptr,
    clippy::large_enum_variant,
    clippy::too_many_lines,
    reason = "generated"
)]
mod generated {
    /// The stream between an agent and its collector.
    pub mod telemetry {
        pub mod v1 {
            include!("generated/gleaner.telemetry.v1.rs");
        }
    }

    /// Idle capacity, for schedulers.
    pub mod capacity {
        pub mod v1 {
            include!("generated/gleaner.capacity.v1.rs");
        }
    }

    /// Usage, from the ledger.
    pub mod usage {
        pub mod v1 {
            include!("generated/gleaner.usage.v1.rs");
        }
    }
}

pub use generated::{capacity, telemetry, usage};

/// Every schema above, encoded, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("generated/descriptors.bin");
