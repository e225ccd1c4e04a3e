//! Row ids of everything that records name, with what the ledger knows of each.
//!
//! A cache of the tables `node`, `spool`, `boot`, `clock`, `place`, `device` and `account`, filled as
//! names come up; the functions for places and devices are in `places.rs`. It follows the open
//! transaction; after a rollback the writer throws it away whole.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension as _};

use crate::ledger::accounts::columns;
use crate::ledger::clock_map::{ClockMap, Pair};
use crate::ledger::places::Place;
use crate::ledger::posting::Account;
use crate::model::ids::{InstanceId, NodeKey, SpoolId};

/// Entries of one kind beyond which the cache is thrown away, so that names that no longer occur
/// (pods that ended) do not pile up. The largest fleets need about half of it.
const MAX_CACHED: usize = 1_000_000;

#[derive(Debug, Default)]
pub(super) struct Names {
    nodes: HashMap<NodeKey, Node>,
    spools: HashMap<(i64, SpoolId), Spool>,
    boots: HashMap<(i64, Arc<str>), Boot>,
    pub(super) places: HashMap<(i64, InstanceId), Place>,
    pub(super) devices: HashMap<Arc<str>, i64>,
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
