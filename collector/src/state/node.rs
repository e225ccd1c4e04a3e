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

#[cfg(test)]
mod tests {
    use super::{Node, Presence};
    use crate::state::Event;
    use crate::state::fixtures::{SECOND, collector_ns, gpu, held_by, live};
    use proto::telemetry::v1::{Class, Device};

    fn observe(at_s: u64, device: Device, previous: Option<&Node>) -> Node {
        match live("n", at_s, vec![device]) {
            Event::Live { node, update, received_ns } => {
                Node::observe(node, *update, received_ns, previous)
            }
            other => unreachable!("{other:?} is not what `live` makes"),
        }
    }

    fn idle_s(node: &Node) -> Option<u64> {
        let observed = node.instances().next().expect("the node has an instance");
        observed.idle_age_when_read_ns().map(|it| it / SECOND)
    }

    /// Idle age at second 200 of a device that said `before` at second 190 and `now` at 200.
    fn check(before: Device, now: Device, expected: Option<u64>) {
        let before = observe(190, before, None);
        assert_eq!(idle_s(&observe(200, now, Some(&before))), expected);
    }

    fn held(class: Class, since_s: u64, tenants: &[&str]) -> Device {
        held_by(gpu("GPU-1", class, since_s), tenants)
    }

    #[test]
    fn idleness_begins_where_the_node_says() {
        assert_eq!(idle_s(&observe(200, gpu("GPU-1", Class::Free, 50), None)), Some(150));
        assert_eq!(idle_s(&observe(200, gpu("GPU-1", Class::Active, 50), None)), None);
        assert_eq!(idle_s(&observe(200, gpu("GPU-1", Class::Unknown, 50), None)), None);
        assert_eq!(idle_s(&observe(200, gpu("GPU-1", Class::HostBound, 50), None)), None);
    }

    #[test]
    fn idleness_runs_on_through_held_classes_of_the_same_holders() {
        use Class::{Active, Free, HeldNoProcess, MemoryHeld};
        let memory_held = held(MemoryHeld, 100, &["a", "b"]);
        check(memory_held.clone(), held(MemoryHeld, 100, &["b", "a"]), Some(100));
        check(memory_held.clone(), held(HeldNoProcess, 195, &["a", "b"]), Some(100));
        check(memory_held.clone(), held(MemoryHeld, 195, &["a", "b"]), Some(5));
        check(memory_held.clone(), held(MemoryHeld, 100, &["a"]), Some(0));
        check(memory_held.clone(), held(Active, 195, &["a", "b"]), None);
        check(memory_held, held(Free, 195, &[]), Some(5));
        check(held(Free, 100, &[]), held(MemoryHeld, 195, &["a"]), Some(5));
        check(held(Active, 100, &["a"]), held(MemoryHeld, 195, &["a"]), Some(5));
    }

    #[test]
    fn a_change_of_class_during_silence_begins_anew() {
        let before = observe(190, held(Class::MemoryHeld, 100, &["a"]), None);
        let silent = before.with_presence(Presence::Silent);
        let same = observe(200, held(Class::MemoryHeld, 100, &["a"]), Some(&silent));
        assert_eq!(idle_s(&same), Some(100), "the node itself vouches for the time between");
        let other = observe(200, held(Class::Stalled, 195, &["a"]), Some(&silent));
        assert_eq!(idle_s(&other), Some(5));
    }

    #[test]
    fn nothing_is_carried_over_a_reboot() {
        let mut before = observe(190, held(Class::MemoryHeld, 100, &["a"]), None);
        before.update.node = None;
        let after = observe(200, held(Class::Stalled, 195, &["a"]), Some(&before));
        assert_eq!(idle_s(&after), Some(5));
    }

    #[test]
    fn ages_run_on_in_the_clock_of_the_collector() {
        let node = observe(200, gpu("GPU-1", Class::Free, 50), None);
        let observed = node.instances().next().unwrap();
        let now_ns = collector_ns(207);
        assert_eq!(observed.class_age_ns(now_ns), Some(157 * SECOND));
        assert_eq!(observed.idle_age_ns(now_ns), Some(157 * SECOND));
        assert_eq!(node.reading_age_ns(now_ns), 7 * SECOND);
        assert_eq!(node.reading_age_ns(0), 0);
    }

    #[test]
    fn without_a_clock_no_age_is_known() {
        let Event::Live { node, mut update, received_ns } =
            live("n", 200, vec![gpu("GPU-1", Class::Free, 50)])
        else {
            unreachable!("`live` makes a live event")
        };
        update.clock = None;
        let node = Node::observe(node, *update, received_ns, None);
        let observed = node.instances().next().unwrap();
        assert_eq!(observed.class_age_ns(received_ns), None);
        assert_eq!(observed.idle_age_ns(received_ns), None);
    }

    #[test]
    fn a_device_leaves_with_its_instances() {
        let Event::Live { node, update, received_ns } =
            live("n", 9, vec![gpu("GPU-1", Class::Free, 1), gpu("GPU-2", Class::Active, 1)])
        else {
            unreachable!("`live` makes a live event")
        };
        let node = Node::observe(node, *update, received_ns, None).without_device("GPU-1");
        let ids: Vec<_> = node.instances().map(|it| it.id().to_string()).collect();
        assert_eq!(ids, ["n/GPU-2"]);
    }
}
