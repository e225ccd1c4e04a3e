//! What an instance is doing now, from the evidence of one tick.
//!
//! No dwell: the node says the class and since when, the collector decides how long is long enough.
//! Idle needs every signal low and a missing signal is `Unknown`; one contrary signal proves
//! `Active`. No I/O, no clock.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::Allocations;
use crate::model::ids::InstanceId;
use crate::model::readings::{DeviceReading, Health, InstanceReading};
use crate::model::units::{BootNs, Percent};
use crate::model::usage::{Class, InstanceView, LastLaunch};

/// Used memory at which an instance without a process counts as given back. The driver lists memory
/// that it keeps for itself as reserved, not as used; what remains on an idle device is a few MiB,
/// on an idle MIG instance up to about 40 MiB, while one CUDA context takes hundreds.
const GIVEN_BACK_BYTES: u64 = 64 * 1024 * 1024;

/// The list of processes is of now, the busy part of the driver's last sample period: a device that
/// was left a moment ago still reads busy, and is neither active nor provably idle.
const AFTERGLOW: (Class, &str) =
    (Class::Unknown, "no process is left, and the last sample still saw kernels");

/// What the configuration says about idleness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Without a source of allocations an instance without a process is never free.
    pub allocations: Allocations,
    /// Most used memory with which an instance without a process is free.
    pub given_back_bytes: u64,
}

/// What an instance is doing, why we say so, and on what evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub class: Class,
    /// One phrase for people.
    pub reason: &'static str,
    pub evidence: Evidence,
}

/// What the class was decided on; `None` where that source said nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    pub busy: Option<Percent>,
    pub memory_used_bytes: Option<u64>,
    /// Processes that the driver lists, resolved or not.
    pub processes: Option<u32>,
    /// Age of the newest launch of any holder; `None` also where one of them is not traced in full.
    pub last_launch_age_ns: Option<u64>,
    /// Of the whole device.
    pub power_mw: Option<u64>,
}

/// Since when each instance has had its class.
#[derive(Clone, Debug, Default)]
pub struct ClassHistory {
    current: BTreeMap<InstanceId, (Class, BootNs)>,
}

/// The class of one instance at `at`.
#[must_use]
pub fn classify(
    policy: &Policy,
    at: BootNs,
    device: &DeviceReading,
    instance: &InstanceReading,
    view: &InstanceView,
) -> Verdict {
    let evidence = Evidence::of(at, device, instance, view);
    let (class, reason) = down(device.health)
        .or_else(|| active(instance, view))
        .or_else(|| not_knowable(device, instance, view))
        .unwrap_or_else(|| idle(policy, &evidence, view));
    Verdict { class, reason, evidence }
}

fn down(health: Health) -> Option<(Class, &'static str)> {
    let reason = match health {
        Health::Ok | Health::Degraded | Health::Released => return None,
        Health::Hung => "the device does not answer",
        Health::Lost => "the device has fallen off the bus",
        Health::ResetRequired => "the device needs a reset",
    };
    Some((Class::Down, reason))
}

/// One contrary signal is enough, whatever else is missing.
fn active(instance: &InstanceReading, view: &InstanceView) -> Option<(Class, &'static str)> {
    if instance.busy.is_some_and(|it| it.get() > 0) {
        return Some(match &instance.processes {
            Some(listed) if listed.is_empty() => AFTERGLOW,
            _ => (Class::Active, "kernels ran in the last sample"),
        });
    }
    let launched = |it: u64| it > 0;
    view.holders
        .iter()
        .flatten()
        .any(|it| it.launches.is_some_and(launched))
        .then_some((Class::Active, "kernels were launched since the last reading"))
}

/// A signal that every kind of idleness needs is missing.
fn not_knowable(
    device: &DeviceReading,
    instance: &InstanceReading,
    view: &InstanceView,
) -> Option<(Class, &'static str)> {
    let reason = if device.health == Health::Released {
        "NVML was let go on request: nobody asks the device"
    } else if device.health == Health::Degraded {
        "the device answers only in part"
    } else if view.holders.is_none() {
        "the driver gives no process list"
    } else if instance.busy.is_none() {
        "the driver does not say whether kernels run"
    } else if instance.memory_used_bytes.is_none() {
        "the driver does not say how much memory is used"
    } else {
        return None;
    };
    Some((Class::Unknown, reason))
}

