//! Usage for reports: sums over whole UTC hours, read from committed rows.
//!
//! One short read transaction per hour, so that a long report never keeps the write-ahead log from
//! being reset.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::Connection;

use crate::ledger::accounts::add;
use crate::ledger::posting::InstanceAmounts;
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
    /// Nanoseconds by share and reason.
    pub unowned: BTreeMap<(String, String), u128>,
    /// Wall time of all instances, whoever had them: what the shares of everybody must sum to.
    pub wall_ns: u128,
}

/// Nanoseconds, and CUDA calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TenantUsage {
    /// By method.
    pub active: BTreeMap<String, u128>,
    pub held_idle: u128,
    pub held_unknown: u128,
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

fn first_hour(db: &Connection, from: i64, end: i64) -> rusqlite::Result<Option<i64>> {
    db.prepare_cached("SELECT min(hour) FROM hour WHERE hour >= ?1 AND hour < ?2")?
        .query_row((from, end), |row| row.get(0))
}

fn read_hour(
    db: &Connection,
    hour: i64,
    tenant: Option<&str>,
    sums: &mut BTreeMap<Key, Vec<u128>>,
) -> rusqlite::Result<()> {
    let mut statement = db.prepare_cached(
        "SELECT h.amounts, a.tenant, a.kind, a.share, a.detail
         FROM hour h JOIN account a ON a.id = h.account
         WHERE h.hour = ?1 AND (?2 IS NULL OR a.tenant = ?2 OR a.kind = 'instance')",
    )?;
    let mut rows = statement.query((hour, tenant))?;
    while let Some(row) = rows.next()? {
        let key: Key = [row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?];
        add(sums.entry(key).or_default(), &amounts_of(row)?);
    }
    Ok(())
}

fn summed(sums: BTreeMap<Key, Vec<u128>>) -> Usage {
    let mut usage = Usage::default();
    for ([tenant, kind, share, detail], amounts) in sums {
        if kind == "instance" {
            usage.wall_ns = class_time(&amounts);
            continue;
        }
        let first = amounts.first().copied().unwrap_or(0);
        if kind == "unowned" {
            usage.unowned.insert((share, detail), first);
            continue;
        }
        let tenant = usage.tenants.entry(tenant).or_default();
        match (kind.as_str(), share.as_str()) {
            ("cuda", _) => tenant.cuda = Some(CudaSums::from_slice(&amounts)),
            (_, "active") => drop(tenant.active.insert(detail, first)),
            (_, "held_idle") => tenant.held_idle = first,
            (_, "held_unknown") => tenant.held_unknown = first,
            _ => {}
        }
    }
    usage
}

/// Time of the instances by class, summed: kept apart from the shares, so that it can tell whether
/// they conserve it.
fn class_time(amounts: &[u128]) -> u128 {
    InstanceAmounts::from_slice(amounts).map_or(0, |it| it.class_ns.iter().sum())
}

impl TenantUsage {
    #[must_use]
    pub fn active_ns(&self) -> u128 {
        self.active.values().sum()
    }
}
