//! All nodes: an event in, changes out. Pure; time comes with the events.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use proto::telemetry::v1::LiveUpdate;

use super::Event;
use super::bounds::Cuts;
use super::node::{Node, Presence};
use crate::model::ids::NodeKey;

/// Bounds of the fleet.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Nodes that are kept. Past it, a new one takes the place of the one that has been gone or silent
    /// for longest; when all are live its updates are refused and counted.
    pub nodes: usize,
    /// A node that says nothing for this long is silent: nothing of it is known to be idle.
    pub stale_after: Duration,
}

/// A silent or gone node is shown for this long.
const FORGET_AFTER: Duration = Duration::from_secs(3600);

/// A node has a new word, or a new presence.
#[derive(Clone, Debug)]
pub struct Change {
    pub node: Arc<Node>,
    /// Ids of instances that this node had before and has no longer.
    pub vanished: Vec<Arc<str>>,
}

/// What did not get in, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Updates of nodes that there was no room for.
    pub updates: u64,
    pub cuts: Cuts,
    /// Times a live node began to list a device that another live node lists.
    pub conflicts: u64,
}

/// The fleet at one moment. Nodes are shared, not copied.
#[derive(Clone, Debug, Default)]
pub struct FleetSnapshot {
    /// In the order of their keys.
    pub nodes: Vec<Arc<Node>>,
    pub losses: Losses,
}

/// See the module.
#[derive(Debug)]
pub struct Fleet {
    limits: Limits,
    /// Silence was looked for at this time.
    ticked_ns: u64,
    nodes: BTreeMap<NodeKey, Arc<Node>>,
    /// Which live node has a device.
    owners: HashMap<String, NodeKey>,
    /// Devices that a live node lists and another one has: by node.
    contested: HashMap<NodeKey, HashSet<String>>,
    losses: Losses,
    /// Until the next event.
    snapshot: Option<Arc<FleetSnapshot>>,
}

// === impl Fleet ===

