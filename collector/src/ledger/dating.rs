//! In which hours a record counts, decided once, when it is applied. Pure.
//!
//! Kept with the record, so that its postings can be computed again, to the nanosecond, whatever the clock
//! map and the neighbours of the record have become since.

use crate::ledger::clock_map::HourSpan;
use crate::ledger::posting::{Posting, of_blind_span, of_cuda, of_tile};
use crate::model::record::{Reason, Record, RecordKind};

/// The hours of a record and of the time before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dated {
    /// They sum to the record's span.
    pub(super) own: Vec<HourSpan>,
    pub(super) before: Before,
}

/// The time between the last tile of the instance and this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Before {
    /// There is none, or this is the first tile.
    Nothing,
    /// Nobody reported it.
    Posted { reason: Reason, hours: Vec<HourSpan> },
    /// It is nobody's: the instance did not exist or was another node's, or the clocks do not say how
    /// long it was.
    Seam,
}

/// What a stored list starts with; a posted reason is its position here plus `REASON`.
const NOTHING: u8 = 0;
const SEAM: u8 = 1;
const REASON: u8 = 2;
const REASONS: [Reason; 2] = [Reason::MISSING, Reason::NODE_REBOOT];
/// Bytes of a stored span: the hour and its nanoseconds.
const SPAN: usize = 12;

// === impl Dated ===

impl Dated {
    /// What the record adds to which account.
    pub(super) fn postings(&self, record: &Record) -> Vec<Posting> {
        match &record.kind {
            RecordKind::Cuda(activity) => of_cuda(activity, &self.own),
            RecordKind::Tile(tile) => {
                let mut postings = match &self.before {
                    Before::Posted { reason, hours } => {
                        of_blind_span(*reason, hours, tile.weight())
                    }
                    Before::Nothing | Before::Seam => Vec::new(),
                };
                postings.extend(of_tile(tile, &self.own));
                postings
            }
        }
    }

    /// Every hour that it posts to.
    pub(super) fn hours(&self) -> impl Iterator<Item = &HourSpan> {
        self.own.iter().chain(self.before.hours())
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.before.tag()];
        let own = u32::try_from(self.own.len()).expect("hours are bounded per batch");
        bytes.extend(own.to_be_bytes());
        for span in self.hours() {
            let hour = i32::try_from(span.hour).expect("hours of 64-bit nanoseconds fit 32 bits");
            bytes.extend(hour.to_be_bytes());
            bytes.extend(span.ns.to_be_bytes());
        }
        bytes
    }

    /// The reverse of `encode`; anything else is damage and gives `None`.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (&tag, rest) = bytes.split_first()?;
        let (own, rest) = rest.split_first_chunk()?;
        let own = usize::try_from(u32::from_be_bytes(*own)).ok()?;
        let (chunks, rest) = rest.as_chunks::<SPAN>();
        let mut spans = chunks.iter().map(span_of).collect::<Option<Vec<HourSpan>>>()?;
        if !rest.is_empty() || own > spans.len() {
            return None;
        }
        let hours = spans.split_off(own);
        let before = match tag {
            NOTHING if hours.is_empty() => Before::Nothing,
            SEAM if hours.is_empty() => Before::Seam,
            _ => {
                let reason = *REASONS.get(usize::from(tag.checked_sub(REASON)?))?;
                Before::Posted { reason, hours }
            }
        };
        Some(Self { own: spans, before })
    }
}

fn span_of(bytes: &[u8; SPAN]) -> Option<HourSpan> {
    let (hour, ns) = bytes.split_first_chunk()?;
    let ns = u64::from_be_bytes(ns.try_into().ok()?);
    Some(HourSpan { hour: i32::from_be_bytes(*hour).into(), ns })
}

// === impl Before ===

impl Before {
    fn hours(&self) -> &[HourSpan] {
        match self {
            Self::Posted { hours, .. } => hours,
            Self::Nothing | Self::Seam => &[],
        }
    }

    fn tag(&self) -> u8 {
        match self {
            Self::Nothing => NOTHING,
            Self::Seam => SEAM,
            Self::Posted { reason, .. } => {
                if *reason == Reason::MISSING {
                    REASON
                } else {
                    REASON + 1
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Before, Dated, HourSpan, REASONS};
    use proptest::prelude::{any, prop, prop_assert_eq, proptest};

    proptest! {
        #[test]
        fn it_comes_back_and_nothing_else_does(
            own in prop::collection::vec((any::<i32>(), any::<u64>()), 0..4),
            before in prop::collection::vec((any::<i32>(), any::<u64>()), 0..4),
            kind in 0..4_usize,
            noise in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let spans = |it: Vec<(i32, u64)>| -> Vec<HourSpan> {
                it.into_iter().map(|(hour, ns)| HourSpan { hour: hour.into(), ns }).collect()
            };
            let before = match kind {
                0 => Before::Nothing,
                1 => Before::Seam,
                _ => Before::Posted { reason: REASONS[kind - 2], hours: spans(before) },
            };
            let dated = Dated { own: spans(own), before };
            let bytes = dated.encode();
            prop_assert_eq!(Dated::decode(&bytes), Some(dated));
            prop_assert_eq!(Dated::decode(&bytes[..bytes.len() - 1]), None);
            if let Some(read) = Dated::decode(&noise) {
                prop_assert_eq!(read.encode(), noise);
            }
        }
    }
}
