//! Which series counters show: a bounded choice among what the ledger holds.
//!
//! A new set of tenant labels gets its own series while there is room, and otherwise counts for the
//! overflow tenant. Every posting goes durably to exactly one running total, so the view sums to the
//! truth, and no series ever goes back.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use rusqlite::Connection;

use crate::ledger::accounts::{Columns, decode, of_total};
use crate::ledger::posting::Account;
use crate::ledger::totals::{
    InstanceSeries, OVERFLOW_TENANT, RETIRED_AFTER, Series, TenantSeries, Totals, UnownedSeries,
};
use crate::model::ids::{InstanceId, NodeKey, TenantLabels};

/// Seconds since the Unix epoch.
type Seconds = i64;

#[derive(Debug)]
pub(super) struct View {
    max_tenants: usize,
    /// When each was posted to last.
    tenants: HashMap<TenantLabels, Seconds>,
    instances: HashMap<InstanceSeries, Seconds>,
    overflow: TenantLabels,
}

// === impl View ===

impl View {
    fn empty(max_tenants: usize) -> Self {
        let overflow = TenantLabels {
            tenant: OVERFLOW_TENANT.into(),
            namespace: None,
            pod: None,
            container: None,
        };
        Self { max_tenants, tenants: HashMap::new(), instances: HashMap::new(), overflow }
    }

    /// The view as the ledger's running totals give it, without what is retired at `now`.
    pub(super) fn load(
        db: &Connection,
        max_tenants: usize,
        now: Seconds,
    ) -> rusqlite::Result<(Self, Totals)> {
        let (mut view, mut totals) = (Self::empty(max_tenants), Totals::default());
        let mut statement = db.prepare(
            "SELECT a.tenant, a.namespace, a.pod, a.container, a.holder_kind, a.holder, a.kind, a.share, a.detail,
                    t.amounts, t.posted_s, n.cluster, n.name, p.gpu, p.mig
             FROM total t JOIN account a ON a.id = t.account
             LEFT JOIN place p ON p.id = t.place LEFT JOIN node n ON n.id = p.node
             WHERE t.posted_s > ?1 OR a.tenant = ?2 ORDER BY t.posted_s DESC",
        )?;
        let mut rows = statement.query((now - retired_after(), OVERFLOW_TENANT))?;
        while let Some(row) = rows.next()? {
            let posted: Seconds = row.get(10)?;
            let (Some(series), Some(amounts)) =
                (series_of(row)?, decode(row.get_ref(9)?.as_blob()?))
            else {
                continue;
            };
            if view.shows(&series, posted) {
                totals.set(series, &amounts);
            }
        }
        Ok((view, totals))
    }

    /// Whether there is room for a stored series; remembers it when there is.
    fn shows(&mut self, series: &Series, posted: Seconds) -> bool {
        match series {
            Series::Tenant(TenantSeries { labels, .. }) | Series::Cuda(labels) => {
                *labels == self.overflow || self.admit(labels, posted)
            }
            Series::Unowned(UnownedSeries { instance, .. })
            | Series::Instance(instance)
            | Series::CudaDevice(instance) => {
                self.touch(instance, posted);
                true
            }
        }
    }

    fn admit(&mut self, labels: &TenantLabels, posted: Seconds) -> bool {
        if let Some(last) = self.tenants.get_mut(labels) {
            *last = posted.max(*last);
            return true;
        }
        let room = self.tenants.len() < self.max_tenants;
        if room {
            self.tenants.insert(labels.clone(), posted);
        }
        room
    }

    fn touch(&mut self, instance: &InstanceSeries, posted: Seconds) {
        match self.instances.get_mut(instance) {
            Some(last) => *last = posted.max(*last),
            None => drop(self.instances.insert(instance.clone(), posted)),
        }
    }

    /// The running total that a posting counts for, and its series.
    pub(super) fn total_of(
        &mut self,
        account: &Account,
        instance: &InstanceSeries,
        now: Seconds,
    ) -> (Account, Series) {
        let mut account = account.without_holder();
        if let Account::Tenant { labels, .. } | Account::Cuda { labels, .. } = &mut account
            && !self.admit(labels, now)
        {
            labels.clone_from(&self.overflow);
        }
        if matches!(account, Account::Unowned { .. } | Account::Instance) {
            self.touch(instance, now);
        }
        let series = series(&account, instance);
        (account, series)
    }

    /// The series of the device that a posting counts for besides its tenant's, where it is known.
    pub(super) fn device_of(
        &mut self,
        account: &Account,
        instance: &InstanceSeries,
        now: Seconds,
    ) -> Option<Series> {
        let known =
            matches!(account, Account::Cuda { .. }) && !instance.instance.gpu_uuid.is_empty();
        known.then(|| {
            self.touch(instance, now);
            Series::CudaDevice(instance.clone())
        })
    }

    /// Forgets what was not posted to for long, and returns it so that the totals forget it too.
    pub(super) fn retire(&mut self, now: Seconds) -> (Vec<TenantLabels>, HashSet<InstanceSeries>) {
        let old = |posted: &Seconds| *posted <= now - retired_after();
        let tenants = self.tenants.extract_if(|_, posted| old(posted)).map(|it| it.0).collect();
        let instances = self.instances.extract_if(|_, posted| old(posted)).map(|it| it.0).collect();
        (tenants, instances)
    }
}

fn retired_after() -> Seconds {
    RETIRED_AFTER.as_secs().cast_signed()
}

fn series(account: &Account, instance: &InstanceSeries) -> Series {
    match account {
        Account::Tenant { labels, share, method, .. } => {
            Series::Tenant(TenantSeries { labels: labels.clone(), share: *share, method: *method })
        }
        Account::Cuda { labels, .. } => Series::Cuda(labels.clone()),
        Account::Unowned { share, reason } => Series::Unowned(UnownedSeries {
            instance: instance.clone(),
            share: *share,
            reason: *reason,
        }),
        Account::Instance => Series::Instance(instance.clone()),
        Account::CudaDevice => Series::CudaDevice(instance.clone()),
    }
}

/// `None` for a row of a later version.
fn series_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<Option<Series>> {
    let mut columns: Columns<'_> = [""; 9];
    for (index, column) in columns.iter_mut().enumerate() {
        *column = row.get_ref(index)?.as_str()?;
    }
    let text = |index: usize| row.get::<_, Option<String>>(index).map(Option::unwrap_or_default);
    let mig = text(14)?;
    let instance = InstanceSeries {
        node: Arc::new(NodeKey { cluster: text(11)?, node: text(12)? }),
        instance: InstanceId {
            gpu_uuid: text(13)?.into(),
            mig_uuid: (!mig.is_empty()).then(|| mig.into()),
        },
    };
    Ok(of_total(columns).map(|account| series(&account, &instance)))
}
