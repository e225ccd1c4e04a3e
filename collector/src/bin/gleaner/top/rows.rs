//! From a fleet to sorted rows of text. Pure.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use proto::capacity::v1::{Fleet, InstanceState, Node, node::Presence};
use proto::names;
use proto::telemetry::v1::{Class, Device, Instance};

use crate::words;

pub(super) const HEADER: [&str; 9] =
    ["NODE", "GPU", "CLASS", "FOR", "BUSY", "MEMORY", "POWER", "HOLDER", "OFFER"];

/// Columns whose end may be missing on a narrow screen.
const CUTTABLE: [&str; 3] = ["NODE", "GPU", "HOLDER"];
const NARROWEST: u16 = 6;
const WIDEST: u16 = 60;

/// What the rows are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Node, then GPU.
    Node,
    /// Class, idle ones first.
    Class,
    /// Longest idle first.
    Idle,
    /// Busiest first.
    Busy,
    /// Most memory in use first.
    Memory,
}

/// One instance.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    pub(super) class: Class,
    /// Its node is heard.
    pub(super) live: bool,
    pub(super) offered: bool,
    cells: [String; HEADER.len()],
    idle_age_ms: Option<u64>,
    busy_ratio: Option<f64>,
    memory_used_bytes: Option<u64>,
}

// === impl Order ===

impl Order {
    pub(super) const ALL: [Self; 5] =
        [Self::Node, Self::Class, Self::Idle, Self::Busy, Self::Memory];

    pub(super) fn next(self) -> Self {
        let at = Self::ALL.iter().position(|it| *it == self).unwrap_or(0);
        Self::ALL[(at + 1) % Self::ALL.len()]
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Class => "class",
            Self::Idle => "idle age",
            Self::Busy => "busy",
            Self::Memory => "memory",
        }
    }

    /// What is not known comes last, and so does what a silent node said.
    fn compare(self, a: &Row, b: &Row) -> Ordering {
        let busy = |it: &Row| it.busy_ratio.unwrap_or(-1.0);
        let ordering = match self {
            Self::Node => return Ordering::Equal,
            Self::Class => rank(a.class).cmp(&rank(b.class)),
            Self::Idle => b.idle_age_ms.cmp(&a.idle_age_ms),
            Self::Busy => busy(b).total_cmp(&busy(a)),
            Self::Memory => b.memory_used_bytes.cmp(&a.memory_used_bytes),
        };
        b.live.cmp(&a.live).then(ordering)
    }
}

// === impl Row ===

impl Row {
    pub(super) fn cells(&self) -> &[String; HEADER.len()] {
        &self.cells
    }
}

/// Every instance of the fleet; equal ones stay in the order of node and GPU.
pub(super) fn rows(fleet: &Fleet, order: Order, reverse: bool) -> Vec<Row> {
    let mut rows: Vec<Row> = fleet.nodes.iter().flat_map(node_rows).collect();
    rows.sort_by(|a, b| {
        let ordering = order.compare(a, b);
        if reverse { ordering.reverse() } else { ordering }
    });
    if reverse && order == Order::Node {
        rows.reverse();
    }
    rows
}

/// `2 nodes live, 1 silent · 7 GPUs: 3 active, 4 free · 4 offers`.
pub(super) fn summary(fleet: &Fleet) -> String {
    let count = |presence| fleet.nodes.iter().filter(|it| it.presence() == presence).count();
    let mut text = format!("{} live", words::plural(count(Presence::Live), "node"));
    for (presence, name) in [(Presence::Silent, "silent"), (Presence::Gone, "gone")] {
        if count(presence) > 0 {
            text.push_str(&format!(", {} {name}", count(presence)));
        }
    }
    let live = || fleet.nodes.iter().filter(|it| it.presence() == Presence::Live);
    let mut classes: BTreeMap<u8, (&str, usize)> = BTreeMap::new();
    for instance in live().flat_map(|it| &it.devices).flat_map(|it| &it.instances) {
        let class = instance.class();
        classes.entry(rank(class)).or_insert((names::class_name(class), 0)).1 += 1;
    }
    let total: usize = classes.values().map(|it| it.1).sum();
    let classes: Vec<String> =
        classes.values().map(|(name, count)| format!("{count} {name}")).collect();
    let offers = live().flat_map(|it| &it.instances).filter(|it| it.offered).count();
    text.push_str(&format!(" · {}", words::plural(total, "instance")));
    if total > 0 {
        text.push_str(&format!(": {}", classes.join(", ")));
    }
    text.push_str(&format!(" · {}", words::plural(offers, "open offer")));
    text
}

