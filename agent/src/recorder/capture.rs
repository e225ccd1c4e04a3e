//! What a recording says of one tick after the other. Values in, values out: no call, no file.

use std::collections::{BTreeMap, BTreeSet};

use recording::change::difference;
use recording::{Device, Recorded, Step};
use toml::Table;

use crate::model::ids::DeviceId;
use crate::model::readings::{DeviceReading, Health, NvmlReadings, NvmlState};
use crate::samplers::nvml::answers::{Call, Report, Sample};

use super::hear::hear;
use super::names::Names;

/// A device that does not answer hangs for longer than anybody waits.
const HANG_MS: u64 = 86_400_000;
/// Errors of one device that are told.
const MOST_XIDS: usize = 1_024;

/// Codes of `nvml.h`.
const SUCCESS: u32 = 0;
const NOT_FOUND: u32 = 6;
const DRIVER_NOT_LOADED: u32 = 9;
const LIB_RM_VERSION_MISMATCH: u32 = 18;
const UNKNOWN: u32 = 999;

/// What one tick adds to the file.
#[derive(Debug, Default)]
pub(crate) struct Page {
    /// Devices that are seen for the first time.
    pub(crate) gpus: Vec<Device>,
    pub(crate) step: Step,
}

/// What the file says so far.
#[derive(Debug)]
pub(crate) struct Capture {
    names: Names,
    /// Unix time in microseconds.
    began_us: u64,
    devices: BTreeMap<DeviceId, Seen>,
    nvml_init_fails: Option<u32>,
}

/// One device: what it is now, and what the file has of it.
#[derive(Debug)]
struct Seen {
    index: usize,
    device: Device,
    written: Table,
    xids: BTreeMap<u64, u64>,
    /// The last batch: drivers tell of some of it again.
    samples: BTreeSet<(u32, u64, u32)>,
}

// === impl Capture ===

impl Capture {
    pub(crate) fn new(with_identities: bool, began_us: u64) -> Self {
        let names = Names::new(with_identities);
        Self { names, began_us, devices: BTreeMap::new(), nvml_init_fails: None }
    }

    /// What `heard` and `readings` say of the tick that began then.
    pub(crate) fn tick(
        &mut self,
        at_ms: u64,
        readings: &NvmlReadings,
        heard: &[(DeviceId, Report)],
    ) -> Page {
        let mut page = Page { step: Step { at_ms, ..Step::default() }, ..Page::default() };
        page.step.nvml_init_fails = self.change_of_library(&readings.state);
        let known = self.devices.len();
        self.meet(readings, heard);
        // In the order of the devices, so that stand-ins do not tell which thread was first.
        let mut heard: Vec<_> = heard.iter().collect();
        heard.sort_by_key(|(id, _)| self.devices.get(id).map(|it| it.index));
        for (id, report) in heard {
            let Some(seen) = self.devices.get_mut(id) else { continue };
            hear(&mut seen.device.recorded, report, &mut self.names);
            seen.device.hang_ms = 0;
            if report.plan.lists_processes {
                let samples = report.answers.samples.as_deref().unwrap_or_default();
                let rows = seen.fresh(samples, self.began_us, &mut self.names);
                if !rows.is_empty() {
                    page.step.samples.insert(seen.index.to_string(), rows);
                }
            }
        }
        for (id, reading) in &readings.devices {
            if let Some(seen) = self.devices.get_mut(id) {
                seen.look(reading);
            }
        }
        self.write(known, at_ms, &mut page);
        page
    }

    /// `None` where it is as it was.
    fn change_of_library(&mut self, state: &NvmlState) -> Option<u32> {
        let now = match state {
            // Nobody can ask a recorder to let go.
            NvmlState::Ok | NvmlState::Released(_) => None,
            NvmlState::Replaced(_) => Some(LIB_RM_VERSION_MISMATCH),
            NvmlState::Absent(_) => Some(DRIVER_NOT_LOADED),
            NvmlState::Failed(_) => Some(UNKNOWN),
        };
        let before = std::mem::replace(&mut self.nvml_init_fails, now);
        (before != now).then_some(now.unwrap_or(SUCCESS))
    }

