//! Running totals of what the ledger has posted, for counters that never go back.
//!
//! The writer changes them only after COMMIT, with the values that the same transaction stored, so a
//! counter never shows more than the ledger holds, and after a restart it goes on where it was. They
//! are a view: bounded, and without series that nothing was posted to for `RETIRED_AFTER`. The
//! ledger itself keeps everything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::model::ids::{InstanceId, NodeKey, TenantLabels};
use crate::model::record::{CLASSES, CudaCounts, Method, Reason, TenantShare, UnownedShare};

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
    /// Nanoseconds.
    pub unowned: BTreeMap<UnownedSeries, u128>,
    pub cuda: BTreeMap<TenantLabels, CudaCounts>,
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
    /// Of the whole device; `None` = never readable.
    pub energy_mj: Option<u128>,
    /// Used bytes times seconds; `None` = never readable.
    pub memory_byte_seconds: Option<u128>,
}
