//! From a record to what is added to which account in which hour. Pure.
//!
//! An account is what is counted; its amounts are a short list of integers whose meaning the account
//! fixes. A posting adds to an account in one UTC hour and, with the same amounts, to the running
//! total that counters show.

use std::sync::Arc;

use crate::ledger::amounts::{EnergyAmounts, InstanceAmounts, ShareAmounts, Weighed};
use crate::ledger::clock_map::HourSpan;
use crate::ledger::energy::{HourEnergy, by_hour};
use crate::ledger::split::{cut, split};
use crate::model::ids::{HolderKind, TenantLabels};
use crate::model::metering::WHOLE;
use crate::model::record::{
    CLASS_UNKNOWN, CudaActivity, Method, Reason, Share, TenantShare, Tile, UnownedShare,
};

/// What is counted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Account {
    /// `ShareAmounts`. The holder is left out in running totals, which name tenants only.
    Tenant {
        holder: Option<HolderName>,
        labels: TenantLabels,
        share: TenantShare,
        method: Option<Method>,
    },
    /// `ShareAmounts`.
    Unowned { share: UnownedShare, reason: Reason },
    /// `InstanceAmounts`.
    Instance,
    /// `CudaSums`.
    Cuda { holder: Option<HolderName>, labels: TenantLabels },
    /// `CudaSums` of everybody on a device. A running total only: an hour has the sums of the holders.
    CudaDevice,
}

/// A holder without its tenant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HolderName {
    pub kind: HolderKind,
    pub id: Arc<str>,
}

/// One addition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Posting {
    /// Hours since the Unix epoch.
    pub hour: i64,
    pub account: Account,
    pub amounts: Vec<u128>,
}

// === impl Account ===

impl Account {
    /// The account of the running total that a posting to this one also counts for.
    #[must_use]
    pub fn without_holder(&self) -> Self {
        match self {
            Self::Tenant { labels, share, method, .. } => Self::Tenant {
                holder: None,
                labels: labels.clone(),
                share: *share,
                method: *method,
            },
            Self::Cuda { labels, .. } => Self::Cuda { holder: None, labels: labels.clone() },
            Self::Unowned { .. } | Self::Instance | Self::CudaDevice => self.clone(),
        }
    }
}

// === postings ===

/// What a tile adds. `spans` are its hours; they sum to its span.
#[must_use]
pub fn of_tile(tile: &Tile, spans: &[HourSpan]) -> Vec<Posting> {
    let hours = Hours::of(tile, spans);
    let mut postings = Vec::with_capacity(spans.len() * (tile.shares.len() + 1));
    for (index, span) in spans.iter().enumerate() {
        for (share, (key, _)) in tile.shares.iter().enumerate() {
            let amounts = hours.share(index, share, tile.weight()).to_vec();
            if !amounts.is_empty() {
                postings.push(Posting { hour: span.hour, account: account_of(key), amounts });
            }
        }
        let amounts = hours.instance(index, tile.weight()).to_vec();
        postings.push(Posting { hour: span.hour, account: Account::Instance, amounts });
    }
    postings
}

/// A tile's amounts by hour. What is known of the tile is known of each of its hours.
struct Hours {
    /// Nanoseconds.
    lengths: Vec<u64>,
    shares: Vec<Vec<u64>>,
    classes: Vec<Vec<u64>>,
    energy: Option<Vec<HourEnergy>>,
    memory: Option<Vec<u128>>,
    /// Active, measured.
    sm: Option<[Vec<u128>; 2]>,
    /// With a process, healthy.
    seen: Option<[Vec<u128>; 2]>,
}

// === impl Hours ===

impl Hours {
    fn of(tile: &Tile, spans: &[HourSpan]) -> Self {
        let lengths: Vec<u64> = spans.iter().map(|it| it.ns).collect();
        let share_ns: Vec<u64> = tile.shares.iter().map(|it| it.1).collect();
        let shares = cut(&share_ns, &lengths);
        let spread = |amount: u64| split(u128::from(amount), &lengths);
        Self {
            classes: cut(&tile.classes, &lengths),
            energy: tile.energy.as_ref().map(|it| by_hour(it, &lengths, &shares)),
            memory: tile.memory_byte_seconds.map(spread),
            sm: tile.sm.map(|it| [it.active_ns, it.measured_ns].map(spread)),
            seen: tile.seen.map(|it| [it.process_ns, it.healthy_ns].map(spread)),
            lengths,
            shares,
        }
    }

