//! Running totals of what the ledger has posted, for counters that never go back.
//!
//! The writer changes them only after COMMIT, with the values that the same transaction stored, so a
//! counter never shows more than the ledger holds, and after a restart it goes on where it was. They
//! are a view: bounded, and without series that nothing was posted to for `RETIRED_AFTER`. The
//! ledger itself keeps everything.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crate::ledger::amounts::{EnergyAmounts, InstanceAmounts, ShareAmounts};
use crate::model::cuda::CudaSums;
use crate::model::ids::{InstanceId, NodeKey, TenantLabels};
use crate::model::record::{CLASSES, Method, Reason, TenantShare, UnownedShare};

/// A series that nothing was posted to for this long leaves the view. It comes back with its old
/// value when it is posted to again.
pub const RETIRED_AFTER: Duration = Duration::from_secs(3_600);

/// The tenant that takes what is posted while the view is full.
pub const OVERFLOW_TENANT: &str = "__overflow__";

/// The view. Readers hold the lock while they render, so they should not hold it for long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Nanoseconds.
    pub tenants: BTreeMap<TenantSeries, u128>,
    /// Where it is known.
    pub tenant_energy: BTreeMap<TenantSeries, EnergyAmounts>,
    /// Nanoseconds.
    pub unowned: BTreeMap<UnownedSeries, u128>,
    /// Where it is known.
    pub unowned_energy: BTreeMap<UnownedSeries, EnergyAmounts>,
    pub cuda: BTreeMap<TenantLabels, CudaSums>,
    /// Calls whose device is known.
    pub cuda_devices: BTreeMap<InstanceSeries, CudaSums>,
    pub instances: BTreeMap<InstanceSeries, InstanceTotals>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantSeries {
    pub labels: TenantLabels,
    pub share: TenantShare,
    /// `Some` for active time.
    pub method: Option<Method>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnownedSeries {
    pub instance: InstanceSeries,
    pub share: UnownedShare,
    pub reason: Reason,
}

/// An instance on a node. A device that moved has one series for each node that it was on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceSeries {
    pub node: Arc<NodeKey>,
    pub instance: InstanceId,
}

/// What tiles say about an instance besides its shares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InstanceTotals {
    /// Nanoseconds, in the order of `CLASSES`; they sum to the instance's wall time.
    pub class_ns: [u128; CLASSES.len()],
    /// `None` = never readable.
    pub energy_mj: Option<u128>,
    /// Millijoules, in the order of `CLASSES`, of the energy that agents cut; `None` = never cut.
    pub class_mj: Option<[u128; CLASSES.len()]>,
    /// Used bytes times seconds; `None` = never readable.
    pub memory_byte_seconds: Option<u128>,
    /// Nanoseconds in which multiprocessors were active, and of which that is known; `None` = never.
    pub sm_ns: Option<(u128, u128)>,
    /// Observed nanoseconds with a process, and in good health; `None` = no agent said.
    pub seen_ns: Option<(u128, u128)>,
}

/// One series of the view, whatever its kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Series {
    Tenant(TenantSeries),
    Unowned(UnownedSeries),
    Cuda(TenantLabels),
    Instance(InstanceSeries),
    CudaDevice(InstanceSeries),
}

// === impl Totals ===

impl Totals {
    /// Replaces the value of a series by what the ledger has committed for it.
    pub(super) fn set(&mut self, series: Series, amounts: &[u128]) {
        let share = ShareAmounts::from_slice(amounts);
        let energy = Some(share.energy).filter(|it| it.known_ns > 0);
        match series {
            Series::Tenant(series) => {
                self.tenant_energy.extend(energy.map(|it| (series.clone(), it)));
                self.tenants.insert(series, share.ns);
            }
            Series::Unowned(series) => {
                self.unowned_energy.extend(energy.map(|it| (series.clone(), it)));
                self.unowned.insert(series, share.ns);
            }
            Series::Cuda(labels) => {
                self.cuda.insert(labels, CudaSums::from_slice(amounts));
            }
            Series::CudaDevice(series) => {
                self.cuda_devices.insert(series, CudaSums::from_slice(amounts));
            }
            Series::Instance(series) => {
                let amounts = InstanceAmounts::from_slice(amounts);
                self.instances.insert(series, InstanceTotals::from(amounts));
            }
        }
    }

    /// Takes every series of these labels out of the view.
    pub(super) fn retire_tenant(&mut self, labels: &TenantLabels) {
        let all = TenantShare::ALL.into_iter().flat_map(|share| {
            let methods = Method::ALL.into_iter().map(Some).chain([None]);
            methods.map(move |method| (share, method))
        });
        for (share, method) in all {
            let series = TenantSeries { labels: labels.clone(), share, method };
            self.tenants.remove(&series);
            self.tenant_energy.remove(&series);
        }
        self.cuda.remove(labels);
    }

    /// Takes every series of these instances out of the view.
    pub(super) fn retire_instances(&mut self, gone: &HashSet<InstanceSeries>) {
        self.unowned.retain(|series, _| !gone.contains(&series.instance));
        self.unowned_energy.retain(|series, _| !gone.contains(&series.instance));
        self.instances.retain(|series, _| !gone.contains(series));
        self.cuda_devices.retain(|series, _| !gone.contains(series));
    }
}

impl From<InstanceAmounts> for InstanceTotals {
    fn from(amounts: InstanceAmounts) -> Self {
        Self {
            class_ns: amounts.class_ns,
            energy_mj: (amounts.energy_ns > 0).then_some(amounts.energy_mj),
            class_mj: (amounts.class_energy_ns > 0).then_some(amounts.class_mj),
            memory_byte_seconds: (amounts.memory_ns > 0).then_some(amounts.memory_byte_seconds),
            sm_ns: (amounts.sm_measured_ns > 0)
                .then_some((amounts.sm_active_ns, amounts.sm_measured_ns)),
            seen_ns: (amounts.seen_ns > 0).then_some((amounts.process_ns, amounts.healthy_ns)),
        }
    }
}
