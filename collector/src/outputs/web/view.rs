//! What the JSON and the page say. Pure: from the fleet and the offers to plain values.
//!
//! A field that is not known is `null`, never 0.

use std::collections::BTreeMap;

use proto::cuda::Counts;
use proto::names;
use proto::telemetry::v1::{Device, Health, LiveHolder, Tracing, holder};
use serde::Serialize;

use crate::capacity::offers::Offer;
use crate::capacity::policy::{Decision, Policy, Withheld};
use crate::state::fleet::FleetSnapshot;
use crate::state::node::{Node, Observed, Presence};

const NS_PER_MS: u64 = 1_000_000;

/// Which nodes and offers are asked for, and how many at most.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    /// In lower case; empty = everything.
    pub(super) words: String,
    pub(super) nodes: usize,
    pub(super) offers: usize,
}

#[derive(Debug, Serialize)]
pub(super) struct Fleet<'a> {
    pub(super) held_dwell_ms: u64,
    pub(super) summary: Summary,
    /// Nodes that match and are left out for their number.
    pub(super) nodes_left_out: usize,
    pub(super) nodes: Vec<NodeView<'a>>,
}

/// Of the whole fleet, whatever was asked for. Instances of live nodes only.
#[derive(Debug, Default, Serialize)]
pub(super) struct Summary {
    pub(super) live: u32,
    pub(super) silent: u32,
    pub(super) gone: u32,
    pub(super) instances: u32,
    pub(super) classes: BTreeMap<&'static str, u32>,
    pub(super) dwelling: u32,
}

#[derive(Debug, Serialize)]
pub(super) struct NodeView<'a> {
    cluster: &'a str,
    node: &'a str,
    presence: &'static str,
    reading_age_ms: u64,
    agent_version: &'a str,
    nvml_state: &'a str,
    tracing: Option<TracingView<'a>>,
    spool_records: u64,
    gpus: Vec<GpuView<'a>>,
}

#[derive(Debug, Serialize)]
struct TracingView<'a> {
    on: bool,
    reason: &'a str,
    hooks_attached: u32,
    hooks_wanted: u32,
    lost: u64,
    sampling_factor: Option<f64>,
    memory_held_back: &'a [String],
}

#[derive(Debug, Serialize)]
struct GpuView<'a> {
    gpu_uuid: &'a str,
    index: Option<u32>,
    pci_bus_id: Option<&'a str>,
    model: Option<&'a str>,
    driver_version: Option<&'a str>,
    health: &'static str,
    suggestion: Option<SuggestionView<'a>>,
    numa_node: Option<u32>,
    busy_ratio: Option<f64>,
    memory_total_bytes: Option<u64>,
    memory_used_bytes: Option<u64>,
    power_mw: Option<u64>,
    power_limit_mw: Option<u64>,
    temperature_celsius: Option<i32>,
    instances: Vec<InstanceView<'a>>,
}

#[derive(Debug, Serialize)]
struct SuggestionView<'a> {
    action: Option<&'static str>,
    reason: &'a str,
}

#[derive(Debug, Serialize)]
struct InstanceView<'a> {
    id: &'a str,
    mig_uuid: Option<&'a str>,
    class: &'static str,
    class_age_ms: Option<u64>,
    idle_age_ms: Option<u64>,
    reason: &'a str,
    offered: bool,
    /// `busy`, `unknown`, `unhealthy`, `silent`, `gone`, `dwelling`; `null` = offered.
    withheld: Option<&'static str>,
    dwell_left_ms: Option<u64>,
    busy_ratio: Option<f64>,
    memory_total_bytes: Option<u64>,
    memory_free_bytes: Option<u64>,
    holders: Vec<HolderView<'a>>,
}

#[derive(Debug, Serialize)]
struct HolderView<'a> {
    kind: &'static str,
    id: &'a str,
    tenant: &'a str,
    namespace: Option<&'a str>,
    pod: Option<&'a str>,
    container: Option<&'a str>,
    processes: u32,
    memory_bytes: Option<u64>,
    last_launch_age_ms: Option<u64>,
    sm_ratio: Option<f64>,
    launches: Option<u64>,
}

#[derive(Debug, Serialize)]
pub(super) struct Offers<'a> {
    pub(super) generation: &'a str,
    pub(super) revision: u64,
    /// Open offers, whatever was asked for.
    pub(super) open: usize,
    pub(super) offers_left_out: usize,
    pub(super) offers: Vec<OfferView<'a>>,
}

#[derive(Debug, Serialize)]
pub(super) struct OfferView<'a> {
    id: &'a str,
    version: u64,
    cluster: &'a str,
    node: &'a str,
    gpu_uuid: &'a str,
    mig_uuid: Option<&'a str>,
    model: Option<&'a str>,
    index: Option<u32>,
    numa_node: Option<u32>,
    class: &'static str,
    idle_age_ms: Option<u64>,
    reading_age_ms: u64,
    dwell_ms: u64,
    memory_total_bytes: Option<u64>,
    memory_free_bytes: Option<u64>,
    holders: Vec<HolderView<'a>>,
}

