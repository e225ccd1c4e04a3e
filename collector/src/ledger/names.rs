//! Row ids of everything that records name, with what the ledger knows of each.
//!
//! A cache of the tables `node`, `spool`, `boot`, `clock`, `place`, `device` and `account`, filled as
//! names come up. It follows the open transaction; after a rollback the writer throws it away whole.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension as _};

use crate::ledger::accounts::columns;
use crate::ledger::clock_map::{ClockMap, Pair};
use crate::ledger::decide::Known;
use crate::ledger::posting::Account;
use crate::model::ids::{InstanceId, NodeKey, SpoolId};

/// Entries of one kind beyond which the cache is thrown away, so that names that no longer occur
/// (pods that ended) do not pile up. The largest fleets need about half of it.
const MAX_CACHED: usize = 1_000_000;

/// Instances that one node may have within a day: 16 devices of 7 instances, cut anew every hour, stay
/// below it.
const MAX_PLACES: i64 = 4_096;
const DAY_NS: i64 = 24 * 3_600_000_000_000;

#[derive(Debug, Default)]
pub(super) struct Names {
    nodes: HashMap<NodeKey, Node>,
    spools: HashMap<(i64, SpoolId), Spool>,
    boots: HashMap<(i64, Arc<str>), Boot>,
    places: HashMap<(i64, InstanceId), Place>,
    devices: HashMap<Arc<str>, i64>,
    accounts: HashMap<Account, i64>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    pub(super) id: i64,
    pub(super) epoch: u64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Spool {
    pub(super) id: i64,
    /// The cursor.
    pub(super) through: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Boot {
    pub(super) id: i64,
    /// `None` until the first pair is known.
    pub(super) map: Option<ClockMap>,
}

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

/// Where a pair comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Collector,
    Node,
}

// === impl Names ===

impl Names {
    /// To be called between transactions.
    pub(super) fn keep_small(&mut self) {
        let sizes = [
            self.nodes.len(),
            self.spools.len(),
            self.boots.len(),
            self.places.len(),
            self.devices.len(),
            self.accounts.len(),
        ];
        if sizes.into_iter().any(|it| it > MAX_CACHED) {
            *self = Self::default();
        }
    }

    // --- nodes ---

    pub(super) fn node(
        &mut self,
        db: &Connection,
        key: &NodeKey,
    ) -> rusqlite::Result<Option<Node>> {
        if let Some(node) = self.nodes.get(key) {
            return Ok(Some(*node));
        }
        let node = db
            .prepare_cached("SELECT id, epoch FROM node WHERE cluster = ?1 AND name = ?2")?
            .query_row((&key.cluster, &key.node), |row| {
                Ok(Node { id: row.get(0)?, epoch: row.get::<_, i64>(1)?.cast_unsigned() })
            })
            .optional()?;
        if let Some(node) = node {
            self.nodes.insert(key.clone(), node);
        }
        Ok(node)
    }

    /// The node with its next epoch; a node that is new has epoch 1.
    pub(super) fn next_epoch(&mut self, db: &Connection, key: &NodeKey) -> rusqlite::Result<Node> {
        let node = match self.node(db, key)? {
            Some(node) => {
                let node = Node { epoch: node.epoch + 1, ..node };
                db.prepare_cached("UPDATE node SET epoch = ?2 WHERE id = ?1")?
                    .execute((node.id, node.epoch.cast_signed()))?;
                node
            }
            None => {
                db.prepare_cached("INSERT INTO node (cluster, name, epoch) VALUES (?1, ?2, 1)")?
                    .execute((&key.cluster, &key.node))?;
                Node { id: db.last_insert_rowid(), epoch: 1 }
            }
        };
        self.nodes.insert(key.clone(), node);
        Ok(node)
    }

    // --- spools ---

    pub(super) fn spool(
        &mut self,
        db: &Connection,
        node: i64,
        spool_id: SpoolId,
    ) -> rusqlite::Result<Spool> {
        if let Some(spool) = self.spools.get(&(node, spool_id)) {
            return Ok(*spool);
        }
        let known = db
            .prepare_cached("SELECT id, through FROM spool WHERE node = ?1 AND spool_id = ?2")?
            .query_row((node, spool_id.0), |row| {
                Ok(Spool { id: row.get(0)?, through: row.get::<_, i64>(1)?.cast_unsigned() })
            })
            .optional()?;
        let spool = match known {
            Some(spool) => spool,
            None => {
                db.prepare_cached(
                    "INSERT INTO spool (node, spool_id, through) VALUES (?1, ?2, 0)",
                )?
                .execute((node, spool_id.0))?;
                Spool { id: db.last_insert_rowid(), through: 0 }
            }
        };
        self.spools.insert((node, spool_id), spool);
        Ok(spool)
    }

