//! Cuts an update down to what the collector is willing to keep. Pure.
//!
//! An agent keeps to these bounds by itself; what is cut here came from one that does not. Everything
//! that is cut is counted, and none of it is offered.

use std::collections::HashSet;

use proto::telemetry::v1::{Device, Figure, Holder, Instance, LiveUpdate, TracedMemory, Tracing};

/// Devices of one node. More are dropped.
pub const DEVICES: usize = 64;
/// Instances of one device. More are dropped.
pub const INSTANCES: usize = 16;
/// Holders of one instance. More are dropped.
pub const HOLDERS: usize = 64;
/// Holders of one node with traced memory; a tenant whose holders are cut off has no sum that is whole,
/// so all of that node's go. Also its causes of loss, and files whose memory calls are not counted.
pub const TRACED_HOLDERS: usize = 1_024;
const LOSSES: usize = 16;
const HELD_BACK: usize = 16;
/// Error codes of one device. More are dropped.
pub const XIDS: usize = 64;
/// Sources of readings of one device. More are dropped.
pub const SOURCES: usize = 32;
/// Figures of one device or instance. More are dropped.
pub const FIGURES: usize = 128;
/// Bytes of one text. The rest is cut off; a UUID that is longer takes its device along.
pub const TEXT_BYTES: usize = 256;

/// What was cut since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cuts {
    /// Too many, without a UUID, or listed twice.
    pub devices: u64,
    pub instances: u64,
    pub holders: u64,
    /// Too many, or of one kind, error code or source twice: a series must not be twice in a scrape.
    pub figures: u64,
    /// Shortened, or rid of control characters.
    pub texts: u64,
}

impl Cuts {
    /// Brings `update` within the bounds and counts what that took.
    pub(super) fn apply(&mut self, update: &mut LiveUpdate) {
        self.text(&mut update.nvml_state);
        if let Some(tracing) = &mut update.tracing {
            self.tracing(tracing);
        }
        self.traced_memory(&mut update.traced_memory);
        if let Some(node) = &mut update.node {
            self.text(&mut node.agent_version);
            self.text(&mut node.boot_id);
        }
        let mut seen = HashSet::new();
        let before = update.devices.len();
        update.devices.retain(|it| usable(&it.gpu_uuid) && seen.insert(it.gpu_uuid.clone()));
        update.devices.truncate(DEVICES);
        self.devices += lost(before, update.devices.len());
        update.devices.iter_mut().for_each(|it| self.device(it));
    }

    fn tracing(&mut self, tracing: &mut Tracing) {
        self.text(&mut tracing.reason);
        self.text(&mut tracing.sampling_reason);
        tracing.lost.truncate(LOSSES);
        tracing.lost.iter_mut().for_each(|it| self.text(&mut it.cause));
        tracing.memory_held_back.truncate(HELD_BACK);
        tracing.memory_held_back.iter_mut().for_each(|it| self.text(it));
    }

    fn traced_memory(&mut self, memory: &mut Vec<TracedMemory>) {
        if memory.len() > TRACED_HOLDERS {
            self.holders += lost(memory.len(), 0);
            memory.clear();
        }
        memory.iter_mut().filter_map(|it| it.holder.as_mut()).for_each(|it| self.holder(it));
    }

    fn device(&mut self, device: &mut Device) {
        let texts = [
            &mut device.pci_bus_id,
            &mut device.model,
            &mut device.driver_version,
            &mut device.cuda_version,
            &mut device.compute_capability,
        ];
        texts.into_iter().flatten().for_each(|it| self.text(it));
        device.suggestion.iter_mut().for_each(|it| self.text(&mut it.reason));
        self.figures(&mut device.figures);
        let before = device.xids.len();
        let mut codes = HashSet::new();
        device.xids.retain(|it| codes.insert(it.code));
        device.xids.truncate(XIDS);
        self.figures += lost(before, device.xids.len());
        let before = device.sources.len();
        let mut sources = HashSet::new();
        device.sources.retain(|it| sources.insert(it.source));
        device.sources.truncate(SOURCES);
        self.figures += lost(before, device.sources.len());
        let mut seen = HashSet::new();
        let before = device.instances.len();
        device.instances.retain(|it| {
            it.mig_uuid.as_deref().is_none_or(usable) && seen.insert(it.mig_uuid.clone())
        });
        device.instances.truncate(INSTANCES);
        self.instances += lost(before, device.instances.len());
        device.instances.iter_mut().for_each(|it| self.instance(it));
    }

