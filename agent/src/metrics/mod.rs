//! The agent's `/metrics`: the node's series, as the collector serves them for the fleet, and the
//! agent's own.

mod dcgm;
pub mod own;
mod parts;

use std::collections::BTreeMap;

use proto::cuda;
use proto::exposition::{Labels, Text};
use proto::family::Table;
use proto::names;
use proto::series;
use proto::telemetry::v1::LiveUpdate;

use crate::metrics::own::Own;
use crate::model::ids::{DeviceId, InstanceId};
use crate::model::readings;
use crate::model::usage::Share;
use crate::record::common::wire_class;
use crate::record::counts::dense;
use crate::samplers::nvml::NvmlStats;
use crate::spool::SpoolStatus;
use crate::totals::{CudaTotals, Held, InstanceTotals, Tenant, TenantTotals, Totals};
use crate::uplink::link::LinkState;

/// What a scrape shows of the node. Rendered only when asked for.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub node: String,
    pub live: LiveUpdate,
    pub totals: Totals,
    /// Calls of processes beyond `cuda.max_processes`: nobody's, and not lost.
    pub overflow: readings::CudaCounts,
    /// What a hit on a hook costs; `None` where nothing is traced.
    pub hit_costs: Option<readings::HitCosts>,
    pub nvml: NvmlStats,
    /// What people on the node have asked for and the loop has not answered.
    pub waiting_commands: usize,
    pub spool: SpoolStatus,
    pub link: LinkState,
    /// The readings under the names of dcgm-exporter, too.
    pub dcgm_compat: bool,
}

/// The whole body of a scrape. Before the first reading there is nothing to say about the node.
#[must_use]
pub fn render(snapshot: Option<&Snapshot>, own: &Own) -> String {
    let mut text = Text::default();
    if let Some(snapshot) = snapshot {
        series::write_live(&mut text, &[(snapshot.node.as_str(), &snapshot.live)]);
        write_shares(&mut text, snapshot);
        write_energy(&mut text, snapshot);
        series::write_tenants(&mut text, &cuda_by_tenant(&snapshot.totals));
        series::write_devices(&mut text, &cuda_by_device(snapshot));
        if snapshot.live.tracing.as_ref().is_some_and(|it| it.on) {
            parts::write_overflow(&mut text, &snapshot.node, &snapshot.overflow);
            parts::write_hit_costs(&mut text, &snapshot.node, snapshot.hit_costs);
        }
        parts::write_nvml(&mut text, &snapshot.node, &snapshot.nvml);
        parts::write_queues(&mut text, snapshot);
        parts::write_spool(&mut text, &snapshot.spool);
        parts::write_link(&mut text, &snapshot.link);
        if snapshot.dcgm_compat {
            dcgm::write(&mut text, &snapshot.node, &snapshot.live);
        }
    }
    text.into_body() + &own.render()
}

/// Every family that only an agent serves.
#[must_use]
pub fn tables() -> Vec<Table> {
    let own = [own::families(), parts::families()].concat();
    vec![
        Table { name: "tracing", families: parts::tracing_families() },
        Table { name: "agent", families: own },
        Table { name: "dcgm", families: dcgm::families() },
    ]
}

fn write_shares(text: &mut Text, snapshot: &Snapshot) {
    text.family(series::TENANT_GPU_SECONDS);
    for (tenant, totals) in &snapshot.totals.tenants {
        for (held, nanoseconds) in &totals.shares {
            text.seconds(&held_labels(labels_of(tenant), *held), *nanoseconds);
        }
    }
    text.family(series::GPU_SECONDS);
    for ((id, share), nanoseconds) in &snapshot.totals.unowned {
        text.seconds(&unowned_labels(instance_labels(snapshot, id), share), *nanoseconds);
    }
}

