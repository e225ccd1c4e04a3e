//! The fleet and the ledger as Prometheus text.
//!
//! Series of devices and tenants are those of `proto::series`, which the agent serves too; what only a
//! collector knows is added here. Gauges come from live nodes alone: what a silent node said last is
//! not what is true now. Counters come from the ledger and do not depend on who is connected.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use proto::exposition::{Labels, Text};
use proto::family::{FLAG, Family, Label, Subject, Table};
use proto::names;
use proto::series;
use proto::telemetry::v1::Class;

use crate::ledger::amounts::EnergyAmounts;
use crate::ledger::totals::{InstanceSeries, InstanceTotals, TenantSeries, Totals, UnownedSeries};
use crate::model::ids::{NodeKey, TenantLabels};
use crate::model::metering::EnergyMethod;
use crate::model::record::CLASSES;
use crate::state::fleet::{FleetSnapshot, Losses};
use crate::state::node::{Node, Presence};

/// When there is no series of a node that was heard of.
const FORGOTTEN: &str = "the node was silent for an hour";
const NOT_LIVE: &str = "the node is silent";

const NODE_INFO: Family =
    Family::gauge("gleaner_node_info", "1; cluster and agent version of a node, to join on node.")
        .of(Subject::Node)
        .by(&[Label::free("cluster"), Label::free("agent_version")])
        .absent(FORGOTTEN);
const NODE_UP: Family = Family::gauge(
    "gleaner_node_up",
    "1 while a node is heard, 0 when it is silent or its agent has gone.",
)
.of(Subject::Node)
.in_unit(FLAG)
.absent(FORGOTTEN);
const READING_AGE: Family =
    Family::gauge("gleaner_node_reading_age_seconds", "Time since a node's last readings arrived.")
        .of(Subject::Node)
        .absent(FORGOTTEN);
const SPOOL_RECORDS: Family = Family::gauge(
    "gleaner_node_spool_records",
    "Records in a node's spool that no collector has acknowledged yet.",
)
.of(Subject::Node)
.in_unit("records")
.absent(NOT_LIVE);
const CLASS_AGE: Family =
    Family::gauge("gleaner_gpu_class_age_seconds", "How long the instance has been in its class.")
        .of(Subject::Instance)
        .absent(NOT_LIVE);
const OFFERS_OPEN: Family =
    Family::gauge("gleaner_offers_open", "Offers of idle capacity that are open now, by class.")
        .by(&[Label::of("class", &names::class_names(&OFFERED))])
        .in_unit("offers")
        .absent("never");

/// When there is no series of what the ledger sums.
const NOT_IN_LEDGER: &str = "the ledger has no tile of it in which that was read";
const CLASS_SECONDS: Family = Family::counter(
    "gleaner_gpu_class_seconds_total",
    "Time of an instance by class, from the ledger; the classes sum to its wall time.",
)
.of(Subject::Instance)
.by(&[Label::of("class", &CLASSES)])
.absent("the instance was never in that class");
const MEMORY_INTEGRAL: Family = Family::counter(
    "gleaner_gpu_memory_byte_seconds_total",
    "Used memory of an instance integrated over time, from the ledger.",
)
.of(Subject::Instance)
.absent(NOT_IN_LEDGER)
.experimental();
const REFUSED_UPDATES: Family = Family::counter(
    "gleaner_fleet_refused_updates_total",
    "Live updates of nodes that there was no room for.",
)
.in_unit("updates")
.absent("never");
const CUT: Family = Family::counter(
    "gleaner_fleet_cut_total",
    "Parts of live updates that were over a bound and cut off, by what they were.",
)
.by(&[Label::of("what", &["device", "instance", "holder", "figure", "text"])])
.in_unit("parts")
.absent("never");
const CONFLICTS: Family = Family::counter(
    "gleaner_fleet_device_conflicts_total",
    "Times a live node began to list a device that another live node lists.",
)
.in_unit("conflicts")
.absent("never")
.note("The newer claim counts.");

/// Classes that can be offered.
const OFFERED: [Class; 5] =
    [Class::Free, Class::HeldNoProcess, Class::HeldNoContext, Class::MemoryHeld, Class::Stalled];

/// Every family that only a collector serves, but for those about itself.
#[must_use]
pub fn tables() -> Vec<Table> {
    let nodes = vec![NODE_INFO, NODE_UP, READING_AGE, SPOOL_RECORDS, CLASS_AGE, OFFERS_OPEN];
    let ledger = vec![CLASS_SECONDS, MEMORY_INTEGRAL];
    vec![
        Table { name: "nodes", families: nodes },
        Table { name: "ledger", families: ledger },
        Table { name: "losses", families: vec![REFUSED_UPDATES, CUT, CONFLICTS] },
    ]
}

