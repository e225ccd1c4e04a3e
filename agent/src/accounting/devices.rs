//! Which physical device a process means. Pure.

use crate::model::ids::{DeviceId, InstanceId, ProcessId};
use crate::model::readings::{CudaDevice, Readings};

/// Where a process was listed in its life.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Devices {
    #[default]
    None,
    One(DeviceId),
    Several,
}

/// The device that a process named, by the UUID that it was told. `None` = it was not told, or no
/// device has it: an ordinal means something inside the process only.
pub(super) fn named(device: &CudaDevice, readings: &Readings) -> Option<DeviceId> {
    let uuid = text(&device.uuid?);
    let found = readings.nvml.devices.iter().find(|(id, reading)| {
        let migs = reading.instances.iter().filter_map(|it| it.id.mig.as_deref());
        is_it(&id.0, &uuid) || migs.into_iter().any(|it| is_it(it, &uuid))
    });
    found.map(|(id, _)| id.clone())
}

/// Whether a process named this very instance; likewise.
pub(super) fn names(device: CudaDevice, id: &InstanceId) -> bool {
    let name = id.mig.as_ref().unwrap_or(&id.device.0);
    device.uuid.is_some_and(|it| is_it(name, &text(&it)))
}

fn is_it(name: &str, uuid: &str) -> bool {
    name.get(4..).is_some_and(|it| it.eq_ignore_ascii_case(uuid))
}

/// Every process with a device that the driver lists it on; once for each.
pub(super) fn listed(readings: &Readings) -> impl Iterator<Item = (ProcessId, &DeviceId)> {
    readings.nvml.devices.iter().flat_map(|(device, reading)| {
        let processes = reading.instances.iter().filter_map(|it| it.processes.as_ref()).flatten();
        processes.filter_map(move |it| Some((it.process?, device)))
    })
}

/// As the driver writes it after `GPU-` or `MIG-`.
fn text(uuid: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in uuid.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        for nibble in [byte >> 4, byte & 0xf] {
            text.push(char::from_digit(u32::from(nibble), 16).expect("a nibble is a hex digit"));
        }
    }
    text
}

// === impl Devices ===

impl Devices {
    pub(super) fn note(&mut self, device: &DeviceId) {
        *self = match std::mem::take(self) {
            Self::None => Self::One(device.clone()),
            Self::One(known) if known == *device => Self::One(known),
            Self::One(_) | Self::Several => Self::Several,
        };
    }

    pub(super) fn only(&self) -> Option<DeviceId> {
        match self {
            Self::One(device) => Some(device.clone()),
            Self::None | Self::Several => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::named;
    use crate::attribution::fixtures;
    use crate::model::ids::DeviceId;
    use crate::model::readings::CudaDevice;

    const UUID: [u8; 16] = *b"\x5f\x1a\x00\xff123456789abc";
    const TEXT: &str = "5f1a00ff-3132-3334-3536-373839616263";

    fn check(name: &str, mig: Option<&str>, uuid: Option<[u8; 16]>, expected: bool) {
        let mut readings = fixtures::readings(1, 2);
        let mut device = readings.nvml.devices.remove(&fixtures::device(1)).unwrap();
        device.instances[0].id.mig = mig.map(Into::into);
        let id = DeviceId(name.into());
        readings.nvml.devices.insert(id.clone(), device);
        let found = named(&CudaDevice { ordinal: Some(0), uuid }, &readings);
        assert_eq!(found, expected.then_some(id), "{name} {mig:?}");
    }

    #[test]
    fn a_uuid_names_a_device_or_a_part_of_it() {
        check(&format!("GPU-{TEXT}"), None, Some(UUID), true);
        check(&format!("GPU-{}", TEXT.to_uppercase()), None, Some(UUID), true);
        check("GPU-other", Some(&format!("MIG-{TEXT}")), Some(UUID), true);
        check("GPU-other", None, Some(UUID), false);
        check(&format!("GPU-{TEXT}"), None, None, false);
    }
}
