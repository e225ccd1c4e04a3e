//! What a hit costs on this machine: measured in this process, on functions of its own.
//!
//! The price of a trap differs by a factor of twenty between machines, and by as much between
//! instructions. Nothing is assumed where it can be measured.

pub(crate) mod driver;

/// The middle one; 0 of none.
fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

/// Nanoseconds that a hit adds to a call, from rounds of `calls` calls with it and without.
fn cost(with: Vec<u64>, without: Vec<u64>, calls: u32) -> u64 {
    median(with).saturating_sub(median(without)) / u64::from(calls.max(1))
}

#[cfg(test)]
mod tests {
    use super::cost;

    #[test]
    fn a_disturbed_round_does_not_count() {
        assert_eq!(cost(vec![2_100, 90_000, 2_050], vec![50, 50, 7_000], 10), 205);
        assert_eq!(cost(vec![10], vec![20], 10), 0);
    }
}
