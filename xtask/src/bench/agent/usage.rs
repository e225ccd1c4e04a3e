//! What a process uses of the machine.

use std::time::Duration;

use anyhow::Context;
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// Of one window, or of several.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Usage {
    /// Of one core.
    pub(super) cpu_percent: f64,
    pub(super) resident_mib: f64,
    /// Since the process began.
    pub(super) highest_mib: f64,
}

impl Usage {
    /// Of the span that is just over, at whose beginning the process had used `before`.
    pub(super) fn since(pid: u32, before: Duration, span: Duration) -> anyhow::Result<Self> {
        let used = cpu_time(pid)?.saturating_sub(before);
        let cpu_percent = used.as_secs_f64() / span.as_secs_f64() * 100.0;
        let path = format!("/proc/{pid}/status");
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let mib = |name: &str| {
            let line = text.lines().find_map(|it| it.strip_prefix(name));
            let kib = line.and_then(|it| it.trim().trim_end_matches(" kB").parse::<u32>().ok());
            kib.map(|it| f64::from(it) / 1024.0).with_context(|| format!("no {name} in {path}"))
        };
        Ok(Self { cpu_percent, resident_mib: mib("VmRSS:")?, highest_mib: mib("VmHWM:")? })
    }

    /// Each figure's own.
    pub(super) fn median(windows: &[Self]) -> Self {
        let middle = |figure: fn(&Self) -> f64| {
            let mut all: Vec<f64> = windows.iter().map(figure).collect();
            all.sort_by(f64::total_cmp);
            all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
        };
        Self {
            cpu_percent: middle(|it| it.cpu_percent),
            resident_mib: middle(|it| it.resident_mib),
            highest_mib: middle(|it| it.highest_mib),
        }
    }
}

/// Of all threads of a process, those that have ended too.
pub(super) fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let process = Pid::from_raw(i32::try_from(pid).context("a PID is small")?);
    let clock = clock_getcpuclockid(process).context("the process has ended")?;
    let used = clock_gettime(clock).context("the process has ended")?;
    Ok(Duration::from(used))
}

#[cfg(test)]
mod tests {
    use super::{Usage, cpu_time};

    #[test]
    fn a_median_is_of_each_figure() {
        let usage =
            |cpu_percent, resident_mib| Usage { cpu_percent, resident_mib, highest_mib: 1.0 };
        let median = Usage::median(&[usage(3.0, 7.0), usage(1.0, 9.0), usage(2.0, 8.0)]);
        assert_eq!(median, usage(2.0, 8.0));
    }

    #[test]
    fn this_process_uses_time() {
        let before = cpu_time(std::process::id()).unwrap();
        let sum: u64 = (0..2_000_000_u64).map(|it| it ^ (it >> 3)).fold(0, u64::wrapping_add);
        assert_ne!(sum, 1);
        assert!(cpu_time(std::process::id()).unwrap() >= before);
    }
}
