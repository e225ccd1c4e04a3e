//! What a device looks like from outside: the side of libnvidia-ml. `None` = no such device.

use std::sync::atomic::Ordering;

use crate::clock;
use crate::node::{Life, Node};
use crate::ring::{BUCKET_NS, HISTORY, Ring, bucket_of};
use crate::slots::Usage;

const MIB: u64 = 1 << 20;

/// Exclusive parts: they sum to the total.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    pub total_bytes: u64,
    pub reserved_bytes: u64,
    pub used_bytes: u64,
    pub free_bytes: u64,
}

/// A process with a context on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    pub memory_bytes: u64,
}

/// One process's share of the device since the asker looked last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    pub pid: u32,
    /// Unix time in microseconds.
    pub timestamp_us: u64,
    pub sm_percent: u32,
}

impl Node {
    pub fn memory(&self, device: usize) -> Option<Memory> {
        let scenario = self.scenario()?;
        let gpu = scenario.gpus.get(device)?;
        let total_bytes = gpu.memory_mib * MIB;
        let reserved_bytes = gpu.reserved_mib * MIB;
        let has = |it: &Usage| it.memory_bytes.load(Ordering::Acquire) > 0;
        let slots = self.slots(device, has);
        let held: u64 = slots.map(|(slot, life)| self.held(slot, life, device)).sum();
        let used_bytes = held.min(total_bytes.saturating_sub(reserved_bytes));
        let free_bytes = total_bytes.saturating_sub(reserved_bytes + used_bytes);
        Some(Memory { total_bytes, reserved_bytes, used_bytes, free_bytes })
    }

    /// The part of the sample period that is just over in which a kernel ran.
    pub fn busy_percent(&self, device: usize) -> Option<u32> {
        let scenario = self.scenario()?;
        scenario.gpus.get(device)?;
        let buckets = (scenario.sample_ms * 1_000_000 / BUCKET_NS).clamp(1, HISTORY);
        let now = bucket_of(clock::boot_ns());
        let ring = &self.shared().devices[device].busy;
        Some(percent(busy(ring, now.saturating_sub(buckets), now), buckets * BUCKET_NS))
    }

    pub fn power_mw(&self, device: usize) -> Option<u64> {
        let busy = u64::from(self.busy_percent(device)?);
        let scenario = self.scenario()?;
        let gpu = scenario.gpus.get(device)?;
        Some(gpu.power_floor_mw + gpu.power_max_mw.saturating_sub(gpu.power_floor_mw) * busy / 100)
    }

    /// Since the node exists: the floor all the time, and the rest while a kernel ran.
    pub fn energy_mj(&self, device: usize) -> Option<u64> {
        let scenario = self.scenario()?;
        let gpu = scenario.gpus.get(device)?;
        if let Some(counted) = gpu.energy_mj {
            return Some(counted);
        }
        let state = &self.shared().devices[device];
        let now = clock::boot_ns();
        let queued = state.free_at_ns.load(Ordering::Acquire).saturating_sub(now);
        let ran = state.launched_ns.load(Ordering::Acquire).saturating_sub(queued);
        let exists = now.saturating_sub(self.shared().created_ns.load(Ordering::Relaxed));
        let dynamic = gpu.power_max_mw.saturating_sub(gpu.power_floor_mw);
        let energy = millijoules(gpu.power_floor_mw, exists) + millijoules(dynamic, ran);
        Some(state.energy_mj.fetch_max(energy, Ordering::AcqRel).max(energy))
    }

    /// Living processes with a context here that are visible from the asker's PID namespace.
    pub fn processes(&self, device: usize) -> Option<Vec<Process>> {
        let scenario = self.scenario()?;
        scenario.gpus.get(device)?;
        if !scenario.pids_visible {
            return Some(Vec::new());
        }
        let listed = |(slot, life): (usize, Life)| match life {
            Life::Alive(pid) if pid != 0 => {
                let usage = &self.shared().usage[slot][device];
                let memory_bytes = usage.memory_bytes.load(Ordering::Acquire);
                Some(Process { pid, memory_bytes })
            }
            _ => None,
        };
        let has = |it: &Usage| it.contexts.load(Ordering::Acquire) > 0;
        Some(self.slots(device, has).filter_map(listed).collect())
    }

    /// One sample for each process that ran a kernel after `after_us` (Unix time in microseconds; 0 =
    /// as far back as the driver remembers). It can name a process that is gone.
    pub fn process_samples(&self, device: usize, after_us: u64) -> Option<Vec<Sample>> {
        self.scenario()?.gpus.get(device)?;
        let now = bucket_of(clock::boot_ns());
        let epoch_us = self.shared().epoch_offset_ns.load(Ordering::Relaxed) / 1_000;
        let after_ns = after_us.saturating_sub(epoch_us) * 1_000;
        // The first bucket that ends after `after_us`.
        let first = bucket_of(after_ns).max(now.saturating_sub(HISTORY));
        let timestamp_us = |bucket: u64| epoch_us + (bucket + 1) * BUCKET_NS / 1_000;
        let sample = |(slot, life): (usize, Life)| {
            let ring = &self.shared().busy[device][slot];
            let last = (first..now).rev().find(|it| ring.busy_ns(*it) > 0)?;
            let pid = match life {
                Life::Alive(0) => self.shared().slots[slot].pid.load(Ordering::Acquire),
                Life::Alive(pid) | Life::Dead { pid, .. } => pid,
                Life::Unused => return None,
            };
            let sm_percent = percent(busy(ring, first, now), (now - first) * BUCKET_NS);
            Some(Sample { pid, timestamp_us: timestamp_us(last), sm_percent })
        };
        let has = |it: &Usage| it.launches.load(Ordering::Relaxed) > 0;
        Some(self.slots(device, has).filter_map(sample).collect())
    }

