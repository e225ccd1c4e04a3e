//! Makes hours final, one after the other, and seals their rows with a hash.
//!
//! An hour is final when every node that reported in it has passed it and `final_after` is over, or when
//! its records are about to be deleted, whatever is still missing; how many nodes were behind is written
//! down. Its rows never change again: what comes later is a correction, a row beside them. Hashes are
//! chained, and computed a part at a time, so that the writer is not held up.

use rusqlite::{Connection, OptionalExtension as _, Row};

use crate::ledger::clock_map::HOUR_NS;

/// Why a correction was made: it came after its hour was final.
pub(super) const LATE: &str = "late";
/// Rows that are hashed in one step.
const ROWS: u32 = 20_000;
/// How often it is looked whether the next hour can be closed.
const LOOK_EVERY_NS: i64 = 60_000_000_000;

/// When hours become final.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) now_ns: i64,
    /// After the end of an hour that every node has passed.
    pub(super) final_after_ns: i64,
    /// After the end of any hour.
    pub(super) at_latest_ns: i64,
}

/// Where the last step ended.
#[derive(Debug, Default)]
pub(super) struct Closing {
    looked_ns: i64,
    hashing: Option<HourHash>,
}

/// The hash of an hour's rows, as far as it is computed.
#[derive(Debug)]
pub(super) struct HourHash {
    hour: i64,
    hasher: blake3::Hasher,
    rows: i64,
    /// Place and account of the last row.
    after: (i64, i64),
}

/// What a correction is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct CorrectionKey {
    pub(super) hour: i64,
    pub(super) place: i64,
    pub(super) account: i64,
    pub(super) received_ns: i64,
}

pub(super) fn closed_through(db: &Connection) -> rusqlite::Result<Option<i64>> {
    db.query_row("SELECT closed_through FROM meta", (), |row| row.get(0))
}

// === impl Closing ===

impl Closing {
    /// Goes on with a hash, or closes the next hour. Returns the last final hour when it changes.
    pub(super) fn step(
        &mut self,
        db: &mut Connection,
        terms: Terms,
    ) -> rusqlite::Result<Option<i64>> {
        if self.hashing.is_none() {
            self.hashing = unsealed(db)?;
        }
        if let Some(mut hashing) = self.hashing.take() {
            if hashing.step(db, ROWS)? {
                hashing.store(db)?;
            } else {
                self.hashing = Some(hashing);
            }
            return Ok(None);
        }
        if terms.now_ns.saturating_sub(self.looked_ns) < LOOK_EVERY_NS {
            return Ok(None);
        }
        let Some(hour) = next_hour(db)? else {
            self.looked_ns = terms.now_ns;
            return Ok(None);
        };
        let Some(behind) = terms.allow(db, hour)? else {
            self.looked_ns = terms.now_ns;
            return Ok(None);
        };
        close(db, (hour, behind), terms.now_ns)?;
        Ok(Some(hour))
    }
}

/// The next hour that has rows and is not final.
fn next_hour(db: &Connection) -> rusqlite::Result<Option<i64>> {
    let after = closed_through(db)?.unwrap_or(i64::MIN);
    db.prepare_cached("SELECT min(hour) FROM hour WHERE hour > ?1")?
        .query_row([after], |row| row.get(0))
}

fn close(db: &mut Connection, (hour, behind): (i64, i64), now_ns: i64) -> rusqlite::Result<()> {
    let transaction = db.transaction()?;
    transaction.execute(
        "INSERT INTO final (hour, rows, behind, closed_ns) VALUES (?1, 0, ?2, ?3)",
        (hour, behind, now_ns),
    )?;
    transaction.execute("UPDATE meta SET closed_through = ?1", [hour])?;
    transaction.commit()
}

/// The first final hour whose hash is not computed yet.
fn unsealed(db: &Connection) -> rusqlite::Result<Option<HourHash>> {
    let hour: Option<i64> = db
        .prepare_cached("SELECT min(hour) FROM final WHERE hash IS NULL")?
        .query_row((), |row| row.get(0))?;
    hour.map(|hour| HourHash::begin(db, hour)).transpose()
}