    pub(super) fn advance(
        &mut self,
        db: &Connection,
        (node, spool_id): (i64, SpoolId),
        spool: Spool,
    ) -> rusqlite::Result<()> {
        db.prepare_cached("UPDATE spool SET through = ?2 WHERE id = ?1")?
            .execute((spool.id, spool.through.cast_signed()))?;
        self.spools.insert((node, spool_id), spool);
        Ok(())
    }

    // --- boots ---

    pub(super) fn boot(
        &mut self,
        db: &Connection,
        node: i64,
        boot_id: &Arc<str>,
    ) -> rusqlite::Result<&mut Boot> {
        let key = (node, Arc::clone(boot_id));
        if !self.boots.contains_key(&key) {
            let boot = load_boot(db, node, boot_id)?;
            self.boots.insert(key.clone(), boot);
        }
        Ok(self.boots.get_mut(&key).expect("it was inserted above"))
    }

    /// Takes a pair of clock readings of a boot; one that corrects nothing is not stored.
    pub(super) fn read_clock(
        &mut self,
        db: &Connection,
        (node, boot_id): (i64, &Arc<str>),
        pair: Pair,
        source: Source,
    ) -> rusqlite::Result<()> {
        let boot = self.boot(db, node, boot_id)?;
        let stored = match &mut boot.map {
            Some(map) => map.correct(pair),
            None => {
                boot.map = Some(ClockMap::new(pair));
                true
            }
        };
        if stored {
            let source = i64::from(source == Source::Node);
            db.prepare_cached(
                "INSERT INTO clock (boot, boot_ns, utc_ns, source) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute((boot.id, pair.boot_ns.cast_signed(), pair.utc_ns, source))?;
        }
        Ok(())
    }

    // --- places ---

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

    // --- accounts ---

    pub(super) fn account(&mut self, db: &Connection, account: &Account) -> rusqlite::Result<i64> {
        if let Some(id) = self.accounts.get(account) {
            return Ok(*id);
        }
        let columns = columns(account);
        let known = db
            .prepare_cached(
                "SELECT id FROM account WHERE tenant = ?1 AND namespace = ?2 AND pod = ?3 AND container = ?4
                 AND holder_kind = ?5 AND holder = ?6 AND kind = ?7 AND share = ?8 AND detail = ?9",
            )?
            .query_row(columns, |row| row.get(0))
            .optional()?;
        let id = match known {
            Some(id) => id,
            None => {
                db.prepare_cached(
                    "INSERT INTO account (tenant, namespace, pod, container, holder_kind, holder, kind, share, detail)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                )?
                .execute(columns)?;
                db.last_insert_rowid()
            }
        };
        self.accounts.insert(account.clone(), id);
        Ok(id)
    }
}

fn load_boot(db: &Connection, node: i64, boot_id: &str) -> rusqlite::Result<Boot> {
    let known: Option<i64> = db
        .prepare_cached("SELECT id FROM boot WHERE node = ?1 AND boot_id = ?2")?
        .query_row((node, boot_id), |row| row.get(0))
        .optional()?;
    let Some(id) = known else {
        db.prepare_cached("INSERT INTO boot (node, boot_id) VALUES (?1, ?2)")?
            .execute((node, boot_id))?;
        return Ok(Boot { id: db.last_insert_rowid(), map: None });
    };
    let mut map: Option<ClockMap> = None;
    let mut statement =
        db.prepare_cached("SELECT boot_ns, utc_ns FROM clock WHERE boot = ?1 ORDER BY boot_ns")?;
    let mut rows = statement.query([id])?;
    while let Some(row) = rows.next()? {
        let pair = Pair { boot_ns: row.get::<_, i64>(0)?.cast_unsigned(), utc_ns: row.get(1)? };
        match &mut map {
            Some(map) => drop(map.correct(pair)),
            None => map = Some(ClockMap::new(pair)),
        }
    }
    Ok(Boot { id, map })
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