/// Every signal is there and none says that a kernel ran.
fn idle(policy: &Policy, evidence: &Evidence, view: &InstanceView) -> (Class, &'static str) {
    let given_back = evidence.memory_used_bytes.is_some_and(|it| it <= policy.given_back_bytes);
    let processes = evidence.processes.is_some_and(|it| it > 0);
    match (processes, given_back) {
        (true, _) if holds_memory(view, given_back) => (Class::MemoryHeld, held_reason(view)),
        (true, _) => (Class::HeldNoContext, "a process is there and holds no memory"),
        (false, false) => (Class::Unknown, "no process, memory not given back yet"),
        (false, true) => match policy.allocations {
            Allocations::None => (Class::Free, "no process, memory given back"),
            Allocations::Unknown => {
                (Class::Unknown, "no process, and no source says whether it is allocated")
            }
        },
    }
}

/// By what the driver lists for the processes; where it does not say, by the memory of the instance.
fn holds_memory(view: &InstanceView, given_back: bool) -> bool {
    let mut listed = view.holders.iter().flatten().map(|it| it.memory_bytes);
    listed.any(|it| it.is_some_and(|bytes| bytes > 0)) || !given_back
}

fn held_reason(view: &InstanceView) -> &'static str {
    let traced = view.unresolved_processes == 0
        && view.holders.iter().flatten().all(|it| it.last_launch != LastLaunch::Unknown);
    if traced {
        "memory held, no kernel ran and none was launched"
    } else {
        "memory held, no kernel ran; launches are not traced in full"
    }
}

// === impl Policy ===

impl Policy {
    #[must_use]
    pub fn new(allocations: Allocations) -> Self {
        Self { allocations, given_back_bytes: GIVEN_BACK_BYTES }
    }
}

// === impl Evidence ===

impl Evidence {
    fn of(
        at: BootNs,
        device: &DeviceReading,
        instance: &InstanceReading,
        view: &InstanceView,
    ) -> Self {
        Self {
            busy: instance.busy,
            memory_used_bytes: instance.memory_used_bytes,
            processes: instance
                .processes
                .as_ref()
                .map(|it| u32::try_from(it.len()).unwrap_or(u32::MAX)),
            last_launch_age_ns: newest_launch(view).map(|it| at.since(it)),
            power_mw: device.counters.power_mw,
        }
    }
}

fn newest_launch(view: &InstanceView) -> Option<BootNs> {
    if view.unresolved_processes > 0 {
        return None;
    }
    let mut newest = None;
    for holder in view.holders.as_ref()? {
        match holder.last_launch {
            LastLaunch::Unknown => return None,
            LastLaunch::Never => {}
            LastLaunch::At(at) => newest = newest.max(Some(at)),
        }
    }
    newest
}

// === impl ClassHistory ===

impl ClassHistory {
    /// Notes the class at `at` and gives the time since which it has held.
    pub fn record(&mut self, id: &InstanceId, class: Class, at: BootNs) -> BootNs {
        match self.current.get(id) {
            Some((known, since)) if *known == class => *since,
            _ => {
                self.current.insert(id.clone(), (class, at));
                at
            }
        }
    }

    /// Forgets instances that are no longer there: one that comes back begins anew.
    pub fn retain(&mut self, live: &BTreeSet<&InstanceId>) {
        self.current.retain(|id, _| live.contains(id));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Class, ClassHistory, Policy, Verdict, classify};
    use crate::attribution::{self, fixtures};
    use crate::config::Allocations;
    use crate::model::readings::{Health, Readings};
    use crate::model::units::{BootNs, Percent};

    const MIB: u64 = 1024 * 1024;

    fn verdict(allocations: Allocations, change: impl Fn(&mut Readings)) -> Verdict {
        let previous = fixtures::readings(1_000, 1);
        let mut next = fixtures::readings(2_000, 1);
        change(&mut next);
        let views = attribution::attribute(Some(&previous), &next);
        let device = &next.nvml.devices[&fixtures::device(0)];
        let instance = &device.instances[0];
        classify(&Policy::new(allocations), next.at, device, instance, &views[&instance.id])
    }

