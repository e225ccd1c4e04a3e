//! The collector's clocks. The only place in the collector that reads them.

use nix::time::{ClockId, clock_gettime};

/// CLOCK_BOOTTIME nanoseconds: for every age and deadline. Runs on through suspend, never steps.
#[must_use]
pub fn boot_ns() -> u64 {
    nanoseconds(ClockId::CLOCK_BOOTTIME)
}

/// CLOCK_REALTIME in Unix nanoseconds: dates what the ledger keeps, never a duration.
#[must_use]
pub fn real_ns() -> u64 {
    nanoseconds(ClockId::CLOCK_REALTIME)
}

/// Processor time of this process so far, in nanoseconds.
#[must_use]
pub fn process_cpu_ns() -> u64 {
    nanoseconds(ClockId::CLOCK_PROCESS_CPUTIME_ID)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock).expect("Linux has this clock since 2.6.39");
    let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec()).unwrap_or(0)
}
