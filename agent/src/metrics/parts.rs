//! What the agent's parts say of themselves: losses first, then how far delivery is.

use proto::exposition::{Family, Labels, Text};

use crate::model::readings::{CudaCounts, HitCosts};
use crate::samplers::nvml::NvmlStats;
use crate::spool::SpoolStatus;
use crate::uplink::link::LinkState;

const OVERFLOW_LAUNCHES: Family = Family::counter(
    "gleaner_tracing_overflow_launches_total",
    "Kernel launches of processes beyond cuda.max_processes: of no tenant, and not lost.",
);
const HIT_COST: Family = Family::gauge(
    "gleaner_tracing_hit_cost_seconds",
    "What a hit on a hook costs the process that makes it, as measured when the agent started.",
);
const NVML_ERRORS: Family =
    Family::counter("gleaner_agent_nvml_errors_total", "NVML calls that failed, by call.");
const NVML_EVENT_GAPS: Family = Family::counter(
    "gleaner_agent_nvml_event_gaps_total",
    "Times at which the driver may have reported an error that nobody heard, by reason.",
);
const NVML_READS: Family =
    Family::counter("gleaner_agent_nvml_reads_total", "Answers of a device in time.");
const NVML_READ_SECONDS: Family = Family::counter(
    "gleaner_agent_nvml_read_seconds_total",
    "Time inside the driver for the answers of a device.",
);
const NVML_LATE: Family = Family::counter(
    "gleaner_agent_nvml_late_reads_total",
    "Answers of a device that came after nvml.deadline_ms and were thrown away.",
);
const NVML_UNLISTED: Family = Family::gauge(
    "gleaner_agent_nvml_unlisted_devices",
    "Devices that the driver counts and that cannot be read.",
);
const SPOOL_RECORDS: Family = Family::gauge(
    "gleaner_agent_spool_records",
    "Records on disk that the collector has not acknowledged.",
);
const SPOOL_BYTES: Family =
    Family::gauge("gleaner_agent_spool_bytes", "Used size of the spool database.");
const SPOOL_HELD: Family = Family::gauge(
    "gleaner_agent_spool_held_records",
    "Records in memory that are not on disk yet.",
);
const SPOOL_LOST: Family = Family::counter(
    "gleaner_agent_spool_lost_records_total",
    "Records that did not fit into memory while the disk refused.",
);
const CONNECTED: Family = Family::gauge(
    "gleaner_agent_collector_connected",
    "1 while the durable lane to the collector is up.",
);

pub(super) fn write_overflow(text: &mut Text, node: &str, overflow: &CudaCounts) {
    text.family(OVERFLOW_LAUNCHES).count(&Labels::new([("node", node)]), Some(overflow.launches()));
}

pub(super) fn write_hit_costs(text: &mut Text, node: &str, costs: Option<HitCosts>) {
    text.family(HIT_COST);
    let Some(costs) = costs else { return };
    let kinds = [("entry", costs.entry_ns), ("pair", costs.pair_ns), ("stepped", costs.slow_ns)];
    for (kind, cost) in kinds {
        text.seconds(&Labels::new([("node", node), ("kind", kind)]), cost.into());
    }
}

pub(super) fn write_nvml(text: &mut Text, node: &str, stats: &NvmlStats) {
    text.family(NVML_ERRORS);
    for (call, errors) in &stats.errors {
        text.count(&Labels::new([("call", *call)]), Some(*errors));
    }
    text.family(NVML_EVENT_GAPS);
    for (reason, gaps) in &stats.event_gaps {
        text.count(&Labels::new([("reason", *reason)]), Some(*gaps));
    }
    text.family(NVML_UNLISTED).count(&Labels::default(), Some(u64::from(stats.unlisted)));
    let devices: Vec<_> = stats
        .devices
        .iter()
        .map(|(id, it)| (Labels::new([("node", node), ("gpu_uuid", &id.0)]), it))
        .collect();
    text.family(NVML_READS);
    for (labels, device) in &devices {
        text.count(labels, Some(device.reads));
    }
    text.family(NVML_READ_SECONDS);
    for (labels, device) in &devices {
        text.seconds(labels, u128::from(device.read_ns_total));
    }
    text.family(NVML_LATE);
    for (labels, device) in &devices {
        text.count(labels, Some(device.late));
    }
}

/// A spool that is not open has no figures; what waits in memory is always known.
pub(super) fn write_spool(text: &mut Text, spool: &SpoolStatus) {
    let (open, none) = (spool.open.as_ref(), Labels::default());
    text.family(SPOOL_RECORDS).count(&none, open.map(|it| it.unsent_records));
    text.family(SPOOL_BYTES).count(&none, open.map(|it| it.used_bytes));
    text.family(SPOOL_HELD).count(&none, Some(spool.held_records));
    text.family(SPOOL_LOST).count(&none, Some(spool.lost_records));
}

pub(super) fn write_link(text: &mut Text, link: &LinkState) {
    type Count = fn(&LinkState) -> u64;
    let counters: [(Family, Count); 5] = [
        (
            Family::counter("gleaner_agent_uplink_connects_total", "Sessions that were welcomed."),
            |it| it.counters.connects,
        ),
        (
            Family::counter(
                "gleaner_agent_uplink_batches_total",
                "Batches sent, repeats included.",
            ),
            |it| it.counters.batches,
        ),
        (
            Family::counter(
                "gleaner_agent_uplink_acknowledged_records_total",
                "Records that the collector has committed and synced.",
            ),
            |it| it.counters.records_acked,
        ),
        (
            Family::counter(
                "gleaner_agent_uplink_resumes_total",
                "Times the collector asked to rewind.",
            ),
            |it| it.counters.resumes,
        ),
        (
            Family::counter("gleaner_agent_uplink_rejects_total", "Refusals by the collector."),
            |it| it.counters.rejects,
        ),
    ];
    let none = Labels::default();
    text.family(CONNECTED).count(&none, Some(u64::from(link.connected)));
    for (family, read) in counters {
        text.family(family).count(&none, Some(read(link)));
    }
}