pub(super) fn fleet<'a>(
    fleet: &'a FleetSnapshot,
    policy: Policy,
    selection: &Selection,
    now_ns: u64,
) -> Fleet<'a> {
    let nodes = fleet.nodes.iter().map(AsRef::as_ref);
    let matching: Vec<&Node> = nodes.filter(|it| selection.has_node(it)).collect();
    let shown = matching.len().min(selection.nodes);
    Fleet {
        held_dwell_ms: policy.held_dwell_ns / NS_PER_MS,
        summary: summary(fleet, policy),
        nodes_left_out: matching.len() - shown,
        nodes: matching[..shown].iter().map(|it| node(it, policy, selection, now_ns)).collect(),
    }
}

pub(super) fn offers<'a>(
    (generation, revision): (&'a str, u64),
    open: &'a mut [Offer],
    selection: &Selection,
    now_ns: u64,
) -> Offers<'a> {
    open.sort_by(|a, b| a.observed().id().cmp(b.observed().id()));
    let open = &*open;
    let matching = || open.iter().filter(|it| selection.has_instance(&it.observed()));
    let offers: Vec<_> = matching().take(selection.offers).map(|it| offer(it, now_ns)).collect();
    Offers {
        generation,
        revision,
        open: open.len(),
        offers_left_out: matching().count() - offers.len(),
        offers,
    }
}

// === impl Selection ===

impl Selection {
    pub(super) const ALL: Self =
        Self { words: String::new(), nodes: usize::MAX, offers: usize::MAX };

    fn has_node(&self, node: &Node) -> bool {
        self.has_name(node) || node.instances().any(|it| self.has_instance(&it))
    }

    /// A node that is asked for by name is shown whole.
    fn has_name(&self, node: &Node) -> bool {
        self.has_text(&node.key.node) || self.has_text(&node.key.cluster)
    }

    fn has_instance(&self, it: &Observed<'_>) -> bool {
        let holders = it.instance.holders.iter().filter_map(|it| it.holder.as_ref());
        self.has_text(it.id())
            || self.has_text(names::class_name(it.class()))
            || it.device.model.as_deref().is_some_and(|it| self.has_text(it))
            || holders.into_iter().any(|it| self.has_text(&it.tenant) || self.has_text(&it.id))
    }

    fn has_text(&self, text: &str) -> bool {
        self.words.is_empty() || text.to_lowercase().contains(&self.words)
    }
}

fn summary(fleet: &FleetSnapshot, policy: Policy) -> Summary {
    let mut summary = Summary::default();
    for node in &fleet.nodes {
        match node.presence {
            Presence::Live => summary.live += 1,
            Presence::Silent => summary.silent += 1,
            Presence::Gone => summary.gone += 1,
        }
        if node.presence != Presence::Live {
            continue;
        }
        for it in node.instances() {
            summary.instances += 1;
            *summary.classes.entry(names::class_name(it.class())).or_insert(0) += 1;
            let dwelling = policy.decide(&it).is_dwelling();
            summary.dwelling += u32::from(dwelling);
        }
    }
    summary
}

fn node<'a>(node: &'a Node, policy: Policy, selection: &Selection, now_ns: u64) -> NodeView<'a> {
    let whole = selection.has_name(node);
    let mut instances = node.instances();
    let gpus = node.update.devices.iter().filter_map(|device| {
        let mut own: Vec<_> = instances.by_ref().take(device.instances.len()).collect();
        own.retain(|it| whole || selection.has_instance(it));
        let views = own.into_iter().map(|it| instance(it, policy, now_ns)).collect::<Vec<_>>();
        (whole || !views.is_empty()).then(|| gpu(device, views))
    });
    NodeView {
        cluster: &node.key.cluster,
        node: &node.key.node,
        presence: match node.presence {
            Presence::Live => "live",
            Presence::Silent => "silent",
            Presence::Gone => "gone",
        },
        reading_age_ms: node.reading_age_ns(now_ns) / NS_PER_MS,
        agent_version: node.agent_version(),
        nvml_state: &node.update.nvml_state,
        tracing: node.update.tracing.as_ref().map(tracing),
        spool_records: node.update.spool_records,
        gpus: gpus.collect(),
    }
}

fn tracing(tracing: &Tracing) -> TracingView<'_> {
    TracingView {
        on: tracing.on,
        reason: &tracing.reason,
        hooks_attached: tracing.hooks_attached,
        hooks_wanted: tracing.hooks_wanted,
        lost: tracing.lost.iter().fold(0, |sum, it| sum.saturating_add(it.count)),
        sampling_factor: tracing.sampling_factor,
        memory_held_back: &tracing.memory_held_back,
    }
}