impl Fleet {
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            ticked_ns: 0,
            nodes: BTreeMap::new(),
            owners: HashMap::new(),
            contested: HashMap::new(),
            losses: Losses::default(),
            snapshot: None,
        }
    }

    pub fn apply(&mut self, event: Event) -> Vec<Change> {
        self.snapshot = None;
        match event {
            Event::Live { node, update, received_ns } => self.observe(node, *update, received_ns),
            Event::Gone { node } => self.leave(&node, Presence::Gone).into_iter().collect(),
            Event::Tick { now_ns } => {
                self.ticked_ns = now_ns;
                self.forget();
                self.notice_silence()
            }
        }
    }

    /// Time of the newest tick; 0 before the first.
    #[must_use]
    pub fn ticked_ns(&self) -> u64 {
        self.ticked_ns
    }

    pub fn snapshot(&mut self) -> Arc<FleetSnapshot> {
        let snapshot = self.snapshot.get_or_insert_with(|| {
            let nodes = self.nodes.values().map(Arc::clone).collect();
            Arc::new(FleetSnapshot { nodes, losses: self.losses })
        });
        Arc::clone(snapshot)
    }

    fn observe(&mut self, key: NodeKey, mut update: LiveUpdate, received_ns: u64) -> Vec<Change> {
        if !self.nodes.contains_key(&key) && !self.make_room() {
            self.losses.updates += 1;
            return Vec::new();
        }
        self.losses.cuts.apply(&mut update);
        let mut changes = self.settle_owners(&key, &mut update);
        let previous = self.nodes.get(&key);
        let node =
            Arc::new(Node::observe(key.clone(), update, received_ns, previous.map(Arc::as_ref)));
        let vanished = previous.map(|it| vanished(it, &node)).unwrap_or_default();
        self.release(&key, &node);
        self.nodes.insert(key, Arc::clone(&node));
        changes.push(Change { node, vanished });
        changes
    }

    /// Decides which devices of `update` are this node's; the others are taken out of it. Of two live
    /// nodes that list a device, it belongs to the one that began to list it last.
    fn settle_owners(&mut self, key: &NodeKey, update: &mut LiveUpdate) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut lost = HashSet::new();
        let already = self.contested.remove(key).unwrap_or_default();
        update.devices.retain(|device| {
            let owner = self.owners.get(&device.gpu_uuid).filter(|it| *it != key).cloned();
            let Some(owner) = owner else {
                self.owners.insert(device.gpu_uuid.clone(), key.clone());
                return true;
            };
            if already.contains(&device.gpu_uuid) {
                lost.insert(device.gpu_uuid.clone());
                return false;
            }
            changes.extend(self.take_over(&device.gpu_uuid, &owner, key));
            true
        });
        if !lost.is_empty() {
            self.contested.insert(key.clone(), lost);
        }
        changes
    }

    fn take_over(&mut self, gpu_uuid: &str, from: &NodeKey, to: &NodeKey) -> Option<Change> {
        tracing::warn!(gpu_uuid, %from, %to, "two live nodes list one device; the newer claim counts");
        self.losses.conflicts += 1;
        self.owners.insert(gpu_uuid.to_owned(), to.clone());
        self.contested.entry(from.clone()).or_default().insert(gpu_uuid.to_owned());
        let slot = self.nodes.get_mut(from)?;
        let node = Arc::new(slot.without_device(gpu_uuid));
        let vanished = vanished(slot, &node);
        *slot = Arc::clone(&node);
        Some(Change { node, vanished })
    }

    /// Devices that this node listed before and does not list now are nobody's.
    fn release(&mut self, key: &NodeKey, now: &Node) {
        let Some(before) = self.nodes.get(key) else { return };
        let kept: HashSet<_> = now.update.devices.iter().map(|it| it.gpu_uuid.as_str()).collect();
        for device in &before.update.devices {
            if !kept.contains(device.gpu_uuid.as_str())
                && self.owners.get(&device.gpu_uuid) == Some(key)
            {
                self.owners.remove(&device.gpu_uuid);
            }
        }
    }

    /// A node that is no longer live claims nothing.
    fn leave(&mut self, key: &NodeKey, presence: Presence) -> Option<Change> {
        let slot = self.nodes.get_mut(key).filter(|it| it.presence != presence)?;
        let node = Arc::new(slot.with_presence(presence));
        *slot = Arc::clone(&node);
        self.contested.remove(key);
        for device in &node.update.devices {
            if self.owners.get(&device.gpu_uuid) == Some(key) {
                self.owners.remove(&device.gpu_uuid);
            }
        }
        Some(Change { node, vanished: Vec::new() })
    }

    fn notice_silence(&mut self) -> Vec<Change> {
        let stale_after = nanoseconds(self.limits.stale_after);
        let silent: Vec<_> = self
            .nodes
            .values()
            .filter(|it| it.presence == Presence::Live)
            .filter(|it| it.reading_age_ns(self.ticked_ns) > stale_after)
            .map(|it| it.key.clone())
            .collect();
        silent.iter().filter_map(|it| self.leave(it, Presence::Silent)).collect()
    }

    fn forget(&mut self) {
        let forget_after = nanoseconds(FORGET_AFTER);
        let now_ns = self.ticked_ns;
        self.nodes.retain(|_, it| {
            it.presence == Presence::Live || it.reading_age_ns(now_ns) <= forget_after
        });
    }

    /// False when every place is taken by a live node.
    fn make_room(&mut self) -> bool {
        if self.nodes.len() < self.limits.nodes {
            return true;
        }
        let away = self.nodes.values().filter(|it| it.presence != Presence::Live);
        let Some(oldest) = away.min_by_key(|it| it.received_ns).map(|it| it.key.clone()) else {
            return false;
        };
        self.nodes.remove(&oldest).is_some()
    }
}

fn vanished(before: &Node, now: &Node) -> Vec<Arc<str>> {
    let kept: HashSet<&str> = now.instances().map(|it| it.id().as_ref()).collect();
    let ids = before.instances().map(|it| it.id());
    ids.filter(|it| !kept.contains(it.as_ref())).map(Arc::clone).collect()
}

