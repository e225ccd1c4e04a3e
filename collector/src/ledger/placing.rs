//! From a tile, and what its instance had before, to the hours in which both count. Pure.

use proto::names::UNCONFIGURED;

use crate::ledger::apply::spend;
use crate::ledger::clock_map::{ClockMap, Pair};
use crate::ledger::dating::{Before, Dated};
use crate::ledger::decide::{Hole, Known, MAX_BLIND_NS, Quarantine};
use crate::ledger::places::Place;
use crate::model::record::{Reason, Tile};

/// A tile on its way to the sums.
pub(super) struct Placed<'a> {
    pub(super) tile: &'a Tile,
    pub(super) place: Place,
    pub(super) map: ClockMap,
    /// The place did not exist, or was another node's, between its last tile and this one.
    pub(super) was_elsewhere: bool,
}

// === impl Placed ===

impl Placed<'_> {
    /// The hours of the tile, and of the time before it that nobody reported: a hole within the boot, or
    /// the time between two boots.
    pub(super) fn dated(
        &self,
        known: Known,
        hole: Hole,
        hours_left: &mut usize,
    ) -> Result<Dated, Quarantine> {
        let own = self.map.hours(self.tile.start_ns, self.tile.end_ns);
        let contiguous = hole.start_ns == hole.end_ns && known != Known::NewBoot;
        let before = match known {
            _ if contiguous => Before::Nothing,
            _ if self.was_elsewhere || self.comes_and_goes() => Before::Seam,
            Known::NewBoot => self.between_boots(),
            _ => {
                let hours = self.map.hours(hole.start_ns, hole.end_ns);
                Before::Posted { reason: Reason::MISSING, hours }
            }
        };
        let dated = Dated { own, before };
        spend(hours_left, dated.hours().count())?;
        Ok(dated)
    }

    /// Slices without an instance: where nothing was sent of them, they may have been configured.
    fn comes_and_goes(&self) -> bool {
        self.tile.instance.mig_uuid.as_deref() == Some(UNCONFIGURED)
    }

    /// Between boots only UTC is common: the end of the last tile and the start of this one.
    fn between_boots(&self) -> Before {
        let Some(last) = self.place.last else { return Before::Nothing };
        let since = self.map.utc_ns(self.tile.start_ns).saturating_sub(last.end_utc_ns);
        match u64::try_from(since) {
            Ok(0) => Before::Nothing,
            Ok(ns) if ns <= MAX_BLIND_NS => {
                let by_utc = ClockMap::new(Pair { boot_ns: 0, utc_ns: last.end_utc_ns });
                Before::Posted { reason: Reason::NODE_REBOOT, hours: by_utc.hours(0, ns) }
            }
            _ => Before::Seam,
        }
    }
}