fn gpu<'a>(device: &'a Device, instances: Vec<InstanceView<'a>>) -> GpuView<'a> {
    let readings = device.readings.as_ref();
    GpuView {
        gpu_uuid: &device.gpu_uuid,
        index: device.index,
        pci_bus_id: device.pci_bus_id.as_deref(),
        model: device.model.as_deref(),
        driver_version: device.driver_version.as_deref(),
        health: match device.health() {
            Health::Unspecified => "unknown",
            Health::Ok => "ok",
            Health::Degraded => "degraded",
            Health::Hung => "hung",
            Health::Lost => "lost",
            Health::ResetRequired => "reset_required",
            Health::Released => "released",
        },
        suggestion: device.suggestion.as_ref().map(|it| SuggestionView {
            action: names::action_name(it.action()),
            reason: &it.reason,
        }),
        numa_node: device.numa_node,
        busy_ratio: readings.and_then(|it| it.busy_ratio),
        memory_total_bytes: readings.and_then(|it| it.memory_total_bytes),
        memory_used_bytes: readings.and_then(|it| it.memory_used_bytes),
        power_mw: readings.and_then(|it| it.power_mw),
        power_limit_mw: readings.and_then(|it| it.power_limit_mw),
        temperature_celsius: readings.and_then(|it| it.temperature_celsius),
        instances,
    }
}

fn instance(it: Observed<'_>, policy: Policy, now_ns: u64) -> InstanceView<'_> {
    let decision = policy.decide(&it);
    InstanceView {
        id: it.id(),
        mig_uuid: it.instance.mig_uuid.as_deref(),
        class: names::class_name(it.class()),
        class_age_ms: it.class_age_ns(now_ns).map(|it| it / NS_PER_MS),
        idle_age_ms: it.idle_age_ns(now_ns).map(|it| it / NS_PER_MS),
        reason: &it.instance.reason,
        offered: matches!(decision, Decision::Offer { .. }),
        withheld: match decision {
            Decision::Offer { .. } => None,
            Decision::Withhold(withheld) => Some(withheld.name()),
        },
        dwell_left_ms: match decision {
            Decision::Withhold(Withheld::Dwelling { left_ns }) => Some(left_ns / NS_PER_MS),
            Decision::Withhold(_) | Decision::Offer { .. } => None,
        },
        busy_ratio: it.instance.evidence.as_ref().and_then(|it| it.busy_ratio),
        memory_total_bytes: it.instance.memory_total_bytes,
        memory_free_bytes: it.instance.memory_free_bytes,
        holders: it.instance.holders.iter().filter_map(holder).collect(),
    }
}

fn holder(live: &LiveHolder) -> Option<HolderView<'_>> {
    let holder = live.holder.as_ref()?;
    Some(HolderView {
        kind: match holder.kind() {
            holder::Kind::Unspecified => "unknown",
            holder::Kind::Pod => "pod",
            holder::Kind::SlurmStep => "slurm_step",
            holder::Kind::Container => "container",
            holder::Kind::Unit => "unit",
            holder::Kind::User => "user",
        },
        id: &holder.id,
        tenant: &holder.tenant,
        namespace: holder.tenant_namespace.as_deref(),
        pod: holder.tenant_pod.as_deref(),
        container: holder.tenant_container.as_deref(),
        processes: live.processes,
        memory_bytes: live.memory_bytes,
        last_launch_age_ms: live.last_launch_age_ns.map(|it| it / NS_PER_MS),
        sm_ratio: live.sm_ratio,
        launches: live.cuda.as_ref().map(|it| Counts::of(it).launches()),
    })
}

fn offer(offer: &Offer, now_ns: u64) -> OfferView<'_> {
    let it = offer.observed();
    OfferView {
        id: it.id(),
        version: offer.version,
        cluster: &it.node.key.cluster,
        node: &it.node.key.node,
        gpu_uuid: &it.device.gpu_uuid,
        mig_uuid: it.instance.mig_uuid.as_deref(),
        model: it.device.model.as_deref(),
        index: it.device.index,
        numa_node: it.device.numa_node,
        class: names::class_name(it.class()),
        idle_age_ms: it.idle_age_ns(now_ns).map(|it| it / NS_PER_MS),
        reading_age_ms: it.node.reading_age_ns(now_ns) / NS_PER_MS,
        dwell_ms: offer.dwell_ns / NS_PER_MS,
        memory_total_bytes: it.instance.memory_total_bytes,
        memory_free_bytes: it.instance.memory_free_bytes,
        holders: it.instance.holders.iter().filter_map(holder).collect(),
    }
}
