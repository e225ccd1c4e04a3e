//! One transaction: Hellos and batches against the open database.
//!
//! Everything that a record changes happens here, between BEGIN and COMMIT: its row, the cursor, the
//! sums, the running totals, the end of its instance's last tile. The writer commits, answers, and only
//! then shows the new totals.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension as _};

use crate::ledger::clock_map::{ClockMap, HOUR_NS, HourSpan, unmet};
use crate::ledger::dating::{Before, Dated};
use crate::ledger::decide::{self, Hole, Known, Moment, Quarantine};
use crate::ledger::memory::{Memory, Outcomes};
use crate::ledger::names::{Names, Source, Spool};
use crate::ledger::places::{LastTile, Place};
use crate::ledger::placing::Placed;
use crate::ledger::posting::Posting;
use crate::ledger::sums::{Sums, Target};
use crate::ledger::totals::{InstanceSeries, Series};
use crate::ledger::{Applied, Batch, Hello, Sealed, Welcome};
use crate::model::ids::{InstanceId, NodeKey};
use crate::model::record::{CudaActivity, Record, RecordKind, Tile};

/// Hours that the records of one batch may post to. A fleet that was blind for a year stays far below;
/// it bounds what a hostile node can make the writer do.
const MAX_BATCH_HOURS: usize = 200_000;

/// The open transaction.
#[derive(Debug)]
pub(super) struct Transaction<'a> {
    db: &'a Connection,
    memory: &'a mut Memory,
    sums: Sums,
    now_ns: i64,
    pub(super) outcomes: Outcomes,
}

/// A node in the middle of its batch.
struct Sender<'a> {
    node: i64,
    key: Arc<NodeKey>,
    batch: &'a Batch,
    hours_left: usize,
}

// === impl Transaction ===

impl<'a> Transaction<'a> {
    pub(super) fn new(db: &'a Connection, memory: &'a mut Memory, now_ns: i64) -> Self {
        let sums = Sums::new(memory.closed_through);
        Self { db, memory, sums, now_ns, outcomes: Outcomes::default() }
    }

    /// Writes the sums; to be called once, before COMMIT. Returns the totals to show after it.
    pub(super) fn finish(&mut self) -> rusqlite::Result<Vec<(Series, Vec<u128>)>> {
        std::mem::take(&mut self.sums).flush(self.db, self.now_ns)
    }

    /// Fences every earlier stream of the node. `None` = there are too many nodes.
    pub(super) fn hello(&mut self, hello: &Hello) -> rusqlite::Result<Option<Welcome>> {
        let (db, names) = (self.db, &mut self.memory.names);
        if names.node(db, &hello.node)?.is_none() {
            let count: i64 = db.query_row("SELECT count(*) FROM node", (), |row| row.get(0))?;
            if usize::try_from(count).unwrap_or(usize::MAX) >= self.memory.max_nodes {
                return Ok(None);
            }
        }
        let node = names.next_epoch(db, &hello.node)?;
        let spool = names.spool(db, node.id, hello.spool)?;
        names.read_clock(db, (node.id, &hello.boot_id), hello.clock, Source::Collector)?;
        let same_ledger = hello.ledger_seen == Some(self.memory.ledger_id);
        Ok(Some(Welcome {
            node: node.id,
            ledger_id: self.memory.ledger_id,
            epoch: node.epoch,
            cursor: spool.through,
            regressed: same_ledger && hello.acked_through > spool.through,
        }))
    }

    pub(super) fn batch(&mut self, batch: &Batch) -> rusqlite::Result<Applied> {
        let node = match self.memory.names.node(self.db, &batch.node)? {
            Some(node) if node.epoch == batch.epoch => node.id,
            other => return Ok(Applied::StaleEpoch { newest: other.map_or(0, |it| it.epoch) }),
        };
        let spool = self.memory.names.spool(self.db, node, batch.spool)?;
        let next = spool.through + 1;
        let known = next.saturating_sub(batch.first_seq).min(length(&batch.records));
        let (repeated, fresh) =
            batch.records.split_at(usize::try_from(known).unwrap_or(usize::MAX));
        if let Some(reuse) = self.reused(spool, batch.first_seq, repeated)? {
            return Ok(reuse);
        }
        self.outcomes.duplicate += known;
        if fresh.is_empty() {
            return Ok(Applied::Through(spool.through));
        }
        if batch.first_seq > next {
            if !batch.accept_gap {
                return Ok(Applied::Resume { next });
            }
            self.gap(spool, batch.first_seq - 1)?;
        }
        let key = Arc::new(batch.node.clone());
        let mut sender = Sender { node, key, batch, hours_left: MAX_BATCH_HOURS };
        let first = batch.first_seq + known;
        for (seq, sealed) in (first..).zip(fresh) {
            self.record(&mut sender, (spool, seq), sealed)?;
        }
        let through = first + length(fresh) - 1;
        self.memory.names.advance(self.db, (node, batch.spool), Spool { through, ..spool })?;
        Ok(Applied::Through(through))
    }