fn write_energy(text: &mut Text, snapshot: &Snapshot) {
    text.family(series::TENANT_ENERGY);
    for (tenant, totals) in &snapshot.totals.tenants {
        for ((share, method), mj) in energy_by_share(totals) {
            let labels = labels_of(tenant).with("share", share).with("method", method);
            text.joules(&labels, mj);
        }
    }
    text.family(series::UNOWNED_ENERGY);
    for ((id, share, method), mj) in &snapshot.totals.unowned_energy {
        let labels = unowned_labels(instance_labels(snapshot, id), share);
        text.joules(&labels.with("method", method.as_str()), *mj);
    }
    let instances = snapshot.totals.instances.iter();
    let metered = instances.map(|(id, it)| (instance_labels(snapshot, id), metered(it)));
    series::write_metered(text, &metered.collect::<Vec<_>>());
}

/// However active time was found: it is the way in which energy was cut that matters here.
fn energy_by_share(totals: &TenantTotals) -> BTreeMap<(&'static str, &'static str), u128> {
    let mut sums = BTreeMap::new();
    for ((held, method), mj) in &totals.energy {
        *sums.entry((share_name(*held), method.as_str())).or_default() += mj;
    }
    sums
}

fn metered(totals: &InstanceTotals) -> series::Metered {
    let wide = |ns: u64| u128::from(ns);
    let measured = Some(totals.sm).filter(|it| it.measured_ns > 0);
    series::Metered {
        energy: totals.energy,
        class_energy: totals
            .class_energy
            .iter()
            .map(|(class, mj)| (wire_class(*class), *mj))
            .collect(),
        sm: measured.map(|it| (wide(it.active_ns), wide(it.measured_ns))),
        seen: Some((wide(totals.seen.process_ns), wide(totals.seen.healthy_ns))),
    }
}

fn instance_labels(snapshot: &Snapshot, id: &InstanceId) -> Labels {
    let labels = Labels::new([("node", snapshot.node.as_str()), ("gpu_uuid", &id.device.0)]);
    id.mig.as_ref().map_or_else(|| labels.clone(), |mig| labels.with("mig_uuid", mig))
}

fn share_name(held: Held) -> &'static str {
    match held {
        Held::Active(_) => "active",
        Held::Idle => "held_idle",
        Held::Unknown => "held_unknown",
    }
}

fn labels_of(tenant: &Tenant) -> Labels {
    names::labels_of(
        &tenant.tenant,
        tenant.namespace.as_deref(),
        tenant.pod.as_deref(),
        tenant.container.as_deref(),
    )
}

fn held_labels(labels: Labels, held: Held) -> Labels {
    let labels = labels.with("share", share_name(held));
    match held {
        Held::Active(method) => labels.with("method", method.as_str()),
        Held::Idle | Held::Unknown => labels,
    }
}

fn unowned_labels(labels: Labels, share: &Share) -> Labels {
    match share {
        Share::Unattributed(reason) => {
            labels.with("share", "unattributed").with("reason", reason.as_str())
        }
        Share::Unobserved(reason) => {
            labels.with("share", "unobserved").with("reason", reason.as_str())
        }
        Share::Free => labels.with("share", "free"),
        Share::Unconfigured => labels.with("share", "free").with("reason", names::UNCONFIGURED),
        Share::Active(..) | Share::HeldIdle(_) | Share::HeldUnknown(_) => {
            unreachable!("`Totals` keeps what belongs to somebody by tenant")
        }
    }
}

fn cuda_by_tenant(totals: &Totals) -> Vec<(Labels, cuda::Totals)> {
    let counted = totals.tenants.iter().filter_map(|(tenant, it)| Some((tenant, it.cuda?)));
    counted.map(|(tenant, it)| (labels_of(tenant), cuda_totals(&it))).collect()
}

fn cuda_by_device(snapshot: &Snapshot) -> Vec<(Labels, cuda::Totals)> {
    let labels = |id: &DeviceId| {
        Labels::new([("node", snapshot.node.as_str()), ("gpu_uuid", id.0.as_ref())])
    };
    snapshot.totals.devices.iter().map(|(id, it)| (labels(id), cuda_totals(it))).collect()
}

fn cuda_totals(totals: &CudaTotals) -> cuda::Totals {
    cuda::Totals {
        counts: dense(&totals.counts),
        memory_known: totals.memory_known,
        sampled_ns: totals.sampled_ns,
    }
}
