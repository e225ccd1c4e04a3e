//! Call counts per process, turned into activities per holder.
//!
//! The kernel counts running totals per process; the ledger wants what each holder did in a span.
//! Every count ends in exactly one activity: those of a process that nobody could resolve go to its
//! user, and a process that has exited counts once more with its final totals.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::ids::{DeviceId, Holder, HolderKind, ProcessId};
use crate::model::readings::{CudaCounts, CudaProcess, Readings};
use crate::model::units::BootNs;
use crate::model::usage::CudaActivity;

/// What has been counted since the last `close`. Bounded by the processes that the kernel maps hold.
#[derive(Clone, Debug, Default)]
pub struct CudaMeter {
    /// Start of the open span; `None` before the first tick.
    since: Option<BootNs>,
    /// The last totals of every process that was seen.
    seen: BTreeMap<ProcessId, Seen>,
    open: BTreeMap<Holder, Open>,
}

#[derive(Clone, Debug)]
struct Seen {
    holder: Holder,
    counts: CudaCounts,
}

#[derive(Clone, Debug, Default)]
struct Open {
    counts: CudaCounts,
    devices: Devices,
}

/// Where a holder's processes were listed in a span.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Devices {
    #[default]
    None,
    One(DeviceId),
    Several,
}

// === impl CudaMeter ===

impl CudaMeter {
    /// Takes in what each process did since it was last seen.
    pub fn advance(&mut self, previous: Option<&Readings>, next: &Readings) {
        self.since.get_or_insert(previous.map_or(next.at, |it| it.at));
        for (id, process) in &next.cuda.processes {
            self.count(*id, process, next.holders.get(id));
        }
        // A tracer that is on lists every process that has not exited.
        if next.cuda.tracing.on {
            self.seen.retain(|id, _| next.cuda.processes.contains_key(id));
        }
        for readings in previous.into_iter().chain([next]) {
            self.note_devices(readings);
        }
    }

    /// What was counted since the last `close`.
    pub fn open(&self) -> impl Iterator<Item = (&Holder, &CudaCounts)> {
        self.open.iter().map(|(holder, open)| (holder, &open.counts))
    }

    /// Whether something was counted, and the open span is at least `length` long.
    #[must_use]
    pub fn is_due(&self, at: BootNs, length: Duration) -> bool {
        let open = self.since.map_or(0, |since| at.since(since));
        !self.open.is_empty() && u128::from(open) >= length.as_nanos()
    }

    /// Ends the span at `at`: one activity per holder that made a call in it.
    pub fn close(&mut self, at: BootNs) -> Vec<CudaActivity> {
        let Some(start) = self.since.filter(|it| *it < at) else { return Vec::new() };
        self.since = Some(at);
        std::mem::take(&mut self.open)
            .into_iter()
            .map(|(holder, open)| CudaActivity {
                holder,
                start,
                end: at,
                device: open.devices.only(),
                counts: open.counts,
            })
            .collect()
    }

    fn count(&mut self, id: ProcessId, process: &CudaProcess, holder: Option<&Holder>) {
        let known = self.seen.get(&id);
        let holder =
            holder.or(known.map(|it| &it.holder)).cloned().unwrap_or_else(|| user(process.uid));
        let before = known.map(|it| it.counts).unwrap_or_default();
        let delta = added(&before, &process.counts);
        if !delta.is_zero() {
            let open = self.open.entry(holder.clone()).or_default();
            open.counts = open.counts.plus(&delta);
        }
        self.seen.insert(id, Seen { holder, counts: process.counts });
    }

    fn note_devices(&mut self, readings: &Readings) {
        for (device, reading) in &readings.nvml.devices {
            let processes = reading.instances.iter().filter_map(|it| it.processes.as_ref());
            for id in processes.flatten().filter_map(|it| it.process) {
                let holder = readings.holders.get(&id).or(self.seen.get(&id).map(|it| &it.holder));
                if let Some(open) = holder.and_then(|it| self.open.get_mut(it)) {
                    open.devices.note(device);
                }
            }
        }
    }
}

/// What came on top. Totals go back only where the tracer had to start anew, and then all of them
/// are new.
fn added(before: &CudaCounts, now: &CudaCounts) -> CudaCounts {
    let went_back = !before.since(now).is_zero();
    if went_back { *now } else { now.since(before) }
}

