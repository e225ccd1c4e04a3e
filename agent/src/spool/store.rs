//! The spool's contents: records waiting for the collector, and where each instance stands.
//!
//! Every function is one transaction. Used by one thread only; nothing here waits or retries.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use crate::model::ids::{DeviceId, InstanceId};
use crate::model::units::BootNs;
use crate::model::usage::{CudaBaseline, Record};
use crate::record::{self, RecordError, Stamp};
use crate::spool::baseline;
use crate::spool::coalesce::{Depth, coalesce};
use crate::spool::rows::{
    Row, Unsigned, begin, count_unsealed, delete_through, last_sealed_id, oldest, read_meta, rows,
    seal, set_acked, set_baseline, set_position, trim,
};
use crate::spool::schema::{self, Place, StoreError};
use crate::spool::{Batch, BatchLimits, SpoolId};

/// Records that are kept after the collector acknowledged them, to refill one that lost its ledger:
/// about a day of eight devices. Less where the database is half full.
const RETAINED: u64 = 100_000;
/// Records that are merged in one transaction: a bound for memory and for the log.
const MERGED: u32 = 8_192;

/// An open spool database, with what must not be read again for every question.
#[derive(Debug)]
pub(super) struct Store {
    connection: Connection,
    place: Place,
    pub(super) meta: Meta,
    /// Rows that are not sealed.
    unsealed: u64,
    /// Pages in use after merging was last tried: merging again gains nothing before it grew.
    merged_at: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) spool_id: SpoolId,
    pub(super) sealed_through: u64,
    pub(super) acked_through: u64,
    pub(super) ledger_id: Vec<u8>,
    /// Appends that were committed.
    pub(super) appends: u64,
}

// === impl Store ===

impl Store {
    pub(super) fn open(place: &Place) -> Result<Self, StoreError> {
        let connection = schema::open(place)?;
        let meta = read_meta(&connection)?;
        let unsealed = count_unsealed(&connection)?;
        Ok(Self { connection, place: place.clone(), meta, unsealed, merged_at: 0 })
    }

    /// Moves the damaged database away; the next `open` makes a new one.
    pub(super) fn set_aside(self) -> Result<PathBuf, StoreError> {
        let place = self.place.clone();
        drop(self);
        place.set_aside()
    }

    /// Records that no collector has acknowledged.
    pub(super) fn unsent(&self) -> u64 {
        self.unsealed + self.meta.sealed_through.saturating_sub(self.meta.acked_through)
    }

    pub(super) fn used_bytes(&self) -> Result<u64, StoreError> {
        Ok(schema::bytes(schema::used_pages(&self.connection)?))
    }

