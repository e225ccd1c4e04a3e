//! Running totals since the agent started, for its own `/metrics`. Pure, and bounded in tenants.
//!
//! Not the ledger: that is the collector's, and has every tenant for as long as it keeps data.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::ids::{DeviceId, Holder, InstanceId};
use crate::model::metering::{EnergyMethod, Seen, SmActivity};
use crate::model::readings::CudaCounts;
use crate::model::units::BootNs;
use crate::model::usage::{Class, CudaActivity, Method, Share, Tile};

/// Tenants that are counted apart. At the limit the tenant that has been absent longest makes room,
/// and where none is absent a new one is counted under `OVERFLOW`: sums stay right.
pub const MAX_TENANTS: usize = 512;

/// The name under which tenants beyond the limit are counted together.
pub const OVERFLOW: &str = "__overflow__";

/// A tenant that used nothing for this long is absent.
const ABSENT_NS: u64 = 600_000_000_000;

/// What a tenant series is labelled with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tenant {
    pub tenant: Arc<str>,
    pub namespace: Option<Arc<str>>,
    pub pod: Option<Arc<str>>,
    pub container: Option<Arc<str>>,
}

/// Which of a tenant's shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Held {
    Active(Method),
    Idle,
    Unknown,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TenantTotals {
    pub shares: BTreeMap<Held, u128>,
    /// Millijoules.
    pub energy: BTreeMap<(Held, EnergyMethod), u128>,
    /// `None` = no call was counted.
    pub cuda: Option<CudaTotals>,
    last: BootNs,
}

/// Calls, and how far their counts can be trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CudaTotals {
    pub counts: CudaCounts,
    /// Memory calls were counted at some time.
    pub memory_known: bool,
    /// Time in which not every hook was on.
    pub sampled_ns: u128,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub tenants: BTreeMap<Tenant, TenantTotals>,
    /// Calls whose device is known.
    pub devices: BTreeMap<DeviceId, CudaTotals>,
    /// Free, unattributed and unobserved time.
    pub unowned: BTreeMap<(InstanceId, Share), u128>,
    /// Millijoules, likewise.
    pub unowned_energy: BTreeMap<(InstanceId, Share, EnergyMethod), u128>,
    pub instances: BTreeMap<InstanceId, InstanceTotals>,
}

/// What tiles say of an instance besides whose it was. What was never measured is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstanceTotals {
    /// Millijoules.
    pub energy: Option<u128>,
    pub class_energy: BTreeMap<Class, u128>,
    pub sm: SmActivity,
    pub seen: Seen,
}

impl From<&Holder> for Tenant {
    fn from(holder: &Holder) -> Self {
        Self {
            tenant: Arc::clone(&holder.tenant),
            namespace: holder.namespace.clone(),
            pod: holder.pod.clone(),
            container: holder.container.clone(),
        }
    }
}

// === impl Totals ===

impl Totals {
    pub fn add_tile(&mut self, tile: &Tile) {
        self.add_time(tile);
        self.add_energy(tile);
        let totals = self.instances.entry(tile.id.clone()).or_default();
        totals.sm = totals.sm.plus(tile.sm);
        totals.seen = totals.seen.plus(tile.seen.unwrap_or_default());
    }

    fn add_time(&mut self, tile: &Tile) {
        for (share, nanoseconds) in &tile.shares {
            let nanoseconds = u128::from(*nanoseconds);
            match owner(share) {
                Some((holder, held)) => {
                    *self.tenant(holder, tile.end).shares.entry(held).or_default() += nanoseconds;
                }
                None => {
                    let key = (tile.id.clone(), share.clone());
                    *self.unowned.entry(key).or_default() += nanoseconds;
                }
            }
        }
    }

    fn add_energy(&mut self, tile: &Tile) {
        let Some(energy) = &tile.energy else { return };
        let totals = self.instances.entry(tile.id.clone()).or_default();
        *totals.energy.get_or_insert_default() += u128::from(energy.mj);
        for (class, mj) in &energy.classes {
            *totals.class_energy.entry(*class).or_default() += u128::from(*mj);
        }
        let Some(method) = energy.method else { return };
        for (share, mj) in &energy.shares {
            let mj = u128::from(*mj);
            match owner(share) {
                Some((holder, held)) => {
                    let energy = &mut self.tenant(holder, tile.end).energy;
                    *energy.entry((held, method)).or_default() += mj;
                }
                None => {
                    let key = (tile.id.clone(), share.clone(), method);
                    *self.unowned_energy.entry(key).or_default() += mj;
                }
            }
        }
    }

