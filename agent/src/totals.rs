//! Running totals since the agent started, for its own `/metrics`. Pure, and bounded in tenants.
//!
//! Not the ledger: that is the collector's, and has every tenant for as long as it keeps data.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::ids::{Holder, InstanceId};
use crate::model::readings::CudaCounts;
use crate::model::units::BootNs;
use crate::model::usage::{Method, Share, Tile};

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
    pub cuda: CudaCounts,
    last: BootNs,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub tenants: BTreeMap<Tenant, TenantTotals>,
    /// Free, unattributed and unobserved time.
    pub unowned: BTreeMap<(InstanceId, Share), u128>,
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
        for (share, nanoseconds) in &tile.shares {
            let nanoseconds = u128::from(*nanoseconds);
            let (holder, held) = match share {
                Share::Active(holder, method) => (holder, Held::Active(*method)),
                Share::HeldIdle(holder) => (holder, Held::Idle),
                Share::HeldUnknown(holder) => (holder, Held::Unknown),
                Share::Free | Share::Unattributed(_) | Share::Unobserved(_) => {
                    let key = (tile.id.clone(), share.clone());
                    *self.unowned.entry(key).or_default() += nanoseconds;
                    continue;
                }
            };
            *self.tenant(holder, tile.end).shares.entry(held).or_default() += nanoseconds;
        }
    }

    pub fn add_cuda(&mut self, holder: &Holder, counts: &CudaCounts, at: BootNs) {
        let totals = self.tenant(holder, at);
        totals.cuda = totals.cuda.plus(counts);
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

#[cfg(test)]
mod tests {
    use super::{ABSENT_NS, MAX_TENANTS, OVERFLOW, Totals};
    use crate::attribution::fixtures;
    use crate::model::ids::{Holder, HolderKind};
    use crate::model::units::BootNs;

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
        let counts = fixtures::launched(1);
        totals.add_cuda(&holder(tenant), &counts, BootNs(at));
    }

    fn sum(totals: &Totals) -> u64 {
        totals.tenants.values().map(|it| it.cuda.launches()).sum()
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