/// Widths of the columns: as wide as what is in them; where that is too much, the widest of those that
/// can be cut gives way.
pub(super) fn widths(rows: &[Row], available: u16) -> [u16; HEADER.len()] {
    let mut widths = HEADER.map(wide);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(&row.cells) {
            *width = (*width).max(wide(cell));
        }
    }
    let gaps = u16::try_from(HEADER.len() - 1).unwrap_or(0);
    let mut over = (widths.iter().sum::<u16>() + gaps).saturating_sub(available);
    while over > 0 {
        let cuttable = widths.iter_mut().zip(HEADER).filter(|(_, name)| CUTTABLE.contains(name));
        let Some((widest, _)) = cuttable.max_by_key(|(width, _)| **width) else { break };
        if *widest <= NARROWEST {
            break;
        }
        *widest -= 1;
        over -= 1;
    }
    widths
}

fn wide(text: impl AsRef<str>) -> u16 {
    u16::try_from(text.as_ref().chars().count()).unwrap_or(u16::MAX).min(WIDEST)
}

/// Why there is no row, and what to do.
pub(super) fn nothing(fleet: &Fleet) -> String {
    let Some(node) = fleet.nodes.first() else {
        return "No agent has connected yet. Start one on a node with GPUs: gleaner-agent, with \
                collector.address in its configuration."
            .to_owned();
    };
    let name = node.identity.as_ref().map_or("", |it| it.node.as_str());
    let why = match node.nvml_state.as_str() {
        "" => "its agent sees no device",
        state => state,
    };
    format!("No GPU. Node {name}: {why}. `gleaner-agent doctor` on the node says more.")
}

fn node_rows(node: &Node) -> Vec<Row> {
    let mut states = node.instances.iter();
    let instances =
        node.devices.iter().flat_map(|it| it.instances.iter().map(move |instance| (it, instance)));
    instances.map(|(device, instance)| row(node, device, instance, states.next())).collect()
}

fn row(node: &Node, device: &Device, instance: &Instance, state: Option<&InstanceState>) -> Row {
    let live = node.presence() == Presence::Live;
    let readings = device.readings.unwrap_or_default();
    let whole = instance.mig_uuid.is_none();
    let evidence = instance.evidence.unwrap_or_default();
    let busy_ratio = if whole { readings.busy_ratio } else { evidence.busy_ratio };
    let total = instance.memory_total_bytes;
    let used = if whole {
        readings.memory_used_bytes
    } else {
        total.zip(instance.memory_free_bytes).map(|(total, free)| total.saturating_sub(free))
    };
    let known = |it: Option<String>| it.unwrap_or_else(|| words::NOT_KNOWN.to_owned());
    let holders = instance.holders.iter().filter_map(|it| it.holder.as_ref());
    let class = instance.class();
    Row {
        class,
        live,
        offered: state.is_some_and(|it| it.offered),
        idle_age_ms: state.and_then(|it| it.idle_age_ms),
        busy_ratio,
        memory_used_bytes: used,
        cells: [
            node_name(node),
            gpu_name(device, instance),
            names::class_name(class).to_owned(),
            known(state.and_then(|it| it.class_age_ms).map(words::age)),
            words::percent(busy_ratio),
            words::part(used, if whole { readings.memory_total_bytes } else { total }),
            known(readings.power_mw.filter(|_| whole).map(|it| format!("{} W", it / 1000))),
            words::tenants(holders),
            offer(state, node),
        ],
    }
}

fn node_name(node: &Node) -> String {
    let name = node.identity.as_ref().map_or("", |it| it.node.as_str());
    match node.presence() {
        Presence::Live => name.to_owned(),
        Presence::Silent => format!("{name} (silent)"),
        Presence::Gone => format!("{name} (gone)"),
        Presence::Unspecified => format!("{name} (unknown)"),
    }
}

fn gpu_name(device: &Device, instance: &Instance) -> String {
    let name = device.index.map_or_else(|| device.gpu_uuid.clone(), |it| it.to_string());
    match (&instance.mig_uuid, &device.model) {
        (Some(mig), _) => format!("{name} {}", words::short_uuid(mig)),
        (None, Some(model)) => format!("{name} {model}"),
        (None, None) => name,
    }
}

