//! What one transaction adds, gathered so that every row is read and written once.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension as _};

use crate::ledger::accounts::{add, decode, encode};
use crate::ledger::closing::{CorrectionKey, LATE, correction_hash};
use crate::ledger::names::Names;
use crate::ledger::posting::{Account, Posting};
use crate::ledger::totals::{InstanceSeries, Series};
use crate::ledger::view::View;

/// `total.place` of what is not counted per instance.
const NO_PLACE: i64 = 0;

#[derive(Debug, Default)]
pub(super) struct Sums {
    closed_through: Option<i64>,
    /// By hour, place and account.
    hours: BTreeMap<(i64, i64, i64), Vec<u128>>,
    /// Likewise, of hours that are final.
    late: BTreeMap<(i64, i64, i64), Vec<u128>>,
    /// By place and account.
    totals: BTreeMap<(i64, i64), (Series, Vec<u128>)>,
}

/// Where a record's postings go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    pub(super) place: i64,
    pub(super) instance: &'a InstanceSeries,
    pub(super) now_s: i64,
}

// === impl Sums ===

impl Sums {
    /// Hours up to `closed_through` are final.
    pub(super) fn new(closed_through: Option<i64>) -> Self {
        Self { closed_through, ..Self::default() }
    }

    pub(super) fn post(
        &mut self,
        db: &Connection,
        (names, view): (&mut Names, &mut View),
        target: Target<'_>,
        postings: Vec<Posting>,
    ) -> rusqlite::Result<()> {
        for posting in postings {
            let account = names.account(db, &posting.account)?;
            let closed = Some(posting.hour) <= self.closed_through;
            let hours = if closed { &mut self.late } else { &mut self.hours };
            add(hours.entry((posting.hour, target.place, account)).or_default(), &posting.amounts);

            let (account, series) = view.total_of(&posting.account, target.instance, target.now_s);
            let owned = matches!(account, Account::Tenant { .. } | Account::Cuda { .. });
            let place = if owned { NO_PLACE } else { target.place };
            let account = names.account(db, &account)?;
            let total = self.totals.entry((place, account));
            add(&mut total.or_insert_with(|| (series, Vec::new())).1, &posting.amounts);

            if let Some(series) = view.device_of(&posting.account, target.instance, target.now_s) {
                let account = names.account(db, &Account::CudaDevice)?;
                let total = self.totals.entry((target.place, account));
                add(&mut total.or_insert_with(|| (series, Vec::new())).1, &posting.amounts);
            }
        }
        Ok(())
    }

    /// Writes everything, and returns the running totals as they are after it.
    pub(super) fn flush(
        self,
        db: &Connection,
        now_ns: i64,
    ) -> rusqlite::Result<Vec<(Series, Vec<u128>)>> {
        let now_s = now_ns.div_euclid(1_000_000_000);
        correct(db, self.late, now_ns)?;
        let mut read = db.prepare_cached(
            "SELECT amounts FROM hour WHERE hour = ?1 AND place = ?2 AND account = ?3",
        )?;
        let mut write = db.prepare_cached(
            "INSERT INTO hour (hour, place, account, amounts) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (hour, place, account) DO UPDATE SET amounts = excluded.amounts",
        )?;
        for ((hour, place, account), mut amounts) in self.hours {
            let key = (hour, place, account);
            add(&mut amounts, &stored(read.query_row(key, amounts_of).optional()?));
            write.execute((hour, place, account, encode(&amounts)))?;
        }
        let mut read =
            db.prepare_cached("SELECT amounts FROM total WHERE place = ?1 AND account = ?2")?;
        let mut write = db.prepare_cached(
            "INSERT INTO total (place, account, amounts, posted_s) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (place, account) DO UPDATE
             SET amounts = excluded.amounts, posted_s = excluded.posted_s",
        )?;
        let mut after = Vec::with_capacity(self.totals.len());
        for ((place, account), (series, mut amounts)) in self.totals {
            let before = read.query_row((place, account), amounts_of).optional()?;
            add(&mut amounts, &stored(before));
            write.execute((place, account, encode(&amounts), now_s))?;
            after.push((series, amounts));
        }
        Ok(after)
    }
}

/// Final rows never change: what comes late is written beside them.
fn correct(
    db: &Connection,
    late: BTreeMap<(i64, i64, i64), Vec<u128>>,
    now_ns: i64,
) -> rusqlite::Result<()> {
    for ((hour, place, account), amounts) in late {
        let amounts = encode(&amounts);
        let key = CorrectionKey { hour, place, account, received_ns: now_ns };
        db.prepare_cached(
            "INSERT INTO correction (hour, place, account, amounts, reason, received_ns, hash)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute((
            hour,
            place,
            account,
            &amounts,
            LATE,
            now_ns,
            correction_hash(key, &amounts, LATE),
        ))?;
    }
    Ok(())
}

fn stored(amounts: Option<Vec<u128>>) -> Vec<u128> {
    amounts.unwrap_or_default()
}

/// The first column, as amounts.
pub(super) fn amounts_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<Vec<u128>> {
    decode(row.get_ref(0)?.as_blob()?).ok_or_else(|| {
        rusqlite::Error::FromSqlConversionFailure(
            0,
            rusqlite::types::Type::Blob,
            "amounts are not a multiple of 16 bytes".into(),
        )
    })
}