    fn share(&self, hour: usize, share: usize, weight: Option<u64>) -> ShareAmounts {
        let ns = u128::from(self.shares[hour][share]);
        let mut energy = EnergyAmounts::default();
        if let Some(split) = self.energy.as_ref().and_then(|it| it[hour].split.as_ref()) {
            energy.known_ns = ns;
            energy.mj[split.method.index()] = u128::from(split.shares[share]);
        }
        ShareAmounts { ns, energy, weighed: weighed(ns, weight) }
    }

    fn instance(&self, hour: usize, weight: Option<u64>) -> InstanceAmounts {
        let ns = u128::from(self.lengths[hour]);
        let mut amounts =
            InstanceAmounts { weighed: weighed(ns, weight), ..InstanceAmounts::default() };
        for (sum, ns) in amounts.class_ns.iter_mut().zip(&self.classes[hour]) {
            *sum = u128::from(*ns);
        }
        if let Some(energy) = self.energy.as_ref().map(|it| &it[hour]) {
            (amounts.energy_mj, amounts.energy_ns) = (u128::from(energy.mj), ns);
            if let Some(split) = &energy.split {
                (amounts.class_mj, amounts.class_energy_ns) = (split.classes.map(u128::from), ns);
            }
        }
        if let Some(memory) = &self.memory {
            (amounts.memory_byte_seconds, amounts.memory_ns) = (memory[hour], ns);
        }
        if let Some([active, measured]) = &self.sm {
            (amounts.sm_active_ns, amounts.sm_measured_ns) = (active[hour], measured[hour]);
        }
        if let Some([process, healthy]) = &self.seen {
            (amounts.process_ns, amounts.healthy_ns) = (process[hour], healthy[hour]);
            amounts.seen_ns = ns;
        }
        amounts
    }
}

/// A whole device needs no weight: that of its place is known.
fn weighed(ns: u128, weight: Option<u64>) -> Weighed {
    Weighed::of(ns, weight.filter(|it| *it != WHOLE))
}

/// What a span adds in which nobody was watching, of an instance of this weight.
#[must_use]
pub fn of_blind_span(reason: Reason, spans: &[HourSpan], weight: Option<u64>) -> Vec<Posting> {
    let postings = spans.iter().flat_map(|span| {
        let ns = u128::from(span.ns);
        let weighed = weighed(ns, weight);
        let share = ShareAmounts { ns, weighed, ..ShareAmounts::default() };
        let mut instance = InstanceAmounts { weighed, ..InstanceAmounts::default() };
        instance.class_ns[CLASS_UNKNOWN] = ns;
        let unowned = Account::Unowned { share: UnownedShare::Unobserved, reason };
        [
            Posting { hour: span.hour, account: unowned, amounts: share.to_vec() },
            Posting { hour: span.hour, account: Account::Instance, amounts: instance.to_vec() },
        ]
    });
    postings.collect()
}

/// What CUDA activity adds. `spans` are its hours, at least one: the counts are spread evenly.
#[must_use]
pub fn of_cuda(activity: &CudaActivity, spans: &[HourSpan]) -> Vec<Posting> {
    let lengths: Vec<u64> = spans.iter().map(|it| it.ns).collect();
    let columns: Vec<Vec<u128>> =
        activity.sums.to_vec().iter().map(|it| split(*it, &lengths)).collect();
    let holder = &activity.holder;
    let account = Account::Cuda {
        holder: Some(HolderName { kind: holder.kind, id: Arc::clone(&holder.id) }),
        labels: holder.labels.clone(),
    };
    let row = |index: usize| columns.iter().map(|it| it[index]).collect::<Vec<u128>>();
    spans
        .iter()
        .enumerate()
        .map(|(index, span)| (span.hour, row(index)))
        .filter(|(_, amounts)| amounts.iter().any(|it| *it > 0))
        .map(|(hour, amounts)| Posting { hour, account: account.clone(), amounts })
        .collect()
}

fn account_of(share: &Share) -> Account {
    match share {
        Share::Tenant { holder, share, method } => Account::Tenant {
            holder: Some(HolderName { kind: holder.kind, id: Arc::clone(&holder.id) }),
            labels: holder.labels.clone(),
            share: *share,
            method: *method,
        },
        Share::Unowned { share, reason } => Account::Unowned { share: *share, reason: *reason },
    }
}