    /// The class of a device that is free but for `change`.
    fn check(change: impl Fn(&mut Readings), class: Class, reason: &str) {
        let found = verdict(Allocations::None, change);
        assert_eq!((found.class, found.reason), (class, reason));
    }

    fn health(readings: &mut Readings, health: Health) {
        readings.nvml.devices.get_mut(&fixtures::device(0)).unwrap().health = health;
    }

    #[test]
    fn without_processes() {
        check(|_| {}, Class::Free, "no process, memory given back");
        check(
            |it| fixtures::instance(it, 0).memory_used_bytes = Some(300 * MIB),
            Class::Unknown,
            "no process, memory not given back yet",
        );
        let found = verdict(Allocations::Unknown, |_| {});
        assert_eq!(found.class, Class::Unknown);
        assert_eq!(found.reason, "no process, and no source says whether it is allocated");
    }

    #[test]
    fn a_missing_signal_is_unknown_and_never_idle() {
        check(
            |it| fixtures::instance(it, 0).processes = None,
            Class::Unknown,
            "the driver gives no process list",
        );
        check(
            |it| fixtures::instance(it, 0).busy = None,
            Class::Unknown,
            "the driver does not say whether kernels run",
        );
        check(
            |it| fixtures::instance(it, 0).memory_used_bytes = None,
            Class::Unknown,
            "the driver does not say how much memory is used",
        );
        check(|it| health(it, Health::Degraded), Class::Unknown, "the device answers only in part");
    }

    #[test]
    fn one_contrary_signal_proves_activity() {
        check(
            |it| {
                let instance = fixtures::instance(it, 0);
                instance.busy = Percent::new(1);
                instance.processes = None;
            },
            Class::Active,
            "kernels ran in the last sample",
        );
        check(
            |it| {
                fixtures::hold(it, 0, 10, Some(500 * MIB));
                fixtures::trace(it, 10, 3);
                fixtures::instance(it, 0).busy = None;
            },
            Class::Active,
            "kernels were launched since the last reading",
        );
    }

    #[test]
    fn a_device_that_was_just_left_is_not_active() {
        check(
            |it| fixtures::instance(it, 0).busy = Percent::new(40),
            Class::Unknown,
            "no process is left, and the last sample still saw kernels",
        );
    }

    #[test]
    fn held_memory_without_kernels() {
        check(
            |it| {
                fixtures::hold(it, 0, 10, Some(500 * MIB));
                fixtures::trace(it, 10, 0);
            },
            Class::MemoryHeld,
            "memory held, no kernel ran and none was launched",
        );
        check(
            |it| fixtures::hold(it, 0, 10, Some(500 * MIB)),
            Class::MemoryHeld,
            "memory held, no kernel ran; launches are not traced in full",
        );
        check(
            |it| fixtures::hold(it, 0, 10, Some(0)),
            Class::HeldNoContext,
            "a process is there and holds no memory",
        );
    }

    #[test]
    fn a_device_that_is_down_is_down_whatever_it_says() {
        for (state, reason) in [
            (Health::Hung, "the device does not answer"),
            (Health::Lost, "the device has fallen off the bus"),
            (Health::ResetRequired, "the device needs a reset"),
        ] {
            let broken = |it: &mut Readings| {
                health(it, state);
                fixtures::instance(it, 0).busy = Percent::new(100);
            };
            check(broken, Class::Down, reason);
        }
    }

    #[test]
    fn a_device_that_nobody_asks_is_unknown_and_never_free() {
        check(
            |it| {
                health(it, Health::Released);
                fixtures::instance(it, 0).processes = None;
            },
            Class::Unknown,
            "NVML was let go on request: nobody asks the device",
        );
    }

    #[test]
    fn since_is_kept_while_the_class_holds() {
        let mut history = ClassHistory::default();
        let id = fixtures::id(0);
        assert_eq!(history.record(&id, Class::Free, BootNs(5)), BootNs(5));
        assert_eq!(history.record(&id, Class::Free, BootNs(9)), BootNs(5));
        assert_eq!(history.record(&id, Class::Active, BootNs(11)), BootNs(11));
        history.retain(&BTreeSet::new());
        assert_eq!(history.record(&id, Class::Active, BootNs(20)), BootNs(20));
    }
}