// === impl Terms ===

impl Terms {
    /// How many nodes are behind, where the hour may be closed.
    fn allow(self, db: &Connection, hour: i64) -> rusqlite::Result<Option<i64>> {
        let end_ns = hour.saturating_add(1).saturating_mul(HOUR_NS);
        let since = self.now_ns.saturating_sub(end_ns);
        if since < self.final_after_ns {
            return Ok(None);
        }
        let behind = db
            .prepare_cached(
                "SELECT count(DISTINCT p.node) FROM hour h JOIN place p ON p.id = h.place
                 WHERE h.hour = ?1
                 AND p.node NOT IN (SELECT node FROM place WHERE end_utc_ns >= ?2)",
            )?
            .query_row((hour, end_ns), |row| row.get(0))?;
        Ok((behind == 0 || since >= self.at_latest_ns).then_some(behind))
    }
}

// === impl HourHash ===

impl HourHash {
    /// Begins with the hash of the final hour before, so that no hour can be taken out.
    pub(super) fn begin(db: &Connection, hour: i64) -> rusqlite::Result<Self> {
        let before: Option<Option<Vec<u8>>> = db
            .prepare_cached("SELECT hash FROM final WHERE hour < ?1 ORDER BY hour DESC LIMIT 1")?
            .query_row([hour], |row| row.get(0))
            .optional()?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&before.flatten().unwrap_or_default());
        hasher.update(&hour.to_be_bytes());
        Ok(Self { hour, hasher, rows: 0, after: (i64::MIN, i64::MIN) })
    }

    /// The whole hash of an hour, and how many rows it has.
    #[cfg(test)]
    pub(super) fn of(db: &Connection, hour: i64) -> rusqlite::Result<([u8; 32], i64)> {
        let mut hash = Self::begin(db, hour)?;
        while !hash.step(db, ROWS)? {}
        Ok((hash.hasher.finalize().into(), hash.rows))
    }

    /// `true` = this was the last part. With the names of every row, since a number alone says little.
    fn step(&mut self, db: &Connection, most: u32) -> rusqlite::Result<bool> {
        let mut statement = db.prepare_cached(
            "SELECT h.place, h.account, h.amounts, n.cluster, n.name, p.gpu, p.mig,
                    a.kind, a.share, a.detail, a.holder_kind, a.holder,
                    a.tenant, a.namespace, a.pod, a.container
             FROM hour h LEFT JOIN place p ON p.id = h.place LEFT JOIN node n ON n.id = p.node
             LEFT JOIN account a ON a.id = h.account
             WHERE h.hour = ?1 AND (h.place, h.account) > (?2, ?3)
             ORDER BY h.place, h.account LIMIT ?4",
        )?;
        let mut rows = statement.query((self.hour, self.after.0, self.after.1, most))?;
        let mut taken = 0;
        while let Some(row) = rows.next()? {
            self.take(row)?;
            taken += 1;
        }
        self.rows += i64::from(taken);
        Ok(taken < most)
    }

    fn take(&mut self, row: &Row<'_>) -> rusqlite::Result<()> {
        self.after = (row.get(0)?, row.get(1)?);
        for column in 2..row.as_ref().column_count() {
            let value = row.get_ref(column)?;
            let bytes = value.as_bytes_or_null().unwrap_or_default().unwrap_or_default();
            let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            self.hasher.update(&length.to_be_bytes());
            self.hasher.update(bytes);
        }
        Ok(())
    }

    fn store(&self, db: &Connection) -> rusqlite::Result<()> {
        let hash: [u8; 32] = self.hasher.finalize().into();
        db.prepare_cached("UPDATE final SET hash = ?2, rows = ?3 WHERE hour = ?1")?
            .execute((self.hour, hash, self.rows))?;
        Ok(())
    }
}

