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
