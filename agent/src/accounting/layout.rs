//! How MIG has cut a device: how many compute slices each instance has, and how many nobody has.
//!
//! Pure. Remembers sizes, because a device that hangs or is lost does not say them, and its time is
//! as large as before.

use std::collections::{BTreeMap, BTreeSet};

use proto::names::UNCONFIGURED;

use crate::model::ids::{DeviceId, InstanceId};
use crate::model::metering::Slices;
use crate::model::readings::{DeviceReading, MigIdentity, Readings};

/// Sizes of the MIG instances that are listed.
#[derive(Clone, Debug, Default)]
pub(super) struct Layouts {
    sizes: BTreeMap<InstanceId, u32>,
}

/// A part of a device that is accounted for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) id: InstanceId,
    /// As in a tile.
    pub(super) slices: Option<Slices>,
}

// === impl Layouts ===

impl Layouts {
    pub(super) fn learn(&mut self, readings: &Readings) {
        let mut listed = BTreeSet::new();
        for instance in readings.nvml.devices.values().flat_map(|it| &it.instances) {
            listed.insert(&instance.id);
            if let Some(slices) = instance.mig.as_ref().and_then(compute_slices) {
                self.sizes.insert(instance.id.clone(), slices);
            }
        }
        self.sizes.retain(|id, _| listed.contains(id));
    }

    /// The instances of a device, and its unconfigured slices where there are any. They make up the
    /// device where their sizes are known, and otherwise none of them has one.
    pub(super) fn parts(&self, id: &DeviceId, device: &DeviceReading) -> Vec<Part> {
        let ids = device.instances.iter().map(|it| &it.id);
        let Some((sizes, whole)) = self.sizes(device) else {
            return ids.map(|it| Part { id: it.clone(), slices: None }).collect();
        };
        let part = |id: InstanceId, instance| Part {
            id,
            slices: Some(Slices { instance, device: whole }),
        };
        let mut parts: Vec<Part> =
            ids.zip(&sizes).map(|(id, size)| part(id.clone(), *size)).collect();
        let rest = whole - sizes.iter().sum::<u32>();
        if rest > 0 {
            let unconfigured = InstanceId { device: id.clone(), mig: Some(UNCONFIGURED.into()) };
            parts.push(part(unconfigured, rest));
        }
        parts
    }

    /// Of the instances, and of the whole; `None` where MIG is off or not everything is known.
    fn sizes(&self, device: &DeviceReading) -> Option<(Vec<u32>, u32)> {
        let whole = device.identity.mig_slices.filter(|_| device.identity.mig_on == Some(true))?;
        let size = |id: &InstanceId| self.sizes.get(id).copied();
        let sizes: Vec<u32> =
            device.instances.iter().map(|it| size(&it.id)).collect::<Option<_>>()?;
        let configured = sizes.iter().try_fold(0_u32, |sum, it| sum.checked_add(*it))?;
        (configured <= whole).then_some((sizes, whole))
    }
}

/// What a profile begins with: `3g.40gb` has three, `1c.3g.40gb` has one of those three.
fn compute_slices(mig: &MigIdentity) -> Option<u32> {
    let first = mig.profile.as_deref()?.split('.').next()?;
    let count = first.strip_suffix('g').or_else(|| first.strip_suffix('c'))?;
    count.parse().ok().filter(|it| *it > 0)
}

#[cfg(test)]
mod tests {
    use super::{Layouts, compute_slices};
    use crate::attribution::fixtures;
    use crate::model::metering::Slices;
    use crate::model::readings::{MigIdentity, Readings};

    #[test]
    fn a_profile_begins_with_its_slices() {
        let check = |profile: &str, expected| {
            let mig = MigIdentity { profile: Some(profile.into()), ..MigIdentity::default() };
            assert_eq!(compute_slices(&mig), expected, "{profile}");
        };
        check("1g.10gb", Some(1));
        check("3g.40gb", Some(3));
        check("1g.10gb+me", Some(1));
        check("1c.3g.40gb", Some(1));
        check("4g.24gb", Some(4));
        for unknown in ["", "g.10gb", "0g.5gb", "-1g.5gb", "10gb"] {
            check(unknown, None);
        }
        assert_eq!(compute_slices(&MigIdentity::default()), None);
    }

    /// Name and slices of each part of device 0.
    fn check(layouts: &Layouts, readings: &Readings, expected: &[(&str, Option<u32>)]) {
        let id = fixtures::device(0);
        let parts = layouts.parts(&id, &readings.nvml.devices[&id]);
        let found: Vec<_> = parts
            .iter()
            .map(|it| (it.id.mig.as_deref().unwrap_or(""), it.slices.map(|it| it.instance)))
            .collect();
        assert_eq!(found, expected);
        assert!(parts.iter().filter_map(|it| it.slices).all(|it| it.device == 7));
    }

    #[test]
    fn parts_make_up_the_device() {
        let mut layouts = Layouts::default();
        let whole = fixtures::readings(1, 1);
        layouts.learn(&whole);
        check(&layouts, &whole, &[("", None)]);

        let mut mig = fixtures::readings(1, 1);
        fixtures::cut(&mut mig, 0, &["3g.40gb", "1g.10gb"]);
        layouts.learn(&mig);
        let parts = [("MIG-0", Some(3)), ("MIG-1", Some(1)), ("unconfigured", Some(3))];
        check(&layouts, &mig, &parts);
        fixtures::cut(&mut mig, 0, &["7g.80gb"]);
        layouts.learn(&mig);
        check(&layouts, &mig, &[("MIG-0", Some(7))]);
        fixtures::cut(&mut mig, 0, &[]);
        layouts.learn(&mig);
        check(&layouts, &mig, &[("unconfigured", Some(7))]);
    }

    #[test]
    fn a_size_is_kept_while_the_device_does_not_say_it() {
        let mut layouts = Layouts::default();
        let mut mig = fixtures::readings(1, 1);
        fixtures::cut(&mut mig, 0, &["3g.40gb"]);
        layouts.learn(&mig);
        fixtures::instance(&mut mig, 0).mig = None;
        layouts.learn(&mig);
        check(&layouts, &mig, &[("MIG-0", Some(3)), ("unconfigured", Some(4))]);
    }

    #[test]
    fn where_one_size_is_not_known_none_is() {
        let unknown = [("MIG-0", None), ("MIG-1", None)];
        for profiles in [["3g.40gb", "strange"], ["4g.40gb", "4g.40gb"]] {
            let mut layouts = Layouts::default();
            let mut mig = fixtures::readings(1, 1);
            fixtures::cut(&mut mig, 0, &profiles);
            layouts.learn(&mig);
            check(&layouts, &mig, &unknown);
        }
        let mut layouts = Layouts::default();
        let mut mig = fixtures::readings(1, 1);
        fixtures::cut(&mut mig, 0, &["3g.40gb", "1g.10gb"]);
        mig.nvml.devices.get_mut(&fixtures::device(0)).unwrap().identity.mig_slices = None;
        layouts.learn(&mig);
        check(&layouts, &mig, &unknown);
    }

    #[test]
    fn parts_know_their_device() {
        let slices = Slices { instance: 1, device: 7 };
        let mut layouts = Layouts::default();
        let mut mig = fixtures::readings(1, 1);
        fixtures::cut(&mut mig, 0, &["1g.10gb"]);
        layouts.learn(&mig);
        let id = fixtures::device(0);
        let parts = layouts.parts(&id, &mig.nvml.devices[&id]);
        assert_eq!(parts[0].slices, Some(slices));
        assert!(parts.iter().all(|it| it.id.device == id));
    }
}
