//! Accounts as rows of the table `account`, there and back. Pure.

use std::sync::Arc;

use crate::ledger::posting::{Account, HolderName};
use crate::model::ids::TenantLabels;
use crate::model::record::{Method, Reason, TenantShare, UnownedShare};

/// Texts of the columns `tenant, namespace, pod, container, holder_kind, holder, kind, share, detail`.
/// What is absent is empty.
pub(super) type Columns<'a> = [&'a str; 9];

pub(super) fn columns(account: &Account) -> Columns<'_> {
    match account {
        Account::Tenant { holder, labels, share, method } => owned(
            holder.as_ref(),
            labels,
            ["tenant", share.as_str(), method.map_or("", |it| it.as_str())],
        ),
        Account::Cuda { holder, labels } => owned(holder.as_ref(), labels, ["cuda", "", ""]),
        Account::Unowned { share, reason } => {
            ["", "", "", "", "", "", "unowned", share.as_str(), reason.as_str()]
        }
        Account::Instance => ["", "", "", "", "", "", "instance", "", ""],
        Account::CudaDevice => ["", "", "", "", "", "", "cuda_device", "", ""],
    }
}

fn owned<'a>(
    holder: Option<&'a HolderName>,
    labels: &'a TenantLabels,
    [kind, share, detail]: [&'a str; 3],
) -> Columns<'a> {
    [
        &labels.tenant,
        labels.namespace.as_deref().unwrap_or_default(),
        labels.pod.as_deref().unwrap_or_default(),
        labels.container.as_deref().unwrap_or_default(),
        holder.map_or("", |it| it.kind.as_str()),
        holder.map_or("", |it| &it.id),
        kind,
        share,
        detail,
    ]
}

/// The account of a running total, which names no holder; `None` for a row that a later version wrote.
pub(super) fn of_total(
    [tenant, namespace, pod, container, _, _, kind, share, detail]: Columns<'_>,
) -> Option<Account> {
    let optional = |text: &str| (!text.is_empty()).then(|| Arc::from(text));
    let labels = || TenantLabels {
        tenant: tenant.into(),
        namespace: optional(namespace),
        pod: optional(pod),
        container: optional(container),
    };
    match kind {
        "tenant" => Some(Account::Tenant {
            holder: None,
            labels: labels(),
            share: TenantShare::ALL.into_iter().find(|it| it.as_str() == share)?,
            method: Method::ALL.into_iter().find(|it| it.as_str() == detail),
        }),
        "cuda" => Some(Account::Cuda { holder: None, labels: labels() }),
        "unowned" => Some(Account::Unowned {
            share: UnownedShare::ALL.into_iter().find(|it| it.as_str() == share)?,
            reason: Reason::parse(detail),
        }),
        "instance" => Some(Account::Instance),
        "cuda_device" => Some(Account::CudaDevice),
        _ => None,
    }
}

/// Amounts as they are stored.
pub(super) fn encode(amounts: &[u128]) -> Vec<u8> {
    amounts.iter().flat_map(|it| it.to_be_bytes()).collect()
}

/// The reverse of `encode`; a length that it does not write is damage and gives `None`.
pub(super) fn decode(bytes: &[u8]) -> Option<Vec<u128>> {
    let (chunks, rest) = bytes.as_chunks::<16>();
    rest.is_empty().then(|| chunks.iter().map(|it| u128::from_be_bytes(*it)).collect())
}

/// Adds `more` to `amounts`, one by one. A list that is shorter grows: a later version has more. In two's
/// complement, so that `more` may be negative, as corrections are; no sum of 64-bit amounts reaches
/// 128 bits.
pub(super) fn add(amounts: &mut Vec<u128>, more: &[u128]) {
    amounts.resize(amounts.len().max(more.len()), 0);
    for (sum, it) in amounts.iter_mut().zip(more) {
        *sum = sum.wrapping_add(*it);
    }
}

#[cfg(test)]
mod tests {
    use super::{add, columns, decode, encode, of_total};
    use crate::ledger::posting::Account;
    use crate::model::ids::TenantLabels;
    use crate::model::record::{Method, Reason, TenantShare, UnownedShare};
    use proptest::prelude::{any, prop, proptest};

    #[test]
    fn an_account_comes_back_from_its_row() {
        let labels = TenantLabels {
            tenant: "t".into(),
            namespace: Some("n".into()),
            pod: None,
            container: Some("c".into()),
        };
        let accounts = [
            Account::Tenant {
                holder: None,
                labels: labels.clone(),
                share: TenantShare::Active,
                method: Some(Method::Measured),
            },
            Account::Tenant {
                holder: None,
                labels: labels.clone(),
                share: TenantShare::HeldIdle,
                method: None,
            },
            Account::Cuda { holder: None, labels },
            Account::Unowned { share: UnownedShare::Unobserved, reason: Reason::MISSING },
            Account::Unowned { share: UnownedShare::Free, reason: Reason::NONE },
            Account::Instance,
            Account::CudaDevice,
        ];
        for account in accounts {
            assert_eq!(of_total(columns(&account)), Some(account));
        }
        assert_eq!(of_total(["", "", "", "", "", "", "novelty", "", ""]), None);
    }

    #[test]
    fn a_shorter_list_grows() {
        let mut amounts = vec![1];
        add(&mut amounts, &[2, 3]);
        assert_eq!(amounts, [3, 3]);
        add(&mut amounts, &[2_u128.wrapping_neg()]);
        assert_eq!(amounts, [1, 3]);
    }

    proptest! {
        #[test]
        fn amounts_come_back(amounts in prop::collection::vec(any::<u128>(), 0..20)) {
            let bytes = encode(&amounts);
            assert_eq!(decode(&bytes), Some(amounts));
            assert_eq!(decode(&[bytes, vec![0]].concat()), None);
        }
    }
}
