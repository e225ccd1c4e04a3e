//! The clocks of the simulated driver.

use nix::time::{ClockId, clock_gettime};

/// CLOCK_BOOTTIME in nanoseconds: one time for every process that maps the region.
pub(crate) fn boot_ns() -> u64 {
    nanoseconds(ClockId::CLOCK_BOOTTIME)
}

/// CLOCK_REALTIME in nanoseconds.
pub(crate) fn real_ns() -> u64 {
    nanoseconds(ClockId::CLOCK_REALTIME)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock).expect("Linux has this clock since 2.6.39");
    let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec()).unwrap_or(0)
}
