//! Deletes raw records that are older than the configuration keeps them.
//!
//! Sums, cursors and running totals are never deleted. A little at a time, spool by spool, so that the
//! writer is not held up.

use rusqlite::Connection;

/// Spools looked at in one step.
const SPOOLS: u32 = 64;
/// Records deleted per spool in one step.
const RECORDS: u32 = 1_000;

/// Where the last step ended.
#[derive(Debug, Default)]
pub(super) struct Retention {
    after_spool: i64,
}

impl Retention {
    /// Deletes what was received before `before_ns`, for the next few spools.
    pub(super) fn step(&mut self, db: &mut Connection, before_ns: i64) -> rusqlite::Result<()> {
        let spools: Vec<i64> = db
            .prepare_cached("SELECT id FROM spool WHERE id > ?1 ORDER BY id LIMIT ?2")?
            .query_map((self.after_spool, SPOOLS), |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        let mut due = Vec::new();
        for spool in &spools {
            let last: Option<i64> = db
                .prepare_cached(
                    "SELECT max(seq) FROM
                     (SELECT seq, received_ns FROM record WHERE spool = ?1 ORDER BY seq LIMIT ?2)
                     WHERE received_ns < ?3",
                )?
                .query_row((spool, RECORDS, before_ns), |row| row.get(0))?;
            due.extend(last.map(|it| (*spool, it)));
        }
        if !due.is_empty() {
            let transaction = db.transaction()?;
            for (spool, last) in due {
                transaction
                    .prepare_cached("DELETE FROM record WHERE spool = ?1 AND seq <= ?2")?
                    .execute((spool, last))?;
            }
            transaction.commit()?;
        }
        self.after_spool = spools.last().copied().unwrap_or(0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Retention;
    use crate::ledger::Applied;
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
        let mut left = |before_ns| -> i64 {
            retention.step(&mut bench.db, before_ns).unwrap();
            bench.db.query_row("SELECT count(*) FROM record", (), |row| row.get(0)).unwrap()
        };
        assert_eq!(left(NOW), 6);
        assert_eq!(left(NOW + 1), 6, "this step starts where the last one ended");
        assert_eq!(left(NOW + 1), 0);
        assert_eq!(bench.usage(), usage);
        // However late a repeat comes, it counts nothing.
        assert_eq!(bench.batch(&batch_of("a", 1, &[tile("a", 0)])), Applied::Through(3));
        assert_eq!(bench.usage(), usage);
    }
}
