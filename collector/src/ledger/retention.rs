//! Deletes raw records that are older than the configuration keeps them, once every hour that they count in
//! is final.
//!
//! Sums, cursors and running totals are never deleted, nor how many records ended how. A little at a
//! time, spool by spool, so that the writer is not held up.

use std::collections::BTreeMap;

use rusqlite::{Connection, Transaction};

use crate::ledger::dating::Dated;

/// Spools looked at in one step.
const SPOOLS: u32 = 64;
/// Records deleted per spool in one step.
const RECORDS: u32 = 1_000;

/// Where the last step ended.
#[derive(Debug, Default)]
pub(super) struct Retention {
    after_spool: i64,
}

/// The oldest records of a spool that may go.
#[derive(Debug, Default)]
struct Due {
    spool: i64,
    through: Option<i64>,
    /// How many of them ended how.
    outcomes: BTreeMap<String, i64>,
}

impl Retention {
    /// Deletes what was received before `before_ns` and counts in no hour after `closed_through`, for
    /// the next few spools.
    pub(super) fn step(
        &mut self,
        db: &mut Connection,
        before_ns: i64,
        closed_through: Option<i64>,
    ) -> rusqlite::Result<()> {
        let spools: Vec<i64> = db
            .prepare_cached("SELECT id FROM spool WHERE id > ?1 ORDER BY id LIMIT ?2")?
            .query_map((self.after_spool, SPOOLS), |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        let mut all = Vec::new();
        for spool in &spools {
            let due = Due::of(db, *spool, (before_ns, closed_through))?;
            all.extend(due.through.is_some().then_some(due));
        }
        if !all.is_empty() {
            let transaction = db.transaction()?;
            for due in all {
                due.fold(&transaction)?;
            }
            transaction.commit()?;
        }
        self.after_spool = spools.last().copied().unwrap_or(0);
        Ok(())
    }
}

impl Due {
    fn of(
        db: &Connection,
        spool: i64,
        (before_ns, closed_through): (i64, Option<i64>),
    ) -> rusqlite::Result<Self> {
        let mut due = Self { spool, ..Self::default() };
        let mut statement = db.prepare_cached(
            "SELECT seq, reason, received_ns, dated FROM record
             WHERE spool = ?1 ORDER BY seq LIMIT ?2",
        )?;
        let mut rows = statement.query((spool, RECORDS))?;
        while let Some(row) = rows.next()? {
            let received_ns: i64 = row.get(2)?;
            let dated = row.get_ref(3)?.as_bytes_or_null().unwrap_or_default();
            // Quarantined, or of a version that did not keep it: it holds up no hour.
            let dated = dated.and_then(Dated::decode);
            let closed =
                dated.is_none_or(|it| it.hours().all(|it| Some(it.hour) <= closed_through));
            if received_ns >= before_ns || !closed {
                break;
            }
            due.through = Some(row.get(0)?);
            *due.outcomes.entry(row.get(1)?).or_default() += 1;
        }
        Ok(due)
    }

    fn fold(&self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        transaction
            .prepare_cached("DELETE FROM record WHERE spool = ?1 AND seq <= ?2")?
            .execute((self.spool, self.through))?;
        transaction
            .prepare_cached("UPDATE spool SET folded_through = ?2 WHERE id = ?1")?
            .execute((self.spool, self.through))?;
        for (reason, records) in &self.outcomes {
            transaction
                .prepare_cached(
                    "INSERT INTO folded (spool, reason, records) VALUES (?1, ?2, ?3)
                     ON CONFLICT (spool, reason) DO UPDATE SET records = records + excluded.records",
                )?
                .execute((self.spool, reason, records))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Retention;
    use crate::ledger::Applied;
    use crate::ledger::clock_map::HOUR_NS;
    use crate::ledger::fixtures::{Bench, NOW, SECOND, batch_of, free, hello_of, tile_of};
    use crate::model::record::Record;
    use tempfile::tempdir;

    #[test]
    fn old_records_go_and_nothing_else() {
        let folder = tempdir().unwrap();
        let mut bench = Bench::open(folder.path());
        let tile =
            |name: &str, index: u64| tile_of(name, name, index * SECOND, &[(free(), SECOND)]);
        for name in ["a", "b"] {
            bench.hello(&hello_of(name));
            let records: Vec<Record> = (0..3).map(|it| tile(name, it)).collect();
            bench.batch(&batch_of(name, 1, &records));
        }
        let usage = bench.usage();
        let mut retention = Retention::default();
        let mut left = |before_ns, closed_through| -> i64 {
            retention.step(&mut bench.db, before_ns, closed_through).unwrap();
            bench.db.query_row("SELECT count(*) FROM record", (), |row| row.get(0)).unwrap()
        };
        let hour = NOW / HOUR_NS;
        assert_eq!(left(NOW, Some(hour)), 6);
        assert_eq!(left(NOW + 1, Some(hour)), 6, "this step starts where the last one ended");
        assert_eq!(left(NOW + 1, Some(hour - 1)), 6, "their hour is not final");
        assert_eq!(left(NOW + 1, None), 6, "this step starts where the last one ended");
        assert_eq!(left(NOW + 1, Some(hour)), 0);
        assert_eq!(bench.usage(), usage);
        // However late a repeat comes, it counts nothing.
        assert_eq!(bench.batch(&batch_of("a", 1, &[tile("a", 0)])), Applied::Through(3));
        assert_eq!(bench.usage(), usage);
    }
}