    fn figures(&mut self, figures: &mut Vec<Figure>) {
        let before = figures.len();
        let mut kinds = HashSet::new();
        figures.retain(|it| kinds.insert(it.kind));
        figures.truncate(FIGURES);
        self.figures += lost(before, figures.len());
    }

    fn instance(&mut self, instance: &mut Instance) {
        self.text(&mut instance.reason);
        self.figures(&mut instance.figures);
        instance.mig_profile.iter_mut().for_each(|it| self.text(it));
        let before = instance.holders.len();
        instance.holders.truncate(HOLDERS);
        self.holders += lost(before, instance.holders.len());
        let holders = instance.holders.iter_mut().filter_map(|it| it.holder.as_mut());
        holders.for_each(|it| self.holder(it));
    }

    fn holder(&mut self, holder: &mut Holder) {
        self.text(&mut holder.id);
        self.text(&mut holder.tenant);
        let texts =
            [&mut holder.tenant_namespace, &mut holder.tenant_pod, &mut holder.tenant_container];
        texts.into_iter().flatten().for_each(|it| self.text(it));
    }

    /// Control characters would reach terminals.
    fn text(&mut self, text: &mut String) {
        if text.len() <= TEXT_BYTES && !text.contains(char::is_control) {
            return;
        }
        self.texts += 1;
        *text = text.replace(char::is_control, "\u{fffd}");
        text.truncate(text.floor_char_boundary(TEXT_BYTES));
    }
}

fn usable(uuid: &str) -> bool {
    !uuid.is_empty() && uuid.len() <= TEXT_BYTES && !uuid.contains(char::is_control)
}

fn lost(before: usize, after: usize) -> u64 {
    u64::try_from(before - after).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{Cuts, DEVICES, HOLDERS, INSTANCES, TEXT_BYTES};
    use proto::telemetry::v1::{Device, Holder, Instance, LiveHolder, LiveUpdate};

    fn device(gpu_uuid: String, instances: Vec<Instance>) -> Device {
        Device { gpu_uuid, instances, ..Device::default() }
    }

    fn check(mut update: LiveUpdate, expected: Cuts) -> LiveUpdate {
        let mut cuts = Cuts::default();
        cuts.apply(&mut update);
        assert_eq!(cuts, expected);
        let mut again = Cuts::default();
        again.apply(&mut update);
        assert_eq!(again, Cuts::default(), "what was cut once fits");
        update
    }

    #[test]
    fn numbers_are_bounded() {
        let holders = vec![LiveHolder::default(); HOLDERS + 3];
        let instance = |it: usize| Instance {
            mig_uuid: Some(format!("MIG-{it}")),
            holders: holders.clone(),
            ..Instance::default()
        };
        let first = device("GPU-0".to_owned(), (0..INSTANCES + 2).map(instance).collect());
        let more = (1..DEVICES + 1).map(|it| device(format!("GPU-{it}"), Vec::new()));
        let update = LiveUpdate {
            devices: std::iter::once(first).chain(more).collect(),
            ..LiveUpdate::default()
        };
        let holders = 3 * u64::try_from(INSTANCES).unwrap();
        let kept = check(update, Cuts { devices: 1, instances: 2, holders, ..Cuts::default() });
        assert_eq!(kept.devices.len(), DEVICES);
    }

    #[test]
    fn a_device_needs_a_name_of_its_own() {
        let names = ["GPU-1", "GPU-1", "", "bad\nname", &"x".repeat(TEXT_BYTES + 1)];
        let update = LiveUpdate {
            devices: names.iter().map(|it| device((*it).to_owned(), Vec::new())).collect(),
            ..LiveUpdate::default()
        };
        let kept = check(update, Cuts { devices: 4, ..Cuts::default() });
        assert_eq!(kept.devices.len(), 1);
    }

    #[test]
    fn texts_are_short_and_harmless_to_terminals() {
        let tenant = format!("\u{1b}[31m{}é", "x".repeat(TEXT_BYTES - 1));
        let holder = Holder { tenant, ..Holder::default() };
        let instance = Instance {
            holders: vec![LiveHolder { holder: Some(holder), ..LiveHolder::default() }],
            ..Instance::default()
        };
        let update = LiveUpdate {
            devices: vec![device("GPU-1".to_owned(), vec![instance])],
            ..LiveUpdate::default()
        };
        let kept = check(update, Cuts { texts: 1, ..Cuts::default() });
        let tenant = &kept.devices[0].instances[0].holders[0].holder.as_ref().unwrap().tenant;
        assert!(tenant.starts_with("\u{fffd}[31mx") && tenant.len() <= TEXT_BYTES);
    }
}
