//! Instances on nodes, with the end of their last tile, and which node a device belongs to.
//!
//! Part of the cache in `names.rs`: the same rules hold.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension as _};

use crate::ledger::decide::Known;
use crate::ledger::names::Names;
use crate::model::ids::InstanceId;

/// Instances that one node may have within a day: 16 devices of 7 instances, cut anew every hour, stay
/// below it.
const MAX_PLACES: i64 = 4_096;
const DAY_NS: i64 = 24 * 3_600_000_000_000;

/// An instance on a node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) id: i64,
    pub(super) last: Option<LastTile>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct LastTile {
    /// Row id of its boot.
    pub(super) boot: i64,
    pub(super) end_ns: u64,
    pub(super) end_utc_ns: i64,
}

impl Names {
    /// `None` = the node names too many instances.
    pub(super) fn place(
        &mut self,
        db: &Connection,
        (node, instance): (i64, &InstanceId),
        now_ns: i64,
    ) -> rusqlite::Result<Option<Place>> {
        if let Some(place) = self.places.get(&(node, instance.clone())) {
            return Ok(Some(*place));
        }
        let mig = instance.mig_uuid.as_deref().unwrap_or_default();
        let known = db
            .prepare_cached(
                "SELECT id, boot, end_ns, end_utc_ns FROM place WHERE node = ?1 AND gpu = ?2 AND mig = ?3",
            )?
            .query_row((node, &instance.gpu_uuid, mig), place_of)
            .optional()?;
        let place = match known {
            Some(place) => place,
            None => {
                let count: i64 = db
                    .prepare_cached(
                        "SELECT count(*) FROM place WHERE node = ?1
                         AND (end_utc_ns IS NULL OR end_utc_ns > ?2)",
                    )?
                    .query_row((node, now_ns - DAY_NS), |row| row.get(0))?;
                if count >= MAX_PLACES {
                    return Ok(None);
                }
                db.prepare_cached("INSERT INTO place (node, gpu, mig) VALUES (?1, ?2, ?3)")?
                    .execute((node, &instance.gpu_uuid, mig))?;
                Place { id: db.last_insert_rowid(), last: None }
            }
        };
        self.places.insert((node, instance.clone()), place);
        Ok(Some(place))
    }

    /// What the ledger knows of a place, seen from a boot.
    pub(super) fn known(db: &Connection, place: &Place, boot: i64) -> rusqlite::Result<Known> {
        let Some(last) = place.last else { return Ok(Known::Nothing) };
        if last.boot == boot {
            return Ok(Known::SameBoot { end_ns: last.end_ns });
        }
        let superseded = db
            .prepare_cached("SELECT 1 FROM past_boot WHERE place = ?1 AND boot = ?2")?
            .exists((place.id, boot))?;
        Ok(if superseded { Known::SupersededBoot } else { Known::NewBoot })
    }

    /// Remembers the end of a tile that is applied.
    pub(super) fn extend(
        &mut self,
        db: &Connection,
        (node, instance): (i64, &InstanceId),
        mut place: Place,
        last: LastTile,
    ) -> rusqlite::Result<()> {
        if let Some(before) = place.last.filter(|it| it.boot != last.boot) {
            db.prepare_cached("INSERT OR IGNORE INTO past_boot (place, boot) VALUES (?1, ?2)")?
                .execute((place.id, before.boot))?;
        }
        db.prepare_cached(
            "UPDATE place SET boot = ?2, end_ns = ?3, end_utc_ns = ?4 WHERE id = ?1",
        )?
        .execute((place.id, last.boot, last.end_ns.cast_signed(), last.end_utc_ns))?;
        place.last = Some(last);
        self.places.insert((node, instance.clone()), place);
        Ok(())
    }

    /// Whether the device was cut differently after `since`: as a whole while this place is one of its
    /// MIG instances, or the other way round. The place then did not exist.
    pub(super) fn cut_otherwise(
        db: &Connection,
        (node, instance): (i64, &InstanceId),
        since_utc_ns: i64,
    ) -> rusqlite::Result<bool> {
        db.prepare_cached(
            "SELECT 1 FROM place WHERE node = ?1 AND gpu = ?2 AND (mig = '') <> ?3 AND end_utc_ns > ?4",
        )?
        .exists((node, &instance.gpu_uuid, instance.mig_uuid.is_none(), since_utc_ns))
    }

    /// Remembers that two tiles do not meet in UTC and that nothing is missing between them.
    pub(super) fn seam(
        db: &Connection,
        place: i64,
        (from_utc_ns, to_utc_ns): (i64, i64),
    ) -> rusqlite::Result<()> {
        db.prepare_cached(
            "INSERT OR IGNORE INTO seam (place, from_utc_ns, to_utc_ns) VALUES (?1, ?2, ?3)",
        )?
        .execute((place, from_utc_ns, to_utc_ns))?;
        Ok(())
    }

    // --- devices ---

    /// Which node a device belongs to.
    pub(super) fn owner(
        &mut self,
        db: &Connection,
        gpu: &Arc<str>,
    ) -> rusqlite::Result<Option<i64>> {
        if let Some(node) = self.devices.get(gpu) {
            return Ok(Some(*node));
        }
        let node: Option<i64> = db
            .prepare_cached("SELECT node FROM device WHERE gpu = ?1")?
            .query_row([gpu], |row| row.get(0))
            .optional()?;
        if let Some(node) = node {
            self.devices.insert(Arc::clone(gpu), node);
        }
        Ok(node)
    }

    pub(super) fn set_owner(
        &mut self,
        db: &Connection,
        gpu: &Arc<str>,
        node: i64,
    ) -> rusqlite::Result<()> {
        db.prepare_cached(
            "INSERT INTO device (gpu, node) VALUES (?1, ?2) ON CONFLICT (gpu) DO UPDATE SET node = ?2",
        )?
        .execute((gpu, node))?;
        self.devices.insert(Arc::clone(gpu), node);
        Ok(())
    }
}

fn place_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<Place> {
    let last = match (row.get(1)?, row.get::<_, Option<i64>>(2)?, row.get(3)?) {
        (Some(boot), Some(end_ns), Some(end_utc_ns)) => {
            Some(LastTile { boot, end_ns: end_ns.cast_unsigned(), end_utc_ns })
        }
        _ => None,
    };
    Ok(Place { id: row.get(0)?, last })
}