    /// Where the tiles of each instance ended in this boot.
    pub(super) fn positions(
        &self,
        boot_id: &str,
    ) -> Result<BTreeMap<InstanceId, BootNs>, StoreError> {
        let mut query = self
            .connection
            .prepare("SELECT gpu_uuid, mig_uuid, end_ns FROM position WHERE boot_id = ?1")?;
        let rows = query.query_map([boot_id], |row| {
            let (device, mig): (String, String) = (row.get(0)?, row.get(1)?);
            let mig = Some(mig).filter(|it| !it.is_empty()).map(Into::into);
            let id = InstanceId { device: DeviceId(device.into()), mig };
            Ok((id, BootNs(row.get::<_, Unsigned>(2)?.0)))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// What of the kernel's counts is in records of this boot.
    pub(super) fn baseline(&self, boot_id: &str) -> Result<Option<CudaBaseline>, StoreError> {
        let payload: Option<Vec<u8>> = self
            .connection
            .query_row("SELECT payload FROM cuda_baseline WHERE boot_id = ?1", [boot_id], |row| {
                row.get(0)
            })
            .optional()?;
        let decoded = payload.map(|it| baseline::decode(&it)).transpose();
        decoded.map_err(|error| StoreError::Damaged(error.to_string()))
    }

    /// Stores records that were measured, and with them what they account for; makes room first
    /// where the cap is near.
    pub(super) fn append(
        &mut self,
        records: &[(Record, Stamp)],
        baseline: Option<(&str, &CudaBaseline)>,
    ) -> Result<(), StoreError> {
        let used = schema::used_pages(&self.connection)?;
        self.merged_at = self.merged_at.min(used);
        let grown = used > self.merged_at + self.place.pages() / 16;
        if grown && used > self.place.pages() / 4 * 3 {
            self.make_room()?;
        }
        match self.insert(records, baseline) {
            Err(StoreError::Full(_)) if grown => {
                self.make_room()?;
                self.insert(records, baseline)
            }
            other => other,
        }
    }

    /// The next records from `from` on, sealed. Those that have no number yet get it here, and are
    /// synced with it before they are returned. `None` = nothing there yet. Begins later than `from`
    /// where records that were acknowledged are gone.
    pub(super) fn next_batch(
        &mut self,
        from: u64,
        limits: BatchLimits,
    ) -> Result<Option<Batch>, StoreError> {
        let sealed = from <= self.meta.sealed_through;
        let rows = if sealed { self.sealed_rows(from, limits)? } else { self.seal(limits)? };
        let Some(first_seq) = rows.first().and_then(|it| it.seq) else { return Ok(None) };
        let records = rows.into_iter().map(|it| it.sealed).collect();
        Ok(Some(Batch { spool_id: self.meta.spool_id, first_seq, records }))
    }

    /// The collector has everything up to `through`.
    pub(super) fn acked(&mut self, through: u64, ledger_id: &[u8]) -> Result<(), StoreError> {
        let through = through.min(self.meta.sealed_through).max(self.meta.acked_through);
        let half_full = schema::used_pages(&self.connection)? > self.place.pages() / 2;
        let transaction = begin(&mut self.connection)?;
        set_acked(&transaction, through, ledger_id)?;
        delete_through(&transaction, through.saturating_sub(RETAINED))?;
        if half_full {
            trim(&transaction, through)?;
        }
        transaction.commit()?;
        self.meta.acked_through = through;
        self.meta.ledger_id = ledger_id.to_vec();
        Ok(())
    }

    /// The collector's ledger went back to `cursor`: what comes after it counts as unsent again.
    /// Gives the records that are no longer here to be sent again.
    pub(super) fn went_back(&mut self, cursor: u64, ledger_id: &[u8]) -> Result<u64, StoreError> {
        let transaction = begin(&mut self.connection)?;
        set_acked(&transaction, cursor, ledger_id)?;
        let oldest = oldest(&transaction)?;
        transaction.commit()?;
        self.meta.acked_through = cursor;
        self.meta.ledger_id = ledger_id.to_vec();
        let oldest = oldest.unwrap_or(self.meta.sealed_through + 1);
        Ok(oldest.saturating_sub(cursor + 1))
    }

    /// Begins a new sequence with the records after `after`: a collector that takes this spool for
    /// another one, or has lost what is no longer here, begins with it at 1.
    pub(super) fn renumber(&mut self, after: u64) -> Result<(), StoreError> {
        let transaction = begin(&mut self.connection)?;
        delete_through(&transaction, after)?;
        transaction.execute("UPDATE record SET seq = NULL WHERE seq IS NOT NULL", [])?;
        transaction.execute(
            "UPDATE meta SET spool_id = randomblob(16), sealed_through = 0, acked_through = 0",
            [],
        )?;
        transaction.commit()?;
        self.meta = read_meta(&self.connection)?;
        self.unsealed = count_unsealed(&self.connection)?;
        Ok(())
    }

    fn insert(
        &mut self,
        records: &[(Record, Stamp)],
        baseline: Option<(&str, &CudaBaseline)>,
    ) -> Result<(), StoreError> {
        let transaction = begin(&mut self.connection)?;
        {
            let mut insert =
                transaction.prepare_cached("INSERT INTO record (payload, hash) VALUES (?1, ?2)")?;
            for (record, stamp) in records {
                let sealed = seal(record, stamp);
                insert.execute(params![sealed.payload, sealed.hash])?;
                if let Record::Tile(tile) = record {
                    set_position(&transaction, tile, &stamp.boot_id)?;
                }
            }
        }
        if let Some((boot_id, it)) = baseline {
            set_baseline(&transaction, boot_id, &baseline::encode(it))?;
        }
        let appends = self.meta.appends + 1;
        transaction.execute("UPDATE meta SET appends = ?1", [Unsigned(appends)])?;
        transaction.commit()?;
        self.meta.appends = appends;
        self.unsealed += records.len() as u64;
        Ok(())
    }

    fn sealed_rows(&self, from: u64, limits: BatchLimits) -> Result<Vec<Row>, StoreError> {
        let rows = rows(
            &self.connection,
            "SELECT id, seq, payload, hash FROM record WHERE seq >= ?1 ORDER BY seq LIMIT ?2",
            i64::try_from(from).unwrap_or(i64::MAX),
            limits,
        )?;
        // Only what was acknowledged may be gone.
        let first = rows.first().and_then(|it| it.seq).unwrap_or(self.meta.sealed_through + 1);
        let first = if first <= self.meta.acked_through + 1 { first.max(from) } else { from };
        for (expected, row) in (first..).zip(&rows) {
            if row.seq != Some(expected) {
                return Err(StoreError::Damaged(format!("record {expected} is missing")));
            }
        }
        if rows.is_empty() && first == from {
            return Err(StoreError::Damaged(format!("record {from} is missing")));
        }
        Ok(rows)
    }

    /// Gives numbers to the oldest records that have none.
    fn seal(&mut self, limits: BatchLimits) -> Result<Vec<Row>, StoreError> {
        let last = last_sealed_id(&self.connection)?;
        let mut rows = rows(
            &self.connection,
            "SELECT id, seq, payload, hash FROM record WHERE id > ?1 ORDER BY id LIMIT ?2",
            last,
            limits,
        )?;
        if rows.is_empty() {
            return Ok(rows);
        }
        let transaction = begin(&mut self.connection)?;
        let mut through = self.meta.sealed_through;
        {
            let mut number =
                transaction.prepare_cached("UPDATE record SET seq = ?2 WHERE id = ?1")?;
            for row in &mut rows {
                through += 1;
                row.seq = Some(through);
                number.execute(params![row.id, Unsigned(through)])?;
            }
        }
        transaction.execute("UPDATE meta SET sealed_through = ?1", [Unsigned(through)])?;
        transaction.commit()?;
        self.meta.sealed_through = through;
        self.unsealed = self.unsealed.saturating_sub(rows.len() as u64);
        Ok(rows)
    }

    /// Gives up what was kept for a refill, then merges what was not sent.
    fn make_room(&mut self) -> Result<(), StoreError> {
        let transaction = begin(&mut self.connection)?;
        delete_through(&transaction, self.meta.acked_through)?;
        transaction.commit()?;
        for depth in [Depth::SameHolders, Depth::AnyHolders] {
            if schema::used_pages(&self.connection)? > self.place.pages() / 2 {
                self.merge(depth)?;
            }
        }
        self.merged_at = schema::used_pages(&self.connection)?;
        self.unsealed = count_unsealed(&self.connection)?;
        Ok(())
    }

    fn merge(&mut self, depth: Depth) -> Result<(), StoreError> {
        let mut after = last_sealed_id(&self.connection)?;
        let limits = BatchLimits { records: MERGED, bytes: u64::MAX };
        loop {
            let rows = rows(
                &self.connection,
                "SELECT id, seq, payload, hash FROM record WHERE id > ?1 ORDER BY id LIMIT ?2",
                after,
                limits,
            )?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.id;
            let transaction = begin(&mut self.connection)?;
            merge_rows(&transaction, rows, depth)?;
            transaction.commit()?;
        }
    }
}

fn merge_rows(
    transaction: &Transaction<'_>,
    rows: Vec<Row>,
    depth: Depth,
) -> Result<(), StoreError> {
    let mut records = Vec::with_capacity(rows.len());
    for row in rows {
        match record::decode(&row.sealed.payload) {
            Ok((record, stamp)) => records.push((row.id, record, stamp)),
            Err(RecordError::Malformed(error)) => {
                return Err(StoreError::Damaged(error.to_string()));
            }
            // Another version of the agent wrote it: what it says is sent as it is.
            Err(RecordError::Missing(_) | RecordError::Unknown(..)) => {}
        }
    }
    let mut delete = transaction.prepare_cached("DELETE FROM record WHERE id = ?1")?;
    let mut update =
        transaction.prepare_cached("UPDATE record SET payload = ?2, hash = ?3 WHERE id = ?1")?;
    for merged in coalesce(records, depth).iter().filter(|it| !it.absorbed.is_empty()) {
        for id in &merged.absorbed {
            delete.execute([id])?;
        }
        let sealed = seal(&merged.record, &merged.stamp);
        update.execute(params![merged.id, sealed.payload, sealed.hash])?;
    }
    Ok(())
}
