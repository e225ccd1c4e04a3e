//! Usage for reports: sums over whole UTC hours, read from committed rows.
//!
//! One short read transaction per hour, so that a long report never keeps the write-ahead log from
//! being reset.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;

use rusqlite::Connection;

use crate::ledger::accounts::add;
use crate::ledger::amounts::{InstanceAmounts, ShareAmounts, Weighed};
use crate::ledger::schema;
use crate::ledger::sums::amounts_of;
use crate::model::cuda::CudaSums;

/// Which hours, and whose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Hours since the Unix epoch; `None` = the beginning of the ledger.
    pub from_hour: Option<i64>,
    /// Exclusive; `None` = everything so far.
    pub to_hour: Option<i64>,
    /// `None` = every tenant, and what belongs to nobody.
    pub tenant: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// By tenant.
    pub tenants: BTreeMap<String, TenantUsage>,
    /// By share and reason.
    pub unowned: BTreeMap<(String, String), ShareAmounts>,
    pub wall: Wall,
}

/// Of all instances, whoever had them: what the shares of everybody must sum to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wall {
    pub ns: u128,
    pub weighed: Weighed,
    /// Millijoules, and the time in which they are known.
    pub energy_mj: u128,
    pub energy_ns: u128,
}

/// What a tenant had, and its CUDA calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TenantUsage {
    /// By method.
    pub active: BTreeMap<String, ShareAmounts>,
    pub held_idle: ShareAmounts,
    pub held_unknown: ShareAmounts,
    /// `None` = no CUDA call was ever counted, as on nodes that do not trace.
    pub cuda: Option<CudaSums>,
}

#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    #[error("the ledger cannot be read: {0}; nothing in it was changed")]
    Read(#[from] rusqlite::Error),
    #[error("the collector is stopping")]
    Stopped,
}

/// Blocks; not for the runtime's own threads.
pub(super) fn read(database: &Path, query: &Query) -> Result<Usage, UsageError> {
    let db = schema::reader(database)?;
    let mut sums = BTreeMap::new();
    let mut next = query.from_hour.unwrap_or(i64::MIN);
    let end = query.to_hour.unwrap_or(i64::MAX);
    while let Some(hour) = first_hour(&db, next, end)? {
        read_hour(&db, hour, query.tenant.as_deref(), &mut sums)?;
        next = hour + 1;
    }
    Ok(summed(sums))
}

/// What identifies a row of a report: tenant, kind, share, detail.
type Key = [String; 4];

/// Of one row, as its kind reads them.
#[derive(Debug)]
enum Sum {
    Share(ShareAmounts),
    Instance(Wall),
    Cuda(Vec<u128>),
}

fn first_hour(db: &Connection, from: i64, end: i64) -> rusqlite::Result<Option<i64>> {
    db.prepare_cached(
        "SELECT min(hour) FROM
         (SELECT min(hour) AS hour FROM hour WHERE hour >= ?1 AND hour < ?2
          UNION ALL SELECT min(hour) FROM correction WHERE hour >= ?1 AND hour < ?2)",
    )?
    .query_row((from, end), |row| row.get(0))
}

fn read_hour(
    db: &Connection,
    hour: i64,
    tenant: Option<&str>,
    sums: &mut BTreeMap<Key, Sum>,
) -> rusqlite::Result<()> {
    let mut statement = db.prepare_cached(
        "SELECT h.amounts, a.tenant, a.kind, a.share, a.detail, p.mig = ''
         FROM (SELECT place, account, amounts FROM hour WHERE hour = ?1
               UNION ALL SELECT place, account, amounts FROM correction WHERE hour = ?1) h
         JOIN account a ON a.id = h.account JOIN place p ON p.id = h.place
         WHERE ?2 IS NULL OR a.tenant = ?2 OR a.kind = 'instance'",
    )?;
    let mut rows = statement.query((hour, tenant))?;
    while let Some(row) = rows.next()? {
        let key: Key = [row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?];
        let sum = Sum::of(&key[1], &amounts_of(row)?, row.get(5)?);
        match sums.entry(key) {
            Entry::Vacant(it) => drop(it.insert(sum)),
            Entry::Occupied(mut it) => it.get_mut().add(&sum),
        }
    }
    Ok(())
}

fn summed(sums: BTreeMap<Key, Sum>) -> Usage {
    let mut usage = Usage::default();
    for ([tenant, kind, share, detail], sum) in sums {
        match (kind.as_str(), sum) {
            (_, Sum::Instance(it)) => usage.wall = it,
            ("unowned", Sum::Share(it)) => drop(usage.unowned.insert((share, detail), it)),
            (_, Sum::Share(it)) => usage.tenants.entry(tenant).or_default().set(&share, detail, it),
            (_, Sum::Cuda(it)) => {
                usage.tenants.entry(tenant).or_default().cuda = Some(CudaSums::from_slice(&it));
            }
        }
    }
    usage
}

// === impl Sum ===

impl Sum {
    fn of(kind: &str, amounts: &[u128], whole: bool) -> Self {
        match kind {
            "cuda" => Self::Cuda(amounts.to_vec()),
            "instance" => Self::Instance(Wall::of(&InstanceAmounts::from_slice(amounts), whole)),
            _ => {
                let share = ShareAmounts::from_slice(amounts);
                Self::Share(if whole { share.of_whole() } else { share })
            }
        }
    }

    fn add(&mut self, more: &Self) {
        match (self, more) {
            (Self::Share(sum), Self::Share(it)) => *sum = sum.plus(it),
            (Self::Instance(sum), Self::Instance(it)) => *sum = sum.plus(it),
            (Self::Cuda(sum), Self::Cuda(it)) => add(sum, it),
            _ => unreachable!("the kind is part of the key"),
        }
    }
}

// === impl Wall ===

impl Wall {
    /// The classes of an instance sum to its wall time: kept apart from the shares, so that it can tell
    /// whether they conserve it.
    fn of(amounts: &InstanceAmounts, whole: bool) -> Self {
        let ns = amounts.wall_ns();
        Self {
            ns,
            weighed: if whole { Weighed::whole(ns) } else { amounts.weighed },
            energy_mj: amounts.energy_mj,
            energy_ns: amounts.energy_ns,
        }
    }

    fn plus(self, other: &Self) -> Self {
        Self {
            ns: self.ns.wrapping_add(other.ns),
            weighed: self.weighed.plus(other.weighed),
            energy_mj: self.energy_mj.wrapping_add(other.energy_mj),
            energy_ns: self.energy_ns.wrapping_add(other.energy_ns),
        }
    }
}

// === impl TenantUsage ===

impl TenantUsage {
    fn set(&mut self, share: &str, method: String, amounts: ShareAmounts) {
        match share {
            "active" => drop(self.active.insert(method, amounts)),
            "held_idle" => self.held_idle = amounts,
            "held_unknown" => self.held_unknown = amounts,
            _ => {}
        }
    }

    #[must_use]
    pub fn active(&self) -> ShareAmounts {
        self.active.values().fold(ShareAmounts::default(), |sum, it| sum.plus(it))
    }

    #[must_use]
    pub fn total(&self) -> ShareAmounts {
        self.active().plus(&self.held_idle).plus(&self.held_unknown)
    }
}