/// Label values of nodes: the node's name, with its cluster in front where two clusters have a node of
/// that name.
#[derive(Debug)]
struct Names<'a> {
    ambiguous: BTreeSet<&'a str>,
}

/// Series of the newest readings, and of the nodes themselves.
pub fn write_fleet(text: &mut Text, fleet: &FleetSnapshot, now_ns: u64) {
    let names = Names::of(fleet.nodes.iter().map(|it| &it.key));
    let named: Vec<(String, &Node)> =
        fleet.nodes.iter().map(|it| (names.label(&it.key), it.as_ref())).collect();
    let live: Vec<_> = named.iter().filter(|(_, it)| it.presence == Presence::Live).collect();
    write_nodes(text, &named, now_ns);
    let updates: Vec<_> = live.iter().map(|(name, it)| (name.as_str(), &it.update)).collect();
    series::write_live(text, &updates);
    text.family(SPOOL_RECORDS);
    for (name, node) in &live {
        text.count(&Labels::new([("node", name.as_str())]), Some(node.update.spool_records));
    }
    text.family(CLASS_AGE);
    for (name, node) in &live {
        for it in node.instances() {
            let device = Labels::new([("node", name.as_str()), ("gpu_uuid", &it.device.gpu_uuid)]);
            let labels = names::instance_labels(&device, it.instance);
            text.sample(&labels, it.class_age_ns(now_ns).map(seconds));
        }
    }
    write_losses(text, &fleet.losses);
}

/// Open offers; a class without any is a measured 0.
pub fn write_offers(text: &mut Text, open: &BTreeMap<Class, u32>) {
    text.family(OFFERS_OPEN);
    for class in OFFERED {
        let labels = Labels::new([("class", names::class_name(class))]);
        text.count(&labels, Some(open.get(&class).copied().unwrap_or(0).into()));
    }
}

/// Running totals of the ledger.
pub fn write_totals(text: &mut Text, totals: &Totals) {
    text.family(series::TENANT_GPU_SECONDS);
    for (series, ns) in &totals.tenants {
        let mut labels = tenant(&series.labels);
        labels.push("share", series.share.as_str());
        if let Some(method) = series.method {
            labels.push("method", method.as_str());
        }
        text.seconds(&labels, *ns);
    }
    let names = Names::of(
        totals
            .instances
            .keys()
            .map(|it| it.node.as_ref())
            .chain(totals.cuda_devices.keys().map(|it| it.node.as_ref()))
            .chain(totals.unowned.keys().map(|it| it.instance.node.as_ref())),
    );
    text.family(series::GPU_SECONDS);
    for (series, ns) in &totals.unowned {
        text.seconds(&unowned(series, &names), *ns);
    }
    write_energy(text, totals, &names);
    write_instances(text, totals, &names);
    let tenants = totals.cuda.iter().map(|(it, sums)| (tenant(it), sums.totals()));
    series::write_tenants(text, &tenants.collect::<Vec<_>>());
    let devices = totals.cuda_devices.iter().map(|(it, sums)| (names.instance(it), sums.totals()));
    series::write_devices(text, &devices.collect::<Vec<_>>());
}

fn write_nodes(text: &mut Text, nodes: &[(String, &Node)], now_ns: u64) {
    text.family(NODE_INFO);
    for (name, node) in nodes {
        let version = node.agent_version();
        let mut labels = Labels::new([("node", name.as_str()), ("cluster", &node.key.cluster)]);
        if !version.is_empty() {
            labels.push("agent_version", version);
        }
        text.count(&labels, Some(1));
    }
    text.family(NODE_UP);
    for (name, node) in nodes {
        let up = u64::from(node.presence == Presence::Live);
        text.count(&Labels::new([("node", name.as_str())]), Some(up));
    }
    text.family(READING_AGE);
    for (name, node) in nodes {
        let age = seconds(node.reading_age_ns(now_ns));
        text.sample(&Labels::new([("node", name.as_str())]), Some(age));
    }
}

fn write_losses(text: &mut Text, losses: &Losses) {
    let none = Labels::default();
    text.family(REFUSED_UPDATES).count(&none, Some(losses.updates));
    text.family(CONFLICTS).count(&none, Some(losses.conflicts));
    text.family(CUT);
    let cuts = &losses.cuts;
    for (what, count) in [
        ("device", cuts.devices),
        ("instance", cuts.instances),
        ("holder", cuts.holders),
        ("figure", cuts.figures),
        ("text", cuts.texts),
    ] {
        text.count(&Labels::new([("what", what)]), Some(count));
    }
}