pub(super) fn correction_hash(key: CorrectionKey, amounts: &[u8], reason: &str) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for number in [key.hour, key.place, key.account, key.received_ns] {
        hasher.update(&number.to_be_bytes());
    }
    hasher.update(reason.as_bytes());
    hasher.update(amounts);
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::{Closing, HourHash, Terms, closed_through};
    use crate::ledger::Applied;
    use crate::ledger::clock_map::HOUR_NS;
    use crate::ledger::fixtures::{Bench, NOW, SECOND, active, batch_of, free, hello_of, tile_of};
    use tempfile::tempdir;

    const HOUR: u64 = HOUR_NS.cast_unsigned();

    fn terms(hours: i64) -> Terms {
        let at_latest_ns = 100 * HOUR_NS;
        Terms { now_ns: NOW + hours * HOUR_NS, final_after_ns: 2 * HOUR_NS, at_latest_ns }
    }

    fn closed(bench: &mut Bench, terms: Terms) -> Option<i64> {
        let mut closing = Closing::default();
        for _ in 0..6 {
            let closed = closing.step(&mut bench.db, terms).unwrap();
            bench.memory.closed_through = closed.or(bench.memory.closed_through);
        }
        assert_eq!(closed_through(&bench.db).unwrap(), bench.memory.closed_through);
        bench.memory.closed_through.map(|it| it - NOW / HOUR_NS)
    }

    #[test]
    fn an_hour_is_final_when_every_node_has_passed_it() {
        let folder = tempdir().unwrap();
        let mut bench = Bench::open(folder.path());
        for name in ["a", "b"] {
            bench.hello(&hello_of(name));
            let tile = tile_of(name, name, 0, &[(active("ml"), HOUR)]);
            bench.batch(&batch_of(name, 1, &[tile]));
        }
        let later = |name: &str, seq: u64, ns| {
            batch_of(name, seq, &[tile_of(name, name, HOUR, &[(free(), ns)])])
        };
        assert_eq!(closed(&mut bench, terms(2)), None, "it is too early");
        assert_eq!(closed(&mut bench, terms(3)), Some(0), "both stand at its end");
        bench.batch(&later("a", 2, HOUR));
        bench.batch(&later("b", 2, SECOND));
        assert_eq!(closed(&mut bench, terms(50)), Some(0), "one is in the middle of the next");
        assert_eq!(closed(&mut bench, terms(102)), Some(1));
        let behind: Vec<(i64, i64)> = bench
            .db
            .prepare("SELECT behind, rows FROM final ORDER BY hour")
            .unwrap()
            .query_map((), |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        assert_eq!(behind, [(0, 4), (1, 4)]);
    }

    #[test]
    fn what_comes_for_a_final_hour_is_a_correction() {
        let folder = tempdir().unwrap();
        let mut bench = Bench::open(folder.path());
        bench.hello(&hello_of("a"));
        bench.batch(&batch_of("a", 1, &[tile_of("a", "g", 0, &[(active("ml"), 5 * SECOND)])]));
        assert_eq!(closed(&mut bench, terms(200)), Some(0));
        let hour = NOW / HOUR_NS;
        let sealed = HourHash::of(&bench.db, hour).unwrap();
        let late = tile_of("a", "g", 5 * SECOND, &[(active("ml"), 2 * SECOND)]);
        assert_eq!(bench.batch(&batch_of("a", 2, &[late])), Applied::Through(2));
        assert_eq!(HourHash::of(&bench.db, hour).unwrap(), sealed, "its rows are as they were");
        assert_eq!(bench.usage().tenants["ml"].active().ns, u128::from(7 * SECOND));
        assert_eq!(bench.usage().wall.ns, u128::from(7 * SECOND));
        let stored: Vec<u8> =
            bench.db.query_row("SELECT hash FROM final", (), |row| row.get(0)).unwrap();
        assert_eq!(stored, sealed.0);
    }
}
