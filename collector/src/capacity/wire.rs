//! Offers and the fleet as `capacity.v1` says them. Total conversions; ages are taken here.

use proto::capacity::v1 as pb;
use proto::telemetry::v1::{Holder, Instance, InstanceId, NodeIdentity};
use tokio::time::Duration;

use super::offers::Offer;
use super::policy::{Decision, Policy, Withheld};
use crate::state::fleet::FleetSnapshot;
use crate::state::node::{Node, Observed, Presence};

const NS_PER_MS: u64 = 1_000_000;

pub(super) fn offer(offer: &Offer, valid_for: Duration, now_ns: u64) -> pb::Offer {
    let observed = offer.observed();
    let (node, device, instance) = (observed.node, observed.device, observed.instance);
    pb::Offer {
        id: observed.id().as_ref().to_owned(),
        version: offer.version,
        cluster: node.key.cluster.clone(),
        node: node.key.node.clone(),
        instance: Some(InstanceId {
            gpu_uuid: device.gpu_uuid.clone(),
            mig_uuid: instance.mig_uuid.clone(),
        }),
        model: device.model.clone(),
        index: device.index,
        numa_node: device.numa_node,
        class: instance.class,
        idle_age_ms: observed.idle_age_ns(now_ns).unwrap_or(0) / NS_PER_MS,
        reading_age_ms: node.reading_age_ns(now_ns) / NS_PER_MS,
        valid_for_ms: u32::try_from(valid_for.as_millis()).unwrap_or(u32::MAX),
        dwell_ms: saturating_ms(offer.dwell_ns),
        memory_total_bytes: instance.memory_total_bytes,
        memory_free_bytes: instance.memory_free_bytes,
        evidence: instance.evidence,
        holders: holders(instance),
    }
}

pub(super) fn fleet(
    fleet: &FleetSnapshot,
    policy: Policy,
    position: pb::Position,
    now_ns: u64,
) -> pb::Fleet {
    pb::Fleet {
        position: Some(position),
        nodes: fleet.nodes.iter().map(|it| node(it, policy, now_ns)).collect(),
        held_dwell_ms: saturating_ms(policy.held_dwell_ns),
    }
}

fn node(node: &Node, policy: Policy, now_ns: u64) -> pb::Node {
    pb::Node {
        identity: Some(NodeIdentity {
            cluster: node.key.cluster.clone(),
            node: node.key.node.clone(),
            boot_id: node.boot_id().to_owned(),
            agent_version: node.agent_version().to_owned(),
        }),
        presence: presence(node.presence).into(),
        reading_age_ms: node.reading_age_ns(now_ns) / NS_PER_MS,
        devices: node.update.devices.clone(),
        tracing: node.update.tracing.clone(),
        nvml_state: node.update.nvml_state.clone(),
        instances: node.instances().map(|it| instance(&it, policy, now_ns)).collect(),
        spool_records: node.update.spool_records,
    }
}

fn instance(observed: &Observed<'_>, policy: Policy, now_ns: u64) -> pb::InstanceState {
    let decision = policy.decide(observed);
    pb::InstanceState {
        class_age_ms: observed.class_age_ns(now_ns).map(|it| it / NS_PER_MS),
        idle_age_ms: observed.idle_age_ns(now_ns).map(|it| it / NS_PER_MS),
        offered: matches!(decision, Decision::Offer { .. }),
        dwell_left_ms: match decision {
            Decision::Withhold(Withheld::Dwelling { left_ns }) => Some(left_ns / NS_PER_MS),
            Decision::Withhold(_) | Decision::Offer { .. } => None,
        },
    }
}

fn presence(presence: Presence) -> pb::node::Presence {
    match presence {
        Presence::Live => pb::node::Presence::Live,
        Presence::Silent => pb::node::Presence::Silent,
        Presence::Gone => pb::node::Presence::Gone,
    }
}

fn holders(instance: &Instance) -> Vec<Holder> {
    instance.holders.iter().filter_map(|it| it.holder.clone()).collect()
}

fn saturating_ms(ns: u64) -> u32 {
    u32::try_from(ns / NS_PER_MS).unwrap_or(u32::MAX)
}
