//! The node's clocks. The only place in the agent that reads them.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::model::units::BootNs;

/// CLOCK_BOOTTIME: runs on through suspend, and is what the kernel programs stamp with.
#[must_use]
pub fn boot() -> BootNs {
    BootNs(nanoseconds(ClockId::CLOCK_BOOTTIME))
}

/// CLOCK_REALTIME in Unix nanoseconds. Evidence for the collector, never a duration here.
#[must_use]
pub fn real_ns() -> i64 {
    i64::try_from(nanoseconds(ClockId::CLOCK_REALTIME)).unwrap_or(i64::MAX)
}

/// CPU time that all threads of a process have used, up to the scheduler's last tick for those that
/// run now; `None` = there is no such process.
#[must_use]
pub fn process_cpu_ns(tgid: u32) -> Option<u64> {
    let process = nix::unistd::Pid::from_raw(i32::try_from(tgid).ok()?);
    let clock = nix::time::clock_getcpuclockid(process).ok()?;
    let used = clock_gettime(clock).ok()?;
    let seconds = u64::try_from(used.tv_sec()).ok()?;
    Some(seconds * 1_000_000_000 + u64::try_from(used.tv_nsec()).ok()?)
}

/// CPU time of this thread, exactly.
#[must_use]
pub fn thread_cpu_ns() -> u64 {
    nanoseconds(ClockId::CLOCK_THREAD_CPUTIME_ID)
}

/// The time of day, for people, that it is after `wait`.
#[must_use]
pub fn utc_in(wait: Duration) -> String {
    let seconds = nanoseconds(ClockId::CLOCK_REALTIME) / 1_000_000_000 + wait.as_secs();
    let (minutes, second) = (seconds / 60, seconds % 60);
    format!("{:02}:{:02}:{second:02} UTC", minutes / 60 % 24, minutes % 60)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock).expect("Linux has this clock since 2.6.39");
    let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec()).unwrap_or(0)
}
