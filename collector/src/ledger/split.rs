//! Exact division of integers. Pure.

/// Splits `total` in proportion to `weights`, in integers that sum to `total` exactly (largest
/// remainder; ties go to the earlier index). Equal parts when every weight is zero; empty for no
/// weights.
#[must_use]
pub fn split(total: u128, weights: &[u64]) -> Vec<u128> {
    let sum: u128 = weights.iter().map(|it| u128::from(*it)).sum();
    if weights.len() <= 1 || sum == 0 {
        return equal(total, weights.len());
    }
    // By quotient and remainder, so that no product exceeds 128 bits.
    let (whole, rest) = (total / sum, total % sum);
    let exact = |weight: u64| multiply(rest, weight, sum);
    let mut parts: Vec<u128> =
        weights.iter().map(|it| whole * u128::from(*it) + exact(*it).0).collect();
    let missing = total - parts.iter().sum::<u128>();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|it| std::cmp::Reverse(exact(weights[*it]).1));
    for index in order.into_iter().take(usize::try_from(missing).unwrap_or(usize::MAX)) {
        parts[index] += 1;
    }
    parts
}

/// `rest * weight` divided by `sum`: quotient and remainder. `rest < sum`, and `sum` is a sum of at
/// most a few hundred `u64`, so it has at most 73 bits.
fn multiply(rest: u128, weight: u64, sum: u128) -> (u128, u128) {
    let (high, low) = (weight >> 32, weight & u64::from(u32::MAX));
    let upper = rest * u128::from(high);
    let middle = ((upper % sum) << 32) + rest * u128::from(low);
    (((upper / sum) << 32) + middle / sum, middle % sum)
}

fn equal(total: u128, parts: usize) -> Vec<u128> {
    let count = u128::try_from(parts).expect("a length fits 128 bits");
    (0..count).map(|it| total / count + u128::from(it < total % count)).collect()
}

/// Cuts amounts that sum to `spans.iter().sum()` into one row per span: each row sums to its span, each
/// column to its amount, both exactly.
#[must_use]
pub fn cut(amounts: &[u64], spans: &[u64]) -> Vec<Vec<u64>> {
    let mut left = amounts.to_vec();
    let mut rows = Vec::with_capacity(spans.len());
    for span in spans {
        let row: Vec<u64> = split(u128::from(*span), &left)
            .into_iter()
            .map(|it| u64::try_from(it).expect("a part is not larger than its span"))
            .collect();
        for (left, part) in left.iter_mut().zip(&row) {
            *left -= part;
        }
        rows.push(row);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::{cut, split};
    use proptest::prelude::{any, prop, proptest};

    #[test]
    fn split_follows_the_weights() {
        assert_eq!(split(10, &[1, 1, 1]), [4, 3, 3]);
        assert_eq!(split(10, &[3, 1]), [8, 2]);
        assert_eq!(split(7, &[0, 0]), [4, 3]);
        assert_eq!(split(7, &[5]), [7]);
        assert!(split(7, &[]).is_empty());
    }

    #[test]
    fn cut_keeps_both_sums() {
        assert_eq!(cut(&[30, 30], &[20, 40]), [[10, 10], [20, 20]]);
        assert_eq!(cut(&[1, 1, 1], &[2, 1]), [[1, 1, 0], [0, 0, 1]]);
    }

    proptest! {
        #[test]
        fn split_conserves(total in any::<u128>(), weights in prop::collection::vec(any::<u64>(), 1..20)) {
            let parts = split(total, &weights);
            assert_eq!(parts.len(), weights.len());
            assert_eq!(parts.iter().sum::<u128>(), total);
        }

        #[test]
        fn cut_conserves_rows_and_columns(
            amounts in prop::collection::vec(0u64..1_000_000, 1..12),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        ) {
            let span = amounts.iter().sum::<u64>();
            let mut at: Vec<u64> = cuts.iter().map(|it| it.index(1_000) as u64 * span / 1_000).collect();
            at.extend([0, span]);
            at.sort_unstable();
            let spans: Vec<u64> = at.windows(2).map(|it| it[1] - it[0]).collect();
            let rows = cut(&amounts, &spans);
            for (row, span) in rows.iter().zip(&spans) {
                assert_eq!(row.iter().sum::<u64>(), *span);
            }
            for (column, amount) in amounts.iter().enumerate() {
                assert_eq!(rows.iter().map(|it| it[column]).sum::<u64>(), *amount);
            }
        }
    }
}