fn write_instances(text: &mut Text, totals: &Totals, names: &Names<'_>) {
    let instances: Vec<_> =
        totals.instances.iter().map(|(it, totals)| (names.instance(it), totals)).collect();
    text.family(CLASS_SECONDS);
    for (labels, totals) in &instances {
        for (class, ns) in CLASSES.iter().zip(totals.class_ns) {
            // A class that the instance never was in has no series: nine for each would be a lot.
            if ns > 0 {
                text.seconds(&labels.with("class", class), ns);
            }
        }
    }
    text.family(MEMORY_INTEGRAL);
    for (labels, totals) in &instances {
        text.count(labels, totals.memory_byte_seconds.map(saturating));
    }
    let metered = instances.iter().map(|(labels, totals)| (labels.clone(), metered(totals)));
    series::write_metered(text, &metered.collect::<Vec<_>>());
}

fn metered(totals: &InstanceTotals) -> series::Metered {
    let classes = totals.class_mj.iter().flatten().zip(1_i32..);
    let known = classes.filter(|(mj, _)| **mj > 0);
    let class_energy = known.filter_map(|(mj, class)| Some((Class::try_from(class).ok()?, *mj)));
    series::Metered {
        energy: totals.energy_mj,
        class_energy: class_energy.collect(),
        sm: totals.sm_ns,
        seen: totals.seen_ns,
    }
}

/// By share, however active time was found: series of one share follow each other.
fn write_energy(text: &mut Text, totals: &Totals, names: &Names<'_>) {
    text.family(series::TENANT_ENERGY);
    let series: Vec<_> = totals.tenant_energy.iter().collect();
    let same = |a: &TenantSeries, b: &TenantSeries| a.labels == b.labels && a.share == b.share;
    for run in series.chunk_by(|a, b| same(a.0, b.0)) {
        let sum = run.iter().fold(EnergyAmounts::default(), |sum, it| sum.plus(it.1));
        let labels = tenant(&run[0].0.labels).with("share", run[0].0.share.as_str());
        write_methods(text, &labels, &sum);
    }
    text.family(series::UNOWNED_ENERGY);
    for (series, energy) in &totals.unowned_energy {
        write_methods(text, &unowned(series, names), energy);
    }
}

/// A way in which nothing was cut has no series.
fn write_methods(text: &mut Text, labels: &Labels, energy: &EnergyAmounts) {
    for (method, mj) in EnergyMethod::ALL.into_iter().zip(energy.mj).filter(|it| it.1 > 0) {
        text.joules(&labels.with("method", method.as_str()), mj);
    }
}

fn unowned(series: &UnownedSeries, names: &Names<'_>) -> Labels {
    let mut labels = names.instance(&series.instance).with("share", series.share.as_str());
    if !series.reason.as_str().is_empty() {
        labels.push("reason", series.reason.as_str());
    }
    labels
}

// === impl Names ===

impl<'a> Names<'a> {
    fn of(keys: impl Iterator<Item = &'a NodeKey>) -> Self {
        let mut clusters: BTreeMap<&str, &str> = BTreeMap::new();
        let mut ambiguous = BTreeSet::new();
        for key in keys {
            if *clusters.entry(&key.node).or_insert(&key.cluster) != key.cluster {
                ambiguous.insert(key.node.as_str());
            }
        }
        Self { ambiguous }
    }

    fn label(&self, key: &NodeKey) -> String {
        if self.ambiguous.contains(key.node.as_str()) { key.to_string() } else { key.node.clone() }
    }

    fn instance(&self, it: &InstanceSeries) -> Labels {
        let node = self.label(&it.node);
        let labels = Labels::new([("node", node.as_str()), ("gpu_uuid", &it.instance.gpu_uuid)]);
        it.instance
            .mig_uuid
            .as_ref()
            .map_or_else(|| labels.clone(), |mig| labels.with("mig_uuid", mig))
    }
}

fn tenant(labels: &TenantLabels) -> Labels {
    names::labels_of(
        &labels.tenant,
        labels.namespace.as_deref(),
        labels.pod.as_deref(),
        labels.container.as_deref(),
    )
}

/// The exposition counts in 64 bits; the ledger in 128.
fn saturating(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// For ages, which are shown and never added up.
#[expect(clippy::cast_precision_loss, reason = "an age of months keeps its microseconds")]
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}