    /// A number that comes again must bring what it brought the first time, as long as that is kept.
    fn reused(
        &self,
        spool: Spool,
        first_seq: u64,
        repeated: &[Sealed],
    ) -> rusqlite::Result<Option<Applied>> {
        let mut statement = self
            .db
            .prepare_cached("SELECT hash, received_ns FROM record WHERE spool = ?1 AND seq = ?2")?;
        for (seq, sealed) in (first_seq..).zip(repeated) {
            let first: Option<([u8; 32], i64)> = statement
                .query_row((spool.id, seq.cast_signed()), |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            if let Some((hash, first_received_ns)) = first
                && hash != sealed.hash
            {
                return Ok(Some(Applied::SequenceReuse { seq, first_received_ns }));
            }
        }
        Ok(None)
    }

    fn gap(&mut self, spool: Spool, last: u64) -> rusqlite::Result<()> {
        self.outcomes.gaps += 1;
        self.db
            .prepare_cached(
                "INSERT INTO gap (spool, first, last, received_ns) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute((
                spool.id,
                (spool.through + 1).cast_signed(),
                last.cast_signed(),
                self.now_ns,
            ))?;
        Ok(())
    }

    fn record(
        &mut self,
        sender: &mut Sender<'_>,
        (spool, seq): (Spool, u64),
        sealed: &Sealed,
    ) -> rusqlite::Result<()> {
        let outcome = match &sealed.content {
            Ok(record) => self.content(sender, record)?,
            Err(reason) => Err(*reason),
        };
        let (reason, dated) = match outcome {
            Ok(dated) => {
                self.outcomes.applied += 1;
                ("", Some(dated.encode()))
            }
            Err(quarantine) => {
                *self.outcomes.quarantined.entry(quarantine.as_str()).or_default() += 1;
                (quarantine.as_str(), None)
            }
        };
        self.db
            .prepare_cached(
                "INSERT INTO record (spool, seq, hash, reason, payload, received_ns, dated)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute((
                spool.id,
                seq.cast_signed(),
                sealed.hash,
                reason,
                &sealed.payload,
                self.now_ns,
                dated,
            ))?;
        Ok(())
    }

    fn content(
        &mut self,
        sender: &mut Sender<'_>,
        record: &Record,
    ) -> rusqlite::Result<Result<Dated, Quarantine>> {
        match &record.kind {
            RecordKind::Tile(tile) => self.tile(sender, record, tile),
            RecordKind::Cuda(activity) => self.cuda(sender, record, activity),
        }
    }

    // --- tiles ---

    fn tile(
        &mut self,
        sender: &mut Sender<'_>,
        record: &Record,
        tile: &Tile,
    ) -> rusqlite::Result<Result<Dated, Quarantine>> {
        let (db, names) = (self.db, &mut self.memory.names);
        let gpu = &tile.instance.gpu_uuid;
        let owner = names.owner(db, gpu)?;
        let Some(place) = names.place(db, (sender.node, &tile.instance), self.now_ns)? else {
            return Ok(Err(Quarantine::TooManyInstances));
        };
        let boot = names.boot(db, sender.node, &record.boot_id)?.id;
        let known = Names::known(db, &place, boot)?;
        let moment = self.moment(sender, record, owner, gpu);
        let hole = match decide::tile(tile, known, moment) {
            Ok(hole) => hole,
            Err(quarantine) => return Ok(Err(quarantine)),
        };
        let known_end = place.last.map(|it| it.end_utc_ns);
        let map = self.map(sender, record, tile.end_ns, known_end)?;
        let was_elsewhere = owner.is_some_and(|it| it != sender.node)
            || self.cut_otherwise(sender.node, &tile.instance, (known, hole), place)?;
        let placed = Placed { tile, place, map, was_elsewhere };
        let dated = match placed.dated(known, hole, &mut sender.hours_left) {
            Ok(dated) => dated,
            Err(quarantine) => return Ok(Err(quarantine)),
        };
        if let (Before::Seam, Some(last)) = (&dated.before, place.last) {
            let ends = (last.end_utc_ns, placed.map.utc_ns(tile.start_ns));
            Names::seam(db, place.id, ends)?;
        }
        if owner != Some(sender.node) {
            self.memory.names.set_owner(db, gpu, sender.node)?;
        }
        self.post(sender, place.id, &tile.instance, dated.postings(record))?;
        let end_utc_ns = placed.map.utc_ns(tile.end_ns);
        let last = LastTile { boot, end_ns: tile.end_ns, end_utc_ns };
        self.memory.names.extend(db, (sender.node, &tile.instance), place, last)?;
        Ok(Ok(dated))
    }

    /// Only asked where there is a hole: it costs a query.
    fn cut_otherwise(
        &self,
        node: i64,
        instance: &InstanceId,
        (known, hole): (Known, Hole),
        place: Place,
    ) -> rusqlite::Result<bool> {
        let contiguous = hole.start_ns == hole.end_ns && known != Known::NewBoot;
        match place.last {
            Some(last) if !contiguous => {
                Names::cut_otherwise(self.db, (node, instance), last.end_utc_ns)
            }
            _ => Ok(false),
        }
    }

    fn moment(
        &self,
        sender: &Sender<'_>,
        record: &Record,
        owner: Option<i64>,
        gpu: &Arc<str>,
    ) -> Moment {
        let batch = sender.batch;
        let owner = owner.filter(|it| *it != sender.node);
        Moment {
            boot_now_ns: (record.boot_id == batch.boot_id).then_some(batch.boot_now_ns),
            foreign: owner
                .and_then(|it| self.memory.connected.get(&it))
                .is_some_and(|it| it.devices.contains(gpu)),
        }
    }

    /// The clock map of the record's boot. A boot that no Hello named is dated by its node's clock.
    fn map(
        &mut self,
        sender: &Sender<'_>,
        record: &Record,
        end_ns: u64,
        known_end_utc_ns: Option<i64>,
    ) -> rusqlite::Result<ClockMap> {
        let (db, names) = (self.db, &mut self.memory.names);
        let boot = (sender.node, &record.boot_id);
        if names.boot(db, boot.0, boot.1)?.map.is_none() {
            let pair = unmet(end_ns, record.node_real_ns, known_end_utc_ns, self.now_ns);
            names.read_clock(db, boot, pair, Source::Node)?;
        }
        let map = names.boot(db, boot.0, boot.1)?.map.clone();
        Ok(map.expect("the map was made above"))
    }

    fn post(
        &mut self,
        sender: &Sender<'_>,
        place: i64,
        instance: &InstanceId,
        postings: Vec<Posting>,
    ) -> rusqlite::Result<()> {
        let instance = InstanceSeries { node: Arc::clone(&sender.key), instance: instance.clone() };
        let target = Target { place, instance: &instance, now_s: seconds(self.now_ns) };
        let names_and_view = (&mut self.memory.names, &mut self.memory.view);
        self.sums.post(self.db, names_and_view, target, postings)
    }

    // --- CUDA activity ---

    fn cuda(
        &mut self,
        sender: &mut Sender<'_>,
        record: &Record,
        activity: &CudaActivity,
    ) -> rusqlite::Result<Result<Dated, Quarantine>> {
        let gpu = activity.gpu_uuid.clone().unwrap_or_default();
        let owner = self.memory.names.owner(self.db, &gpu)?;
        let moment = self.moment(sender, record, owner, &gpu);
        if let Err(quarantine) = decide::cuda(activity, moment) {
            return Ok(Err(quarantine));
        }
        let instance = InstanceId { gpu_uuid: gpu, mig_uuid: None };
        let Some(place) =
            self.memory.names.place(self.db, (sender.node, &instance), self.now_ns)?
        else {
            return Ok(Err(Quarantine::TooManyInstances));
        };
        let map = self.map(sender, record, activity.end_ns, None)?;
        let mut spans = map.hours(activity.start_ns, activity.end_ns);
        if spans.is_empty() {
            spans.push(HourSpan { hour: map.utc_ns(activity.end_ns).div_euclid(HOUR_NS), ns: 0 });
        }
        if let Err(quarantine) = spend(&mut sender.hours_left, spans.len()) {
            return Ok(Err(quarantine));
        }
        self.outcomes.unknown_counters += activity.unknown;
        let dated = Dated { own: spans, before: Before::Nothing };
        self.post(sender, place.id, &instance, dated.postings(record))?;
        Ok(Ok(dated))
    }
}

pub(super) fn spend(hours_left: &mut usize, hours: usize) -> Result<(), Quarantine> {
    *hours_left = hours_left.checked_sub(hours).ok_or(Quarantine::TooLarge)?;
    Ok(())
}

fn length(records: &[Sealed]) -> u64 {
    u64::try_from(records.len()).unwrap_or(u64::MAX)
}

fn seconds(ns: i64) -> i64 {
    ns.div_euclid(1_000_000_000)
}