/// The last resort, which always exists: a process belongs to the user who runs it.
fn user(uid: u32) -> Holder {
    let id = uid.to_string();
    Holder {
        kind: HolderKind::User,
        tenant: format!("uid:{id}").into(),
        id: id.into(),
        namespace: None,
        pod: None,
        container: None,
    }
}

// === impl Devices ===

impl Devices {
    fn note(&mut self, device: &DeviceId) {
        *self = match std::mem::take(self) {
            Self::None => Self::One(device.clone()),
            Self::One(known) if known == *device => Self::One(known),
            Self::One(_) | Self::Several => Self::Several,
        };
    }

    fn only(self) -> Option<DeviceId> {
        match self {
            Self::One(device) => Some(device),
            Self::None | Self::Several => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{CudaMeter, user};
    use crate::attribution::fixtures;
    use crate::model::ids::Holder;
    use crate::model::readings::Readings;
    use crate::model::units::BootNs;

    /// Ticks a second apart, each changed by a step; gives (holder, launches, on one device).
    fn meter(ticks: &[&dyn Fn(&mut Readings)]) -> Vec<(Holder, u64, bool)> {
        let mut meter = CudaMeter::default();
        let mut previous = None;
        let mut at = 0;
        for change in ticks {
            at += 1_000;
            let mut next = fixtures::readings(at, 2);
            change(&mut next);
            meter.advance(previous.as_ref(), &next);
            previous = Some(next);
        }
        meter
            .close(BootNs(at + 1))
            .into_iter()
            .map(|it| (it.holder, it.counts.launches(), it.device.is_some()))
            .collect()
    }

    fn check(ticks: &[&dyn Fn(&mut Readings)], expected: &[(&str, u64, bool)]) {
        let expected: Vec<_> = expected
            .iter()
            .map(|(name, launches, one)| (fixtures::holder(name), *launches, *one))
            .collect();
        assert_eq!(meter(ticks), expected);
    }

    #[test]
    fn differences_of_totals() {
        check(
            &[
                &|it| {
                    fixtures::hold(it, 0, 10, None);
                    fixtures::trace(it, 10, 5);
                },
                &|it| {
                    fixtures::hold(it, 0, 10, None);
                    fixtures::trace(it, 10, 7);
                },
            ],
            &[("unit-10", 7, true)],
        );
    }

    #[test]
    fn the_last_counts_of_a_process_belong_to_who_it_was() {
        check(
            &[
                &|it| {
                    fixtures::hold(it, 0, 10, None);
                    fixtures::trace(it, 10, 5);
                },
                // Gone from /proc and from the driver's list; then seen again by mistake.
                &|it| fixtures::trace(it, 10, 9),
                &|it| fixtures::trace(it, 10, 9),
            ],
            &[("unit-10", 9, true)],
        );
    }

    #[test]
    fn a_restarted_tracer_counts_from_zero() {
        let off = |it: &mut Readings| it.cuda.tracing.on = false;
        let launch = |count| {
            move |it: &mut Readings| {
                fixtures::hold(it, 0, 10, None);
                fixtures::hold(it, 1, 10, None);
                fixtures::trace(it, 10, count);
            }
        };
        check(&[&launch(5), &off, &launch(2)], &[("unit-10", 7, false)]);
        check(&[&launch(5), &off, &launch(6)], &[("unit-10", 6, false)]);
    }

    #[test]
    fn a_process_without_a_holder_belongs_to_its_user() {
        let found = meter(&[&|it| fixtures::trace(it, 10, 5)]);
        assert_eq!(found, [(user(1_000), 5, false)]);
    }

    #[test]
    fn an_empty_span_closes_nothing() {
        let mut meter = CudaMeter::default();
        let mut next = fixtures::readings(1_000, 1);
        fixtures::trace(&mut next, 10, 5);
        meter.advance(None, &next);
        assert!(meter.close(BootNs(1_000)).is_empty());
        assert!(meter.is_due(BootNs(2_000), Duration::from_nanos(1_000)));
        assert!(!meter.is_due(BootNs(1_500), Duration::from_nanos(1_000)));
        assert_eq!(meter.close(BootNs(2_000))[0].counts.launches(), 5);
        assert!(!meter.is_due(BootNs(9_000), Duration::from_nanos(1_000)));
    }
}
