//! Records and ledgers for the tests of this module.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use proto::telemetry::v1::CudaCounter;
use rusqlite::{Connection, TransactionBehavior};

use crate::ledger::accounts::decode;
use crate::ledger::amounts::ShareAmounts;
use crate::ledger::apply::Transaction;
use crate::ledger::clock_map::{HOUR_NS, Pair};
use crate::ledger::closing::closed_through;
use crate::ledger::memory::{Connected, Memory, Outcomes};
use crate::ledger::names::Names;
use crate::ledger::schema::Folder;
use crate::ledger::totals::Totals;
use crate::ledger::usage::{Query, Usage, read};
use crate::ledger::view::View;
use crate::ledger::{Applied, Batch, Hello, Sealed, Welcome};
use crate::model::cuda::CudaSums;
use crate::model::ids::{Holder, HolderKind, InstanceId, LedgerId, NodeKey, SpoolId, TenantLabels};
use crate::model::metering::Energy;
use crate::model::record::{
    CLASS_UNKNOWN, CLASSES, CudaActivity, Method, Reason, Record, RecordKind, Share, TenantShare,
    Tile, UnownedShare,
};

pub(super) const SECOND: u64 = 1_000_000_000;
/// UTC of the tests' present: on the hour.
pub(super) const NOW: i64 = 480_000 * HOUR_NS;

/// A ledger without its thread: transactions are run one by one, and may be cut off.
pub(super) struct Bench {
    pub(super) db: Connection,
    pub(super) memory: Memory,
    pub(super) totals: Totals,
    pub(super) outcomes: Outcomes,
    folder: Folder,
}

/// How a transaction of a test ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Commit,
    /// The process dies before COMMIT.
    Crash,
}

impl Bench {
    pub(super) fn open(path: &Path) -> Self {
        Self::with_room_for(path, 100)
    }

    pub(super) fn with_room_for(path: &Path, max_tenants: usize) -> Self {
        let folder = Folder::open(path).expect("the folder can be used");
        let (db, ledger_id) = folder.connect(NOW.cast_unsigned()).expect("the database opens");
        let (view, totals) =
            View::load(&db, max_tenants, NOW / 1_000_000_000).expect("the totals can be read");
        let memory = Memory {
            ledger_id,
            max_nodes: 100,
            closed_through: closed_through(&db).expect("it can be read"),
            names: Names::default(),
            view,
            connected: HashMap::new(),
        };
        Self { db, memory, totals, outcomes: Outcomes::default(), folder }
    }

    fn transact<T>(
        &mut self,
        end: End,
        work: impl FnOnce(&mut Transaction<'_>) -> rusqlite::Result<T>,
    ) -> T {
        let sql = self.db.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
        let mut transaction = Transaction::new(&sql, &mut self.memory, NOW);
        let answer = work(&mut transaction).unwrap();
        let totals = transaction.finish().unwrap();
        let outcomes = std::mem::take(&mut transaction.outcomes);
        match end {
            End::Crash => {
                sql.rollback().unwrap();
                self.memory.names = Names::default();
            }
            End::Commit => {
                sql.commit().unwrap();
                self.outcomes = outcomes;
                for (series, amounts) in totals {
                    self.totals.set(series, &amounts);
                }
            }
        }
        answer
    }

    pub(super) fn hello(&mut self, hello: &Hello) -> Welcome {
        let welcome = self.transact(End::Commit, |it| it.hello(hello)).expect("there is room");
        let devices = hello.devices.iter().cloned().collect();
        self.memory.connected.insert(welcome.node, Connected { epoch: welcome.epoch, devices });
        welcome
    }

    pub(super) fn batch(&mut self, batch: &Batch) -> Applied {
        self.batch_until(batch, End::Commit)
    }

    pub(super) fn batch_until(&mut self, batch: &Batch, end: End) -> Applied {
        self.transact(end, |it| it.batch(batch))
    }

    pub(super) fn usage(&self) -> Usage {
        read(&self.folder.database(), &Query::default()).unwrap()
    }

    /// Nanoseconds of every class of every instance.
    pub(super) fn class_ns(&self) -> u128 {
        self.totals.instances.values().flat_map(|it| it.class_ns).sum()
    }

    /// Nanoseconds per UTC hour and GPU, from the rows.
    pub(super) fn hours(&self) -> Vec<(i64, String, u128)> {
        let mut statement = self
            .db
            .prepare(
                "SELECT h.hour, p.gpu, h.amounts FROM hour h JOIN place p ON p.id = h.place
                 JOIN account a ON a.id = h.account WHERE a.kind IN ('tenant', 'unowned') ORDER BY 1, 2",
            )
            .unwrap();
        let mut hours: Vec<(i64, String, u128)> = Vec::new();
        let mut rows = statement.query(()).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let (hour, gpu): (i64, String) = (row.get(0).unwrap(), row.get(1).unwrap());
            let amounts = decode(row.get_ref(2).unwrap().as_blob().unwrap()).unwrap();
            let ns = ShareAmounts::from_slice(&amounts).ns;
            match hours.last_mut().filter(|it| it.0 == hour && it.1 == gpu) {
                Some(last) => last.2 += ns,
                None => hours.push((hour, gpu, ns)),
            }
        }
        hours
    }
}