    /// Gives new devices their places: in the driver's order where it says which that is.
    fn meet(&mut self, readings: &NvmlReadings, heard: &[(DeviceId, Report)]) {
        let index = |id: &DeviceId| {
            let identities = heard.iter().filter(|(it, _)| it == id);
            let mut indices = identities.filter_map(|(_, it)| it.identity.as_ref()?.index);
            indices.next().unwrap_or(u32::MAX)
        };
        let mut new: Vec<_> =
            readings.devices.keys().filter(|it| !self.devices.contains_key(*it)).collect();
        new.sort_by_key(|id| index(id));
        for id in new {
            let device = Device { uuid: self.names.device(&id.0), ..Device::default() };
            let seen = Seen {
                index: self.devices.len(),
                device,
                written: Table::new(),
                xids: BTreeMap::new(),
                samples: BTreeSet::new(),
            };
            self.devices.insert(id.clone(), seen);
        }
    }

    /// Devices from `known` on are new. One that comes later was not to be found before.
    fn write(&mut self, known: usize, at_ms: u64, page: &mut Page) {
        let mut in_order: Vec<_> = self.devices.values_mut().collect();
        in_order.sort_by_key(|it| it.index);
        for seen in in_order {
            let is_new = seen.index >= known;
            if is_new && at_ms == 0 {
                page.gpus.push(seen.device.clone());
                seen.written = table(&seen.device);
                continue;
            }
            if is_new {
                let absent = [(Call::Handle.as_str().to_owned(), NOT_FOUND)].into();
                let recorded = Recorded { refused: absent, ..Recorded::default() };
                let device = Device { recorded, ..named(&seen.device.uuid) };
                seen.written = table(&device);
                page.gpus.push(device);
                let refused = &mut seen.device.recorded.refused;
                refused.entry(Call::Handle.as_str().to_owned()).or_insert(SUCCESS);
            }
            let now = table(&seen.device);
            let change = difference(&seen.written, &now);
            if !change.is_empty() {
                page.step.gpus.insert(seen.index.to_string(), change);
                seen.written = now;
            }
        }
    }
}

fn named(uuid: &str) -> Device {
    Device { uuid: uuid.to_owned(), ..Device::default() }
}

fn table(device: &Device) -> Table {
    Table::try_from(device).expect("a device is a table of numbers and texts")
}

// === impl Seen ===

impl Seen {
    /// What no report says: that there is none, and what came between two ticks.
    fn look(&mut self, reading: &DeviceReading) {
        if reading.health == Health::Hung {
            self.device.hang_ms = HANG_MS;
        }
        for xid in &reading.xids {
            let before = self.xids.insert(xid.code, xid.count).unwrap_or(0);
            let room = MOST_XIDS.saturating_sub(self.device.xids.len());
            let new = usize::try_from(xid.count.saturating_sub(before)).unwrap_or(room);
            self.device.xids.extend(std::iter::repeat_n(xid.code, new.min(room)));
        }
    }

    /// Samples that the batch before did not have.
    fn fresh(
        &mut self,
        samples: &[Sample],
        began_us: u64,
        names: &mut Names,
    ) -> Vec<recording::Sample> {
        let batch = samples.iter().map(|it| (it.pid, it.at_us, it.sm)).collect();
        let before = std::mem::replace(&mut self.samples, batch);
        let new = samples.iter().filter(|it| !before.contains(&(it.pid, it.at_us, it.sm)));
        new.map(|it| (names.pid(it.pid), offset_us(it.at_us, began_us), it.sm)).collect()
    }
}

/// What is out of bounds stays far away.
fn offset_us(at_us: u64, began_us: u64) -> i64 {
    let offset = i128::from(at_us) - i128::from(began_us);
    i64::try_from(offset).unwrap_or(i64::MAX)
}
