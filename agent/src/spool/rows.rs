//! Single statements on the spool's tables, and what SQLite's types do not say.

use proto::telemetry::v1::SealedRecord;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, Transaction, TransactionBehavior, params};

use crate::model::usage::{Record, Tile};
use crate::record::{self, Stamp};
use crate::spool::schema::StoreError;
use crate::spool::store::Meta;
use crate::spool::{Batch, BatchLimits, SpoolId};

/// Acknowledged records that make room at one time.
const TRIMMED: u64 = 8_192;

/// Sequence numbers and times in SQLite, whose integers are signed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unsigned(pub(super) u64);

/// A row as it is stored.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) id: i64,
    pub(super) seq: Option<u64>,
    pub(super) sealed: SealedRecord,
}

impl ToSql for Unsigned {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        i64::try_from(self.0)
            .map(ToSqlOutput::from)
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
    }
}

impl FromSql for Unsigned {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let value = value.as_i64()?;
        u64::try_from(value).map(Self).map_err(|_negative| FromSqlError::OutOfRange(value))
    }
}

pub(super) fn seal(record: &Record, stamp: &Stamp) -> SealedRecord {
    let payload = record::encode(record, stamp);
    let hash = blake3::hash(&payload).as_bytes().to_vec();
    SealedRecord { payload, hash }
}

pub(super) fn begin(connection: &mut Connection) -> Result<Transaction<'_>, StoreError> {
    Ok(connection.transaction_with_behavior(TransactionBehavior::Immediate)?)
}

/// Reads rows up to the limits, at least one; each is compared with its hash, because SQLite does not
/// notice a flipped bit.
pub(super) fn rows(
    connection: &Connection,
    query: &str,
    from: i64,
    limits: BatchLimits,
) -> Result<Vec<Row>, StoreError> {
    let mut statement = connection.prepare_cached(query)?;
    let mut cursor = statement.query(params![from, limits.records])?;
    let mut rows = Vec::new();
    let mut bytes = 0_u64;
    while let Some(row) = cursor.next()? {
        let sealed = SealedRecord { payload: row.get(2)?, hash: row.get(3)? };
        let seq: Option<Unsigned> = row.get(1)?;
        let row = Row { id: row.get(0)?, seq: seq.map(|it| it.0), sealed };
        if blake3::hash(&row.sealed.payload).as_bytes()[..] != row.sealed.hash[..] {
            return Err(StoreError::Damaged(format!("row {} does not have its hash", row.id)));
        }
        bytes += Batch::wire_bytes(&row.sealed);
        if bytes > limits.bytes && !rows.is_empty() {
            break;
        }
        rows.push(row);
    }
    Ok(rows)
}

pub(super) fn read_meta(connection: &Connection) -> Result<Meta, StoreError> {
    let meta = connection.query_row(
        "SELECT spool_id, sealed_through, acked_through, ledger_id, appends FROM meta",
        [],
        |row| {
            Ok(Meta {
                spool_id: SpoolId(row.get(0)?),
                sealed_through: row.get::<_, Unsigned>(1)?.0,
                acked_through: row.get::<_, Unsigned>(2)?.0,
                ledger_id: row.get(3)?,
                appends: row.get::<_, Unsigned>(4)?.0,
            })
        },
    );
    match meta {
        Err(rusqlite::Error::QueryReturnedNoRows) => {
            Err(StoreError::Damaged("the table meta is empty".to_owned()))
        }
        other => Ok(other?),
    }
}

pub(super) fn count_unsealed(connection: &Connection) -> Result<u64, StoreError> {
    let last = last_sealed_id(connection)?;
    let count = "SELECT count(*) FROM record WHERE id > ?1";
    Ok(connection.query_row(count, [last], |row| row.get::<_, Unsigned>(0))?.0)
}

/// Rows are sealed in the order of their ids: every row after this one has no number.
pub(super) fn last_sealed_id(connection: &Connection) -> Result<i64, StoreError> {
    let last = "SELECT coalesce((SELECT id FROM record WHERE seq IS NOT NULL \
                ORDER BY seq DESC LIMIT 1), 0)";
    Ok(connection.query_row(last, [], |row| row.get(0))?)
}

pub(super) fn set_acked(
    transaction: &Transaction<'_>,
    through: u64,
    ledger_id: &[u8],
) -> Result<(), StoreError> {
    let update = "UPDATE meta SET acked_through = ?1, ledger_id = ?2";
    transaction.execute(update, params![Unsigned(through), ledger_id])?;
    Ok(())
}

pub(super) fn delete_through(transaction: &Transaction<'_>, seq: u64) -> Result<(), StoreError> {
    transaction.prepare_cached("DELETE FROM record WHERE seq <= ?1")?.execute([Unsigned(seq)])?;
    Ok(())
}

/// Deletes the oldest of what was acknowledged.
pub(super) fn trim(transaction: &Transaction<'_>, acked: u64) -> Result<(), StoreError> {
    let Some(oldest) = oldest(transaction)? else { return Ok(()) };
    delete_through(transaction, acked.min(oldest + TRIMMED))
}

pub(super) fn set_position(
    transaction: &Transaction<'_>,
    tile: &Tile,
    boot_id: &str,
) -> Result<(), StoreError> {
    let mut upsert = transaction.prepare_cached(
        "INSERT INTO position (gpu_uuid, mig_uuid, boot_id, end_ns) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT DO UPDATE SET boot_id = excluded.boot_id, end_ns = excluded.end_ns",
    )?;
    let mig = tile.id.mig.as_deref().unwrap_or_default();
    upsert.execute(params![&*tile.id.device.0, mig, boot_id, Unsigned(tile.end.0)])?;
    Ok(())
}

/// One for all boots: an older one says nothing any more.
pub(super) fn set_baseline(
    transaction: &Transaction<'_>,
    boot_id: &str,
    payload: &[u8],
) -> Result<(), StoreError> {
    let mut replace = transaction.prepare_cached(
        "INSERT OR REPLACE INTO cuda_baseline (only, boot_id, payload) VALUES (1, ?1, ?2)",
    )?;
    replace.execute(params![boot_id, payload])?;
    Ok(())
}

/// The smallest number in the table; `None` = nothing is sealed.
pub(super) fn oldest(connection: &Connection) -> Result<Option<u64>, StoreError> {
    let oldest = "SELECT min(seq) FROM record";
    let oldest = connection.query_row(oldest, [], |row| row.get::<_, Option<Unsigned>>(0))?;
    Ok(oldest.map(|it| it.0))
}