    /// Nanoseconds since the machine started.
    pub fn boot_ns(&self) -> u64 {
        clock::boot_ns()
    }

    /// Unix time in microseconds.
    pub fn unix_us(&self) -> u64 {
        clock::real_ns() / 1_000
    }

    fn held(&self, slot: usize, life: Life, device: usize) -> u64 {
        match life {
            Life::Dead { since_ns, .. } if !self.keeps(since_ns) => 0,
            _ => self.shared().usage[slot][device].memory_bytes.load(Ordering::Acquire),
        }
    }
}

/// Busy nanoseconds of the buckets `[from, to)`.
fn busy(ring: &Ring, from: u64, to: u64) -> u64 {
    (from..to).map(|it| ring.busy_ns(it)).sum()
}

/// Rounded up: what ran at all does not show as nothing.
fn percent(part: u64, whole: u64) -> u32 {
    u32::try_from((part * 100).div_ceil(whole.max(1)).min(100)).expect("at most 100")
}

fn millijoules(power_mw: u64, nanoseconds: u64) -> u64 {
    let energy = u128::from(power_mw) * u128::from(nanoseconds) / 1_000_000_000;
    u64::try_from(energy).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use crate::node::Node;
    use crate::scenario::{Scenario, State};
    use std::time::Duration;

    const MIB: u64 = 1 << 20;

    fn node() -> (tempfile::TempDir, Node) {
        let folder = tempfile::tempdir().unwrap();
        Scenario::with_gpus(2).write(folder.path()).unwrap();
        let node = Node::open(folder.path()).unwrap();
        (folder, node)
    }

    #[test]
    fn a_device_is_busy_because_a_process_launched() {
        let (_folder, node) = node();
        let seat = node.join().unwrap();
        node.open_context(seat, 1).unwrap();
        assert_eq!(node.busy_percent(1), Some(0));
        assert_eq!(node.process_samples(1, 0).unwrap(), []);
        let before = node.energy_mj(1).unwrap();
        for _ in 0..40 {
            node.launch(seat, 1, Duration::from_millis(10));
        }
        node.synchronize(seat, 1);
        assert!(node.busy_percent(1).unwrap() > 80);
        assert_eq!(node.busy_percent(0), Some(0));
        let samples = node.process_samples(1, 0).unwrap();
        assert_eq!(samples.len(), 1);
        assert_eq!(samples[0].pid, std::process::id());
        // 400 ms at 700 W are 280 J.
        let drawn = node.energy_mj(1).unwrap() - before;
        assert!((270_000..320_000).contains(&drawn), "{drawn} mJ");
    }

    #[test]
    fn a_sample_is_told_once() {
        let (_folder, node) = node();
        let seat = node.join().unwrap();
        node.launch(seat, 0, Duration::from_millis(120));
        std::thread::sleep(Duration::from_millis(250));
        let samples = node.process_samples(0, 0).unwrap();
        assert_eq!(node.process_samples(0, samples[0].timestamp_us).unwrap(), []);
    }

    #[test]
    fn memory_is_counted_and_bounded() {
        let (_folder, node) = node();
        let seat = node.join().unwrap();
        let empty = node.memory(0).unwrap();
        assert_eq!(empty.used_bytes, 0);
        node.open_context(seat, 0).unwrap();
        node.allocate(seat, 0, 1_000 * MIB).unwrap();
        assert_eq!(node.memory(0).unwrap().used_bytes, 1_400 * MIB);
        assert_eq!(node.processes(0).unwrap()[0].memory_bytes, 1_400 * MIB);
        let left = node.memory(0).unwrap().free_bytes;
        node.allocate(seat, 0, left + 1).unwrap_err();
        node.close_context(seat, 0);
        assert_eq!(node.memory(0), Some(empty));
        assert_eq!(node.processes(0).unwrap(), []);
    }

    #[test]
    fn a_changed_scenario_is_read_again() {
        let (folder, node) = node();
        let mut scenario = Scenario::with_gpus(2);
        scenario.gpus[0].state = State::Lost;
        scenario.write(folder.path()).unwrap();
        assert_eq!(node.scenario().unwrap().gpus[0].state, State::Lost);
        std::fs::write(folder.path().join(crate::scenario::NAME), "gpus = 3").unwrap();
        assert!(node.scenario().is_none());
    }
}
