//! From a record to what is added to which account in which hour. Pure.
//!
//! An account is what is counted; its amounts are a short list of integers whose meaning the account
//! fixes. A posting adds to an account in one UTC hour and, with the same amounts, to the running
//! total that counters show.

use std::sync::Arc;

use crate::ledger::clock_map::HourSpan;
use crate::ledger::split::{cut, split};
use crate::model::ids::{HolderKind, TenantLabels};
use crate::model::record::{
    CLASS_UNKNOWN, CLASSES, CudaActivity, Method, Reason, Share, TenantShare, Tile, UnownedShare,
};

/// What is counted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Account {
    /// `[nanoseconds]`. The holder is left out in running totals, which name tenants only.
    Tenant {
        holder: Option<HolderName>,
        labels: TenantLabels,
        share: TenantShare,
        method: Option<Method>,
    },
    /// `[nanoseconds]`.
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

/// The amounts of `Account::Instance`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InstanceAmounts {
    /// In the order of `CLASSES`.
    pub class_ns: [u128; CLASSES.len()],
    pub energy_mj: u128,
    /// Time in which the energy was known.
    pub energy_ns: u128,
    pub memory_byte_seconds: u128,
    /// Time in which the memory was known.
    pub memory_ns: u128,
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

// === impl InstanceAmounts ===

impl InstanceAmounts {
    pub const LEN: usize = CLASSES.len() + 4;

    #[must_use]
    pub fn to_vec(&self) -> Vec<u128> {
        let rest = [self.energy_mj, self.energy_ns, self.memory_byte_seconds, self.memory_ns];
        self.class_ns.iter().chain(&rest).copied().collect()
    }

    /// The reverse of `to_vec`; `None` for another length.
    #[must_use]
    pub fn from_slice(amounts: &[u128]) -> Option<Self> {
        let (class_ns, rest) = amounts.split_first_chunk()?;
        let [energy_mj, energy_ns, memory_byte_seconds, memory_ns] = *rest else { return None };
        Some(Self { class_ns: *class_ns, energy_mj, energy_ns, memory_byte_seconds, memory_ns })
    }
}

// === postings ===

/// What a tile adds. `spans` are its hours; they sum to its span.
#[must_use]
pub fn of_tile(tile: &Tile, spans: &[HourSpan]) -> Vec<Posting> {
    let lengths: Vec<u64> = spans.iter().map(|it| it.ns).collect();
    let share_ns: Vec<u64> = tile.shares.iter().map(|it| it.1).collect();
    let shares = cut(&share_ns, &lengths);
    let classes = cut(&tile.classes, &lengths);
    let energy = tile.energy_mj.map(|it| split(u128::from(it), &lengths));
    let memory = tile.memory_byte_seconds.map(|it| split(u128::from(it), &lengths));
    let mut postings = Vec::with_capacity(spans.len() * (tile.shares.len() + 1));
    for (index, span) in spans.iter().enumerate() {
        for ((share, _), ns) in tile.shares.iter().zip(&shares[index]).filter(|it| *it.1 > 0) {
            let amounts = vec![u128::from(*ns)];
            postings.push(Posting { hour: span.hour, account: account_of(share), amounts });
        }
        let mut instance = InstanceAmounts::default();
        for (sum, ns) in instance.class_ns.iter_mut().zip(&classes[index]) {
            *sum = u128::from(*ns);
        }
        if let Some(energy) = &energy {
            (instance.energy_mj, instance.energy_ns) = (energy[index], u128::from(span.ns));
        }
        if let Some(memory) = &memory {
            (instance.memory_byte_seconds, instance.memory_ns) =
                (memory[index], u128::from(span.ns));
        }
        postings.push(Posting {
            hour: span.hour,
            account: Account::Instance,
            amounts: instance.to_vec(),
        });
    }
    postings
}

/// What a span adds in which nobody was watching.
#[must_use]
pub fn of_blind_span(reason: Reason, spans: &[HourSpan]) -> Vec<Posting> {
    let postings = spans.iter().flat_map(|span| {
        let mut instance = InstanceAmounts::default();
        instance.class_ns[CLASS_UNKNOWN] = u128::from(span.ns);
        let unowned = Account::Unowned { share: UnownedShare::Unobserved, reason };
        [
            Posting { hour: span.hour, account: unowned, amounts: vec![u128::from(span.ns)] },
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
