//! Records on the wire and in the spool: the model's nouns to protobuf and back, every field.
//!
//! The other way is needed where the spool merges records that were not sent yet. No I/O here; the
//! live lane's messages are in `uplink/encode.rs`, which uses `common.rs` too.

pub mod common;
pub mod counts;
mod tile;

use std::sync::Arc;

use prost::Message;
use proto::telemetry::v1::{self, record::Kind};

use crate::model::ids::DeviceId;
use crate::model::units::BootNs;
use crate::model::usage::{CudaActivity, Record};
use crate::record::common::{read_holder, wire_holder};
use crate::record::counts::{read_counts, wire_counts};
use crate::record::tile::{read_tile, wire_tile};

/// When a record ended by the node's own clocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub boot_id: Arc<str>,
    /// CLOCK_REALTIME; dates only boots that never met the collector.
    pub real_ns: i64,
}

/// Bytes that are no record of ours.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("not a record: {0}")]
    Malformed(#[from] prost::DecodeError),
    #[error("record without a {0}")]
    Missing(&'static str),
    #[error("record with the unknown {0} {1}")]
    Unknown(&'static str, String),
}

/// The bytes that are sent, stored and hashed. Memory is rounded down to byte-seconds.
#[must_use]
pub fn encode(record: &Record, stamp: &Stamp) -> Vec<u8> {
    let kind = match record {
        Record::Tile(tile) => Kind::Tile(wire_tile(tile)),
        Record::Cuda(activity) => Kind::Cuda(wire_activity(activity)),
    };
    let record = v1::Record {
        boot_id: stamp.boot_id.to_string(),
        node_real_ns: stamp.real_ns,
        kind: Some(kind),
    };
    record.encode_to_vec()
}

/// What `encode` wrote.
pub fn decode(payload: &[u8]) -> Result<(Record, Stamp), RecordError> {
    let record = v1::Record::decode(payload)?;
    let stamp = Stamp { boot_id: record.boot_id.into(), real_ns: record.node_real_ns };
    let record = match record.kind.ok_or(RecordError::Missing("kind"))? {
        Kind::Tile(tile) => Record::Tile(Box::new(read_tile(tile)?)),
        Kind::Cuda(activity) => Record::Cuda(Box::new(read_activity(activity)?)),
    };
    Ok((record, stamp))
}

fn wire_activity(activity: &CudaActivity) -> v1::CudaActivity {
    v1::CudaActivity {
        holder: Some(wire_holder(&activity.holder)),
        start_ns: activity.start.0,
        end_ns: activity.end.0,
        gpu_uuid: activity.device.as_ref().map(|it| it.0.to_string()),
        counts: Some(wire_counts(&activity.counts)),
        watched_ns: activity.watched_ns,
        memory_known: activity.memory_known,
    }
}

fn read_activity(activity: v1::CudaActivity) -> Result<CudaActivity, RecordError> {
    let counts = read_counts(activity.counts.as_ref())?;
    Ok(CudaActivity {
        holder: read_holder(activity.holder)?,
        start: BootNs(activity.start_ns),
        end: BootNs(activity.end_ns),
        device: activity.gpu_uuid.map(|it| DeviceId(it.into())),
        counts,
        watched_ns: activity.watched_ns,
        memory_known: activity.memory_known,
    })
}

fn unknown(what: &'static str, value: impl ToString) -> RecordError {
    RecordError::Unknown(what, value.to_string())
}

#[cfg(test)]
mod tests;
