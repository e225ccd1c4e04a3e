//! How much of its time each process may lose, so that each keeps its budget and the node its own.

/// The largest limit, at most `budget`, under which the shares of all processes together are at most
/// `node`. Shares below it are untouched.
pub(crate) fn each(mut shares: Vec<u64>, budget: u64, node: u64) -> u64 {
    shares.sort_unstable();
    let (mut left, mut count) = (node, u64::try_from(shares.len()).unwrap_or(u64::MAX));
    for share in shares {
        let fair = left / count.max(1);
        if share >= fair.min(budget) {
            return fair.min(budget).max(1);
        }
        left -= share;
        count -= 1;
    }
    budget.max(1)
}

#[cfg(test)]
mod tests {
    use super::each;
    use proptest::prelude::*;

    #[test]
    fn the_node_binds_only_where_many_are_hot() {
        assert_eq!(each(vec![], 10_000, 20_000), 10_000);
        assert_eq!(each(vec![500_000], 10_000, 20_000), 10_000);
        assert_eq!(each(vec![500_000; 4], 10_000, 20_000), 5_000);
        assert_eq!(each(vec![2_000, 500_000, 400_000, 300_000], 10_000, 20_000), 6_000);
    }

    proptest! {
        #[test]
        fn all_together_keep_the_budget_of_the_node(
            shares in prop::collection::vec(0_u64..1_000_000, 0..40),
            budget in 1_000_u64..50_000,
            cpus in 1_u64..16,
        ) {
            let limit = each(shares.clone(), budget, budget * cpus);
            prop_assert!(limit <= budget);
            let sum: u64 = shares.iter().map(|it| (*it).min(limit)).sum();
            prop_assert!(sum <= budget * cpus);
        }
    }
}
