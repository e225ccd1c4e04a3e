//! One node: its last update, and how long each of its instances has been what it is. Pure.
//!
//! Ages are taken in the node's own clock, between what it says in one message, and then run on in
//! the collector's from the moment of arrival: the two clocks are never compared.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use proto::telemetry::v1::{Class, Device, Instance, LiveUpdate};

use crate::model::ids::NodeKey;

/// Whether a node's last word still holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Presence {
    Live,
    /// Nothing was heard for longer than the staleness limit.
    Silent,
    /// Its stream has ended.
    Gone,
}

/// What a node said last. Immutable: a new update makes a new one.
#[derive(Clone, Debug)]
pub struct Node {
    pub key: NodeKey,
    pub presence: Presence,
    /// The collector's CLOCK_BOOTTIME at the arrival of `update`.
    pub received_ns: u64,
    pub update: LiveUpdate,
    /// One for each instance of `update.devices`, in the same order, flattened.
    pub(super) runs: Vec<Run>,
}

/// How long an instance has been what it is, in the node's boot clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// `node/gpu_uuid` or `node/gpu_uuid/mig_uuid`.
    pub id: Arc<str>,
    /// Age of the class when it was read; `None` = the update carries no clock.
    class_age_ns: Option<u64>,
    /// Age of the uninterrupted idleness when it was read; `None` = not idle, or no clock.
    idle_age_ns: Option<u64>,
}

/// One instance with everything that is known about it.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    pub node: &'a Node,
    pub device: &'a Device,
    pub instance: &'a Instance,
    run: &'a Run,
}

/// Idle classes between which a dwell runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Idleness {
    Free,
    Held,
}

// === impl Idleness ===

impl Idleness {
    /// `None` for what is never offered.
    #[must_use]
    pub fn of(class: Class) -> Option<Self> {
        match class {
            Class::Free => Some(Self::Free),
            Class::HeldNoProcess | Class::HeldNoContext | Class::MemoryHeld | Class::Stalled => {
                Some(Self::Held)
            }
            Class::Unspecified
            | Class::Unknown
            | Class::HostBound
            | Class::Active
            | Class::Down => None,
        }
    }
}

// === impl Node ===

impl Node {
    /// The node after `update`; `previous` is what it said before, if anything.
    #[must_use]
    pub(super) fn observe(
        key: NodeKey,
        update: LiveUpdate,
        received_ns: u64,
        previous: Option<&Self>,
    ) -> Self {
        let previous = previous.filter(|it| it.boot_id() == boot_id(&update));
        let known: HashMap<_, _> = previous
            .into_iter()
            .flat_map(Self::instances)
            .map(|it| ((it.device.gpu_uuid.as_str(), it.instance.mig_uuid.as_deref()), it))
            .collect();
        let at = update.clock.map(|it| it.boot_ns);
        let runs = flatten(&update.devices)
            .map(|(device, instance)| {
                let name = (device.gpu_uuid.as_str(), instance.mig_uuid.as_deref());
                let before = known.get(&name);
                Run {
                    id: before.map_or_else(|| id(&key, name), |it| Arc::clone(&it.run.id)),
                    class_age_ns: at.map(|at| at.saturating_sub(instance.class_since_ns)),
                    idle_age_ns: at.and_then(|at| idle_age(before, instance, at)),
                }
            })
            .collect();
        Self { key, presence: Presence::Live, received_ns, update, runs }
    }

    /// This node with another presence.
    #[must_use]
    pub(super) fn with_presence(&self, presence: Presence) -> Self {
        Self { presence, ..self.clone() }
    }

    /// This node without one device.
    #[must_use]
    pub(super) fn without_device(&self, gpu_uuid: &str) -> Self {
        let mut node = self.clone();
        let mut kept = flatten(&self.update.devices).map(|(device, _)| device.gpu_uuid != gpu_uuid);
        node.runs.retain(|_| kept.next().unwrap_or(false));
        node.update.devices.retain(|it| it.gpu_uuid != gpu_uuid);
        node
    }