/// Makes a ledger one of an earlier version.
pub(super) fn before_version_4(db: &Connection, version: i32) {
    db.execute_batch(
        "DROP TABLE folded; DROP TABLE seam; DROP TABLE final; DROP TABLE correction;
         ALTER TABLE meta DROP COLUMN closed_through; ALTER TABLE meta DROP COLUMN proven_from;
         ALTER TABLE spool DROP COLUMN folded_through; ALTER TABLE record DROP COLUMN dated;",
    )
    .expect("it has them");
    db.pragma_update(None, "user_version", version).expect("it can be written");
}

// === messages ===

/// A node whose boot time is 0 at `NOW`; `name` is its boot and its spool too.
pub(super) fn hello_of(name: &str) -> Hello {
    Hello {
        node: node(name),
        boot_id: format!("boot of {name}").into(),
        spool: spool(name),
        acked_through: 0,
        ledger_seen: None,
        clock: Pair { boot_ns: 0, utc_ns: NOW },
        devices: Vec::new(),
    }
}

pub(super) fn node(name: &str) -> NodeKey {
    NodeKey { cluster: "c".to_owned(), node: name.to_owned() }
}

pub(super) fn spool(name: &str) -> SpoolId {
    let mut id = [0; 16];
    id[..name.len()].copy_from_slice(name.as_bytes());
    SpoolId(id)
}

/// From the node of `hello_of(name)` with its first epoch.
pub(super) fn batch_of(name: &str, first_seq: u64, records: &[Record]) -> Batch {
    Batch {
        node: node(name),
        epoch: 1,
        spool: spool(name),
        boot_id: format!("boot of {name}").into(),
        boot_now_ns: 1_000_000 * SECOND,
        first_seq,
        accept_gap: false,
        records: records.iter().map(seal).collect(),
    }
}

pub(super) fn seal(record: &Record) -> Sealed {
    let payload = format!("{record:?}").into_bytes();
    let hash = blake3::hash(&payload).into();
    Sealed { payload, hash, content: Ok(record.clone()) }
}

// === records ===

pub(super) fn labels(tenant: &str) -> TenantLabels {
    TenantLabels { tenant: tenant.into(), namespace: Some("ns".into()), pod: None, container: None }
}

pub(super) fn holder(tenant: &str) -> Holder {
    Holder { kind: HolderKind::Pod, id: format!("pod of {tenant}").into(), labels: labels(tenant) }
}

pub(super) fn active(tenant: &str) -> Share {
    Share::Tenant {
        holder: holder(tenant),
        share: TenantShare::Active,
        method: Some(Method::Measured),
    }
}

pub(super) fn held_idle(tenant: &str) -> Share {
    Share::Tenant { holder: holder(tenant), share: TenantShare::HeldIdle, method: None }
}

pub(super) fn free() -> Share {
    Share::Unowned { share: UnownedShare::Free, reason: Reason::NONE }
}

/// A tile of the boot of `name`; its end is what its shares sum to.
pub(super) fn tile_of(name: &str, gpu: &str, start_ns: u64, shares: &[(Share, u64)]) -> Record {
    let span: u64 = shares.iter().map(|it| it.1).sum();
    let mut classes = [0; CLASSES.len()];
    classes[CLASS_UNKNOWN] = span;
    let tile = Tile {
        instance: InstanceId { gpu_uuid: gpu.into(), mig_uuid: None },
        start_ns,
        end_ns: start_ns + span,
        shares: shares.to_vec(),
        classes,
        energy: Some(Energy { mj: span / SECOND * 70, split: None }),
        memory_byte_seconds: None,
        sm: None,
        seen: None,
        slices: None,
    };
    record_of(name, RecordKind::Tile(Box::new(tile)))
}

pub(super) fn cuda_of(name: &str, tenant: &str, launches: u128, span: (u64, u64)) -> Record {
    let activity = CudaActivity {
        holder: holder(tenant),
        start_ns: span.0,
        end_ns: span.1,
        gpu_uuid: None,
        sums: launched(launches, span.1 - span.0),
        unknown: 0,
    };
    record_of(name, RecordKind::Cuda(Box::new(activity)))
}

/// Kernel launches and nothing else, counted exactly.
pub(super) fn launched(launches: u128, span_ns: u64) -> CudaSums {
    let [span_ns, watched_ns] = [span_ns.into(); 2];
    let mut sums = CudaSums::default();
    (sums.span_ns, sums.watched_ns) = (span_ns, watched_ns);
    sums[CudaCounter::KernelLaunches] = launches;
    sums
}

/// A record as activity, to be changed.
pub(super) fn activity_mut(record: &mut Record) -> &mut CudaActivity {
    match &mut record.kind {
        RecordKind::Cuda(activity) => activity,
        RecordKind::Tile(_) => unreachable!("the record is activity"),
    }
}

fn record_of(name: &str, kind: RecordKind) -> Record {
    Record { boot_id: Arc::from(format!("boot of {name}")), node_real_ns: NOW, kind }
}

pub(super) fn of_boot(mut record: Record, boot: &str) -> Record {
    record.boot_id = boot.into();
    record
}

/// A record as a tile, to be changed.
pub(super) fn tile_mut(record: &mut Record) -> &mut Tile {
    match &mut record.kind {
        RecordKind::Tile(tile) => tile,
        RecordKind::Cuda(_) => unreachable!("the record is a tile"),
    }
}

pub(super) fn other_ledger() -> LedgerId {
    LedgerId([7; 16])
}
