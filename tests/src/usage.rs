//! What must hold for every answer of the ledger.

use proto::usage::v1::{GetUsageResponse, Nanoseconds};

/// The 128 bits of a time.
pub fn nanoseconds(time: Nanoseconds) -> u128 {
    u128::from(time.high) << 64 | u128::from(time.low)
}

/// Wall time of all instances, after checking that everything in the answer sums to it exactly.
#[track_caller]
pub fn conserved_wall(usage: &GetUsageResponse) -> u128 {
    let tenants = usage.tenants.iter().flat_map(|it| [it.active, it.held_idle, it.held_unknown]);
    let unowned = usage.unowned.iter().map(|it| it.time);
    let sum: u128 = tenants.chain(unowned).flatten().map(nanoseconds).sum();
    let wall = usage.wall.map_or(0, nanoseconds);
    assert_eq!(sum, wall, "{usage:?}");
    wall
}