/// Saturating: a limit of centuries is no limit.
#[must_use]
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{Change, Fleet};
    use crate::state::fixtures::{LIMITS, gone, gpu, key, live, tick};
    use crate::state::node::Presence;
    use proto::telemetry::v1::{Class, Device};

    fn free(uuid: &str) -> Device {
        gpu(uuid, Class::Free, 0)
    }

    /// `(node, presence, instances, vanished)` of each change.
    fn told(changes: &[Change]) -> Vec<(String, Presence, usize, Vec<String>)> {
        let vanished = |it: &Change| it.vanished.iter().map(ToString::to_string).collect();
        changes
            .iter()
            .map(|it| {
                let node = &it.node;
                (node.key.node.clone(), node.presence, node.instances().count(), vanished(it))
            })
            .collect()
    }

    fn fleet() -> Fleet {
        Fleet::new(LIMITS)
    }

    fn says(
        node: &str,
        presence: Presence,
        instances: usize,
        vanished: &[&str],
    ) -> (String, Presence, usize, Vec<String>) {
        let vanished = vanished.iter().map(ToString::to_string).collect();
        (node.to_owned(), presence, instances, vanished)
    }

    #[test]
    fn silence_is_noticed_and_ends_with_the_next_word() {
        let mut fleet = fleet();
        fleet.apply(live("a", 10, vec![free("GPU-1")]));
        assert!(fleet.apply(tick(25)).is_empty());
        assert_eq!(told(&fleet.apply(tick(26))), [says("a", Presence::Silent, 1, &[])]);
        assert!(fleet.apply(tick(27)).is_empty(), "silence is told once");
        let back = fleet.apply(live("a", 30, vec![free("GPU-1")]));
        assert_eq!(told(&back), [says("a", Presence::Live, 1, &[])]);
    }

    #[test]
    fn a_stream_that_ends_takes_its_node_along() {
        let mut fleet = fleet();
        fleet.apply(live("a", 10, vec![free("GPU-1")]));
        assert_eq!(told(&fleet.apply(gone("a"))), [says("a", Presence::Gone, 1, &[])]);
        assert!(fleet.apply(gone("a")).is_empty());
        assert!(fleet.apply(gone("never seen")).is_empty());
        assert_eq!(fleet.snapshot().nodes.len(), 1, "it is still shown");
        fleet.apply(tick(10 + 3_601));
        assert_eq!(fleet.snapshot().nodes.len(), 0, "for an hour");
    }

    #[test]
    fn a_device_that_is_no_longer_listed_vanishes() {
        let mut fleet = fleet();
        fleet.apply(live("a", 10, vec![free("GPU-1"), free("GPU-2")]));
        let changes = fleet.apply(live("a", 11, vec![free("GPU-2")]));
        assert_eq!(told(&changes), [says("a", Presence::Live, 1, &["a/GPU-1"])]);
        let moved = fleet.apply(live("b", 12, vec![free("GPU-1")]));
        assert_eq!(told(&moved), [says("b", Presence::Live, 1, &[])]);
        assert_eq!(fleet.snapshot().losses.conflicts, 0, "a card may move");
    }

    #[test]
    fn of_two_claims_the_newer_counts_until_it_ends() {
        let mut fleet = fleet();
        fleet.apply(live("a", 10, vec![free("GPU-1")]));
        let taken = fleet.apply(live("b", 11, vec![free("GPU-1")]));
        let expected =
            [says("a", Presence::Live, 0, &["a/GPU-1"]), says("b", Presence::Live, 1, &[])];
        assert_eq!(told(&taken), expected);
        for at_s in 12..15 {
            let refused = fleet.apply(live("a", at_s, vec![free("GPU-1")]));
            assert_eq!(told(&refused), [says("a", Presence::Live, 0, &[])]);
            fleet.apply(live("b", at_s, vec![free("GPU-1")]));
        }
        assert_eq!(fleet.snapshot().losses.conflicts, 1, "counted once, not once per second");
        fleet.apply(gone("b"));
        let back = fleet.apply(live("a", 16, vec![free("GPU-1")]));
        assert_eq!(told(&back), [says("a", Presence::Live, 1, &[])]);
        assert_eq!(fleet.snapshot().losses.conflicts, 1);
    }

    #[test]
    fn a_silent_owner_gives_way_and_may_come_back() {
        let mut fleet = fleet();
        fleet.apply(live("a", 10, vec![free("GPU-1")]));
        fleet.apply(tick(30));
        let moved = fleet.apply(live("b", 31, vec![free("GPU-1")]));
        assert_eq!(told(&moved), [says("b", Presence::Live, 1, &[])]);
        let back = fleet.apply(live("a", 32, vec![free("GPU-1")]));
        let expected =
            [says("b", Presence::Live, 0, &["b/GPU-1"]), says("a", Presence::Live, 1, &[])];
        assert_eq!(told(&back), expected);
    }

    #[test]
    fn a_full_fleet_gives_up_its_oldest_absentee_or_refuses() {
        let mut fleet = fleet();
        for (at_s, node) in [(10, "a"), (11, "b"), (12, "c")] {
            fleet.apply(live(node, at_s, Vec::new()));
        }
        assert!(fleet.apply(live("d", 13, Vec::new())).is_empty());
        assert_eq!(fleet.snapshot().losses.updates, 1);
        fleet.apply(gone("c"));
        fleet.apply(gone("b"));
        fleet.apply(live("d", 14, Vec::new()));
        let names: Vec<_> = fleet.snapshot().nodes.iter().map(|it| it.key.clone()).collect();
        assert_eq!(names, [key("a"), key("c"), key("d")]);
    }
}