fn offer(state: Option<&InstanceState>, node: &Node) -> String {
    let Some(state) = state.filter(|_| node.presence() == Presence::Live) else {
        return words::NOT_KNOWN.to_owned();
    };
    match (state.offered, state.dwell_left_ms) {
        (true, _) => "offered".to_owned(),
        (false, Some(left)) => format!("in {}", words::age(left)),
        (false, None) => "no".to_owned(),
    }
}

/// Idle classes first, since they are what one looks for.
fn rank(class: Class) -> u8 {
    match class {
        Class::Free => 0,
        Class::HeldNoProcess => 1,
        Class::HeldNoContext => 2,
        Class::MemoryHeld => 3,
        Class::Stalled => 4,
        Class::HostBound => 5,
        Class::Active => 6,
        Class::Down => 7,
        Class::Unknown | Class::Unspecified => 8,
    }
}

#[cfg(test)]
mod tests {
    use super::{Order, nothing, rows, summary, widths};
    use proto::capacity::v1::{Fleet, InstanceState, Node, node::Presence};
    use proto::telemetry::v1::{Class, Device, DeviceReadings, Instance, NodeIdentity};

    fn device(index: u32, class: Class, busy_ratio: Option<f64>) -> Device {
        Device {
            index: Some(index),
            readings: Some(DeviceReadings { busy_ratio, ..DeviceReadings::default() }),
            instances: vec![Instance { class: class.into(), ..Instance::default() }],
            ..Device::default()
        }
    }

    fn node(name: &str, presence: Presence, devices: Vec<Device>) -> Node {
        let state = InstanceState { offered: true, ..InstanceState::default() };
        Node {
            identity: Some(NodeIdentity { node: name.to_owned(), ..NodeIdentity::default() }),
            presence: presence.into(),
            instances: vec![state; devices.len()],
            devices,
            ..Node::default()
        }
    }

    fn fleet() -> Fleet {
        let a = vec![device(0, Class::Active, Some(0.4)), device(1, Class::Free, Some(0.0))];
        let b = vec![device(0, Class::Unknown, None), device(1, Class::Active, Some(0.9))];
        Fleet {
            nodes: vec![node("a", Presence::Live, a), node("b", Presence::Silent, b)],
            ..Fleet::default()
        }
    }

    fn check(order: Order, reverse: bool, expected: [&str; 4]) {
        let rows = rows(&fleet(), order, reverse);
        let names: Vec<String> =
            rows.iter().map(|it| format!("{}{}", &it.cells()[0][..1], it.cells()[1])).collect();
        assert_eq!(names, expected, "{order:?}");
    }

    #[test]
    fn rows_are_sorted_and_the_unknown_comes_last() {
        check(Order::Node, false, ["a0", "a1", "b0", "b1"]);
        check(Order::Node, true, ["b1", "b0", "a1", "a0"]);
        check(Order::Class, false, ["a1", "a0", "b1", "b0"]);
        check(Order::Busy, false, ["a0", "a1", "b1", "b0"]);
        let all = Order::ALL.iter().fold(Order::Node, |it, _| it.next());
        assert_eq!(all, Order::Node);
    }

    #[test]
    fn only_names_give_way_on_a_narrow_screen() {
        let rows = rows(&fleet(), Order::Node, false);
        assert_eq!(widths(&rows, 200), [10, 3, 7, 3, 4, 6, 5, 6, 7]);
        assert_eq!(widths(&rows, 57), [8, 3, 7, 3, 4, 6, 5, 6, 7]);
        assert_eq!(widths(&rows, 1), [6, 3, 7, 3, 4, 6, 5, 6, 7]);
    }

    #[test]
    fn what_a_silent_node_said_is_no_offer() {
        let rows = rows(&fleet(), Order::Node, false);
        let offers: Vec<&str> = rows.iter().map(|it| it.cells()[8].as_str()).collect();
        assert_eq!(offers, ["offered", "offered", "–", "–"]);
        assert_eq!(
            summary(&fleet()),
            "1 node live, 1 silent · 2 instances: 1 free, 1 active · 2 open offers"
        );
    }

    #[test]
    fn nothing_to_show_says_what_to_do() {
        assert!(nothing(&Fleet::default()).starts_with("No agent has connected yet"));
        let mut blind = node("a", Presence::Live, Vec::new());
        blind.nvml_state = "no NVIDIA driver".to_owned();
        let text = nothing(&Fleet { nodes: vec![blind], ..Fleet::default() });
        assert!(text.starts_with("No GPU. Node a: no NVIDIA driver."), "{text}");
    }
}
