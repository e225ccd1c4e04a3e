//! Messages of the collector as `--json` prints them. What is not known is `null`, never 0.

use proto::capacity::v1 as pb;
use proto::names;
use proto::telemetry::v1::{Device, Health, Holder, Instance, LiveHolder, Suggestion, TracingLoss};
use serde_json::{Map, Value, json};

use crate::words;

pub(crate) fn fleet(fleet: &pb::Fleet) -> Value {
    json!({
        "position": fleet.position.as_ref().map(position),
        "held_dwell_ms": fleet.held_dwell_ms,
        "nodes": fleet.nodes.iter().map(node).collect::<Vec<_>>(),
    })
}

pub(crate) fn position(position: &pb::Position) -> Value {
    json!({ "generation": position.generation, "revision": position.revision })
}

pub(crate) fn offer(offer: &pb::Offer) -> Value {
    let instance = offer.instance.clone().unwrap_or_default();
    let evidence = offer.evidence.unwrap_or_default();
    json!({
        "id": offer.id,
        "version": offer.version,
        "cluster": offer.cluster,
        "node": offer.node,
        "gpu_uuid": instance.gpu_uuid,
        "mig_uuid": instance.mig_uuid,
        "model": offer.model,
        "index": offer.index,
        "numa_node": offer.numa_node,
        "class": names::class_name(offer.class()),
        "idle_age_ms": offer.idle_age_ms,
        "reading_age_ms": offer.reading_age_ms,
        "valid_for_ms": offer.valid_for_ms,
        "dwell_ms": offer.dwell_ms,
        "memory_total_bytes": offer.memory_total_bytes,
        "memory_free_bytes": offer.memory_free_bytes,
        "evidence": {
            "busy_ratio": evidence.busy_ratio,
            "memory_used_bytes": evidence.memory_used_bytes,
            "processes": evidence.processes,
            "last_launch_age_ms": evidence.last_launch_age_ns.map(|it| it / 1_000_000),
            "power_mw": evidence.power_mw,
        },
        "holders": offer.holders.iter().map(holder).collect::<Vec<_>>(),
    })
}

pub(crate) fn presence(node: &pb::Node) -> &'static str {
    match node.presence() {
        pb::node::Presence::Unspecified => "unknown",
        pb::node::Presence::Live => "live",
        pb::node::Presence::Silent => "silent",
        pb::node::Presence::Gone => "gone",
    }
}

pub(crate) fn health(health: Health) -> &'static str {
    match health {
        Health::Unspecified => "unknown",
        Health::Ok => "ok",
        Health::Degraded => "degraded",
        Health::Hung => "hung",
        Health::Lost => "lost",
        Health::ResetRequired => "reset_required",
        Health::Released => "released",
    }
}

fn node(node: &pb::Node) -> Value {
    let identity = node.identity.clone().unwrap_or_default();
    let mut states = node.instances.iter();
    let gpus: Vec<Value> = node.devices.iter().map(|it| gpu(it, &mut states)).collect();
    json!({
        "cluster": identity.cluster,
        "node": identity.node,
        "presence": presence(node),
        "reading_age_ms": node.reading_age_ms,
        "agent_version": identity.agent_version,
        "nvml_state": node.nvml_state,
        "tracing": node.tracing.as_ref().map(|it| json!({
            "on": it.on,
            "reason": it.reason,
            "hooks_attached": it.hooks_attached,
            "hooks_wanted": it.hooks_wanted,
            "hooks_slow": it.hooks_slow,
            "lost": it.lost.iter().map(loss).collect::<Map<_, _>>(),
            "sampling_factor": it.sampling_factor,
            "memory_held_back": it.memory_held_back,
        })),
        "spool_records": node.spool_records,
        "gpus": gpus,
    })
}

fn loss(loss: &TracingLoss) -> (String, Value) {
    (loss.cause.clone(), loss.count.into())
}

fn gpu<'a>(device: &Device, states: &mut impl Iterator<Item = &'a pb::InstanceState>) -> Value {
    let readings = device.readings.unwrap_or_default();
    let instances = device.instances.iter();
    let instances: Vec<Value> = instances.map(|it| instance(it, states.next())).collect();
    json!({
        "gpu_uuid": device.gpu_uuid,
        "index": device.index,
        "pci_bus_id": device.pci_bus_id,
        "model": device.model,
        "driver_version": device.driver_version,
        "health": health(device.health()),
        "suggestion": device.suggestion.as_ref().map(suggestion),
        "numa_node": device.numa_node,
        "busy_ratio": readings.busy_ratio,
        "memory_total_bytes": readings.memory_total_bytes,
        "memory_used_bytes": readings.memory_used_bytes,
        "power_mw": readings.power_mw,
        "power_limit_mw": readings.power_limit_mw,
        "temperature_celsius": readings.temperature_celsius,
        "instances": instances,
    })
}

fn suggestion(suggestion: &Suggestion) -> Value {
    json!({ "action": names::action_name(suggestion.action()), "reason": suggestion.reason })
}

fn instance(instance: &Instance, state: Option<&pb::InstanceState>) -> Value {
    json!({
        "mig_uuid": instance.mig_uuid,
        "class": names::class_name(instance.class()),
        "class_age_ms": state.and_then(|it| it.class_age_ms),
        "idle_age_ms": state.and_then(|it| it.idle_age_ms),
        "dwell_left_ms": state.and_then(|it| it.dwell_left_ms),
        "offered": state.map(|it| it.offered),
        "reason": instance.reason,
        "memory_total_bytes": instance.memory_total_bytes,
        "memory_free_bytes": instance.memory_free_bytes,
        "holders": instance.holders.iter().map(live_holder).collect::<Vec<_>>(),
    })
}

fn live_holder(live: &LiveHolder) -> Value {
    let mut value = live.holder.as_ref().map_or_else(|| json!({}), holder);
    value["processes"] = live.processes.into();
    value["memory_bytes"] = live.memory_bytes.into();
    value["last_launch_age_ms"] = live.last_launch_age_ns.map(|it| it / 1_000_000).into();
    value["sm_ratio"] = live.sm_ratio.into();
    value
}

fn holder(holder: &Holder) -> Value {
    json!({
        "kind": words::kind(holder.kind()),
        "id": holder.id,
        "tenant": holder.tenant,
        "namespace": holder.tenant_namespace,
        "pod": holder.tenant_pod,
        "container": holder.tenant_container,
    })
}
