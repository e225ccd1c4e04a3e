//! How the words of the schema are written in labels, messages, the page and the client.

use crate::exposition::Labels;
use crate::telemetry::v1::suggestion::Action;
use crate::telemetry::v1::{Class, Holder, Instance};

/// In the place of an instance's UUID, and of the reason of free time: the slices of a device with MIG
/// that no instance has.
pub const UNCONFIGURED: &str = "unconfigured";

/// Labels of a tenant's series: `tenant`, and the others where they are known.
#[must_use]
pub fn labels_of(
    tenant: &str,
    namespace: Option<&str>,
    pod: Option<&str>,
    container: Option<&str>,
) -> Labels {
    let mut labels = Labels::new([("tenant", tenant)]);
    let optional =
        [("tenant_namespace", namespace), ("tenant_pod", pod), ("tenant_container", container)];
    for (name, value) in optional {
        if let Some(value) = value {
            labels.push(name, value);
        }
    }
    labels
}

/// As `labels_of`, of the tenant that answers for a holder.
#[must_use]
pub fn tenant_labels(holder: &Holder) -> Labels {
    labels_of(
        &holder.tenant,
        holder.tenant_namespace.as_deref(),
        holder.tenant_pod.as_deref(),
        holder.tenant_container.as_deref(),
    )
}

/// A device's labels, and `mig_uuid` where the instance is a part of it.
#[must_use]
pub fn instance_labels(device: &Labels, instance: &Instance) -> Labels {
    instance.mig_uuid.as_deref().map_or_else(|| device.clone(), |it| device.with("mig_uuid", it))
}

/// Every class, in the order of their numbers.
pub const CLASSES: [Class; 9] = [
    Class::Unknown,
    Class::Free,
    Class::HeldNoProcess,
    Class::HeldNoContext,
    Class::MemoryHeld,
    Class::Stalled,
    Class::HostBound,
    Class::Active,
    Class::Down,
];

/// Names of some classes, as the values of a label.
#[must_use]
pub const fn class_names<const N: usize>(classes: &[Class; N]) -> [&'static str; N] {
    let mut names = [""; N];
    let mut at = 0;
    while at < N {
        names[at] = class_name(classes[at]);
        at += 1;
    }
    names
}

/// A class as labels, messages and the client write it.
#[must_use]
pub const fn class_name(class: Class) -> &'static str {
    match class {
        Class::Unspecified | Class::Unknown => "unknown",
        Class::Free => "free",
        Class::HeldNoProcess => "held_no_process",
        Class::HeldNoContext => "held_no_context",
        Class::MemoryHeld => "memory_held",
        Class::Stalled => "stalled",
        Class::HostBound => "host_bound",
        Class::Active => "active",
        Class::Down => "down",
    }
}

/// What can be suggested, as labels, messages and the client write it.
pub const ACTIONS: [(&str, Action); 8] = [
    ("wait", Action::Wait),
    ("load_driver", Action::LoadDriver),
    ("finish_upgrade", Action::FinishUpgrade),
    ("reset_gpu", Action::ResetGpu),
    ("drain_peers", Action::DrainPeers),
    ("drain_and_reset", Action::DrainAndReset),
    ("reboot_node", Action::RebootNode),
    ("read_log", Action::ReadLog),
];

/// `None` for what a newer agent suggests.
#[must_use]
pub fn action_name(action: Action) -> Option<&'static str> {
    ACTIONS.iter().find(|(_, it)| *it == action).map(|(name, _)| *name)
}