    pub fn instances(&self) -> impl Iterator<Item = Observed<'_>> {
        flatten(&self.update.devices).zip(&self.runs).map(|((device, instance), run)| Observed {
            node: self,
            device,
            instance,
            run,
        })
    }

    /// How long ago its last word arrived.
    #[must_use]
    pub fn reading_age_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.received_ns)
    }

    #[must_use]
    pub fn boot_id(&self) -> &str {
        boot_id(&self.update)
    }

    #[must_use]
    pub fn agent_version(&self) -> &str {
        self.update.node.as_ref().map_or("", |it| &it.agent_version)
    }
}

// === impl Observed ===

impl<'a> Observed<'a> {
    #[must_use]
    pub fn id(&self) -> &'a Arc<str> {
        &self.run.id
    }

    #[must_use]
    pub fn class(&self) -> Class {
        self.instance.class()
    }

    /// How long the instance has been in its class; `None` = the node did not say when it was read.
    #[must_use]
    pub fn class_age_ns(&self, now_ns: u64) -> Option<u64> {
        self.run.class_age_ns.map(|it| it.saturating_add(self.node.reading_age_ns(now_ns)))
    }

    /// How long the instance has been idle without interruption; `None` = it is not idle, or the node
    /// did not say when it was read.
    #[must_use]
    pub fn idle_age_ns(&self, now_ns: u64) -> Option<u64> {
        self.run.idle_age_ns.map(|it| it.saturating_add(self.node.reading_age_ns(now_ns)))
    }

    /// As `idle_age_ns`, when it was read: what is proven, and not only not contradicted yet.
    #[must_use]
    pub fn idle_age_when_read_ns(&self) -> Option<u64> {
        self.run.idle_age_ns
    }
}

fn flatten(devices: &[Device]) -> impl Iterator<Item = (&Device, &Instance)> {
    devices.iter().flat_map(|device| device.instances.iter().map(move |it| (device, it)))
}

fn boot_id(update: &LiveUpdate) -> &str {
    update.node.as_ref().map_or("", |it| &it.boot_id)
}

fn id(key: &NodeKey, (gpu_uuid, mig_uuid): (&str, Option<&str>)) -> Arc<str> {
    match mig_uuid {
        Some(mig_uuid) => format!("{}/{gpu_uuid}/{mig_uuid}", key.node).into(),
        None => format!("{}/{gpu_uuid}", key.node).into(),
    }
}

/// How long the instance has been idle at `at`, without interruption. The rule:
///
/// - Idleness begins where the node says that the class began.
/// - It runs on through a change between held classes (the last process of an idle holder exits), as
///   long as the same holders hold the instance and the node was not silent in between.
/// - It begins anew when the class was left and entered again, or with the readings that first show
///   other holders.
fn idle_age(before: Option<&Observed<'_>>, instance: &Instance, at: u64) -> Option<u64> {
    let idleness = Idleness::of(instance.class())?;
    let of_class = at.saturating_sub(instance.class_since_ns);
    let Some(before) = before.filter(|it| Idleness::of(it.class()) == Some(idleness)) else {
        return Some(of_class);
    };
    if holders(before.instance) != holders(instance) {
        return Some(0);
    }
    let same_class = before.class() == instance.class();
    let uninterrupted = if same_class {
        before.instance.class_since_ns == instance.class_since_ns
    } else {
        before.node.presence == Presence::Live
    };
    let since_before = at.saturating_sub(before.node.update.clock.map_or(at, |it| it.boot_ns));
    let of_run = before.run.idle_age_ns.map(|it| it.saturating_add(since_before));
    if uninterrupted { of_run.or(Some(of_class)) } else { Some(of_class) }
}

/// Who holds an instance, in any order.
pub(crate) fn holders(instance: &Instance) -> BTreeSet<(i32, &str)> {
    instance
        .holders
        .iter()
        .filter_map(|it| it.holder.as_ref())
        .map(|it| (it.kind, it.id.as_str()))
        .collect()
}
