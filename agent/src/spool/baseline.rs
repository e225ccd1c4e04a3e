//! The baseline of CUDA counts as bytes. It never leaves this node; a later agent of this boot reads
//! it.

use std::collections::BTreeMap;

use prost::{DecodeError, Message};
use proto::telemetry::v1;

use crate::model::ids::ProcessId;
use crate::model::readings::CudaCounts;
use crate::model::units::BootNs;
use crate::model::usage::{Accounted, CudaBaseline};
use crate::record::RecordError;
use crate::record::common::{read_holder, wire_holder};

/// Why stored bytes are no baseline.
#[derive(Debug, thiserror::Error)]
pub(super) enum BaselineError {
    #[error("the baseline of CUDA counts: {0}")]
    Malformed(#[from] DecodeError),
    #[error("the baseline of CUDA counts: {0}")]
    Holder(#[from] RecordError),
}

#[derive(Clone, PartialEq, Message)]
struct Stored {
    #[prost(fixed64, tag = "1")]
    epoch: u64,
    #[prost(uint64, tag = "2")]
    at_ns: u64,
    #[prost(message, repeated, tag = "3")]
    processes: Vec<StoredProcess>,
    #[prost(uint64, repeated, tag = "4")]
    ended: Vec<u64>,
    #[prost(uint64, repeated, tag = "5")]
    overflow: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredProcess {
    #[prost(uint32, tag = "1")]
    tgid: u32,
    #[prost(uint64, tag = "2")]
    start_ticks: u64,
    #[prost(message, optional, tag = "3")]
    holder: Option<v1::Holder>,
    #[prost(uint64, repeated, tag = "4")]
    counts: Vec<u64>,
    #[prost(message, repeated, tag = "5")]
    elsewhere: Vec<StoredPart>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredPart {
    #[prost(uint32, optional, tag = "1")]
    ordinal: Option<u32>,
    #[prost(uint64, repeated, tag = "2")]
    counts: Vec<u64>,
}

pub(super) fn encode(baseline: &CudaBaseline) -> Vec<u8> {
    let process = |(id, it): (&ProcessId, &Accounted)| StoredProcess {
        tgid: id.tgid,
        start_ticks: id.start_ticks,
        holder: Some(wire_holder(&it.holder)),
        counts: numbers(&it.counts),
        elsewhere: it
            .elsewhere
            .iter()
            .map(|(ordinal, counts)| StoredPart { ordinal: *ordinal, counts: numbers(counts) })
            .collect(),
    };
    let stored = Stored {
        epoch: baseline.epoch,
        at_ns: baseline.at.0,
        processes: baseline.processes.iter().map(process).collect(),
        ended: numbers(&baseline.ended),
        overflow: numbers(&baseline.overflow),
    };
    stored.encode_to_vec()
}

pub(super) fn decode(bytes: &[u8]) -> Result<CudaBaseline, BaselineError> {
    let stored = Stored::decode(bytes)?;
    let mut processes = BTreeMap::new();
    for it in stored.processes {
        let id = ProcessId { tgid: it.tgid, start_ticks: it.start_ticks };
        let elsewhere =
            it.elsewhere.into_iter().map(|part| (part.ordinal, counts(&part.counts))).collect();
        let holder = read_holder(it.holder)?;
        processes.insert(id, Accounted { holder, counts: counts(&it.counts), elsewhere });
    }
    Ok(CudaBaseline {
        epoch: stored.epoch,
        at: BootNs(stored.at_ns),
        processes,
        ended: counts(&stored.ended),
        overflow: counts(&stored.overflow),
    })
}

/// Nothing after the last one that is not zero.
fn numbers(counts: &CudaCounts) -> Vec<u64> {
    let all = counts.all();
    let used = all.iter().rposition(|it| *it != 0).map_or(0, |it| it + 1);
    all[..used].to_vec()
}

/// Of the same ABI, or the epoch is another one: no number is left over.
fn counts(numbers: &[u64]) -> CudaCounts {
    let mut all = *CudaCounts::default().all();
    for (to, from) in all.iter_mut().zip(numbers) {
        *to = *from;
    }
    all.into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{decode, encode};
    use crate::attribution::fixtures;
    use crate::model::units::BootNs;
    use crate::model::usage::{Accounted, CudaBaseline};

    #[test]
    fn what_is_stored_is_read_back() {
        let accounted = Accounted {
            holder: fixtures::holder("unit"),
            counts: fixtures::launched(7),
            elsewhere: BTreeMap::from([
                (None, fixtures::launched(1)),
                (Some(3), fixtures::launched(2)),
            ]),
        };
        let baseline = CudaBaseline {
            epoch: u64::MAX,
            at: BootNs(5),
            processes: BTreeMap::from([(fixtures::process(10), accounted)]),
            ended: fixtures::launched(9),
            overflow: fixtures::launched(0),
        };
        assert_eq!(decode(&encode(&baseline)).unwrap(), baseline);
        assert!(decode(b"\xff\xff").is_err());
    }
}