    pub fn add_cuda(&mut self, activity: &CudaActivity) {
        let totals = self.tenant(&activity.holder, activity.end);
        totals.cuda.get_or_insert_default().add(activity);
        if let Some(device) = &activity.device {
            self.devices.entry(device.clone()).or_default().add(activity);
        }
    }

    fn tenant(&mut self, holder: &Holder, at: BootNs) -> &mut TenantTotals {
        let mut key = Tenant::from(holder);
        if !self.tenants.contains_key(&key) && !self.make_room(at) {
            key = Tenant { tenant: OVERFLOW.into(), namespace: None, pod: None, container: None };
        }
        let totals = self.tenants.entry(key).or_default();
        totals.last = totals.last.max(at);
        totals
    }

    /// Whether one more tenant has a place.
    fn make_room(&mut self, at: BootNs) -> bool {
        if self.tenants.len() < MAX_TENANTS {
            return true;
        }
        let longest = self.tenants.iter().min_by_key(|(_, it)| it.last);
        let absent = longest.filter(|(_, it)| at.since(it.last) > ABSENT_NS);
        match absent.map(|(key, _)| key.clone()) {
            Some(key) => self.tenants.remove(&key).is_some(),
            None => false,
        }
    }
}

/// Whose a share is; `None` = nobody's.
fn owner(share: &Share) -> Option<(&Holder, Held)> {
    match share {
        Share::Active(holder, method) => Some((holder, Held::Active(*method))),
        Share::HeldIdle(holder) => Some((holder, Held::Idle)),
        Share::HeldUnknown(holder) => Some((holder, Held::Unknown)),
        Share::Free | Share::Unconfigured | Share::Unattributed(_) | Share::Unobserved(_) => None,
    }
}

// === impl CudaTotals ===

impl CudaTotals {
    fn add(&mut self, activity: &CudaActivity) {
        self.counts = self.counts.plus(&activity.counts);
        self.memory_known |= activity.memory_known;
        self.sampled_ns += u128::from(activity.sampled_ns());
    }
}

#[cfg(test)]
mod tests {
    use super::{ABSENT_NS, MAX_TENANTS, OVERFLOW, Totals};
    use crate::attribution::fixtures;
    use crate::model::ids::{Holder, HolderKind};

    fn holder(tenant: usize) -> Holder {
        let name = tenant.to_string();
        Holder {
            kind: HolderKind::Unit,
            id: name.as_str().into(),
            tenant: name.as_str().into(),
            namespace: None,
            pod: None,
            container: None,
        }
    }

    fn launch(totals: &mut Totals, tenant: usize, at: u64) {
        let holder = holder(tenant);
        let activity = fixtures::activity(holder, (0, at), fixtures::launched(1));
        totals.add_cuda(&activity);
    }

    fn sum(totals: &Totals) -> u64 {
        totals.tenants.values().filter_map(|it| it.cuda).map(|it| it.counts.launches()).sum()
    }

    #[test]
    fn tenants_beyond_the_limit_are_counted_together() {
        let mut totals = Totals::default();
        (0..MAX_TENANTS + 10).for_each(|tenant| launch(&mut totals, tenant, 1));
        assert_eq!(sum(&totals), MAX_TENANTS as u64 + 10);
        assert_eq!(totals.tenants.len(), MAX_TENANTS + 1);
        assert!(totals.tenants.keys().any(|it| &*it.tenant == OVERFLOW));
    }

    #[test]
    fn an_absent_tenant_makes_room() {
        let mut totals = Totals::default();
        (0..MAX_TENANTS).for_each(|tenant| launch(&mut totals, tenant, tenant as u64));
        launch(&mut totals, MAX_TENANTS, ABSENT_NS + 1);
        assert_eq!(totals.tenants.len(), MAX_TENANTS);
        assert!(totals.tenants.keys().all(|it| &*it.tenant != "0"));
    }
}
