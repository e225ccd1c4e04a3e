//! What the agent's parts say of themselves: losses first, then how far delivery is.

use proto::exposition::{Labels, Text};
use proto::family::{FLAG, Family, Label, Subject, names};

use crate::metrics::Snapshot;
use crate::model::readings::{CudaCounts, HitCosts};
use crate::samplers::nvml::NvmlStats;
use crate::spool::SpoolStatus;
use crate::uplink::link::LinkState;

const OVERFLOW_LAUNCHES: Family = Family::counter(
    "gleaner_tracing_overflow_launches_total",
    "Kernel launches of processes beyond cuda.max_processes: of no tenant, and not lost.",
)
.of(Subject::Node)
.in_unit("calls")
.absent("tracing is off");
const HIT_COST: Family = Family::gauge(
    "gleaner_tracing_hit_cost_seconds",
    "What a hit on a hook costs the process that makes it, as measured when the agent started.",
)
.of(Subject::Node)
.by(&[Label::of("kind", &names(&HIT_KINDS))])
.absent("tracing is off")
.note(
    "`pair`: entry and return; `stepped`: where the kernel must single-step. What could not be \
     measured is assumed, and `/status` says so.",
)
.experimental();

type Cost = fn(HitCosts) -> u64;
const HIT_KINDS: [(&str, Cost); 3] =
    [("entry", |it| it.entry_ns), ("pair", |it| it.pair_ns), ("stepped", |it| it.slow_ns)];

const NVML_ERRORS: Family =
    Family::counter("gleaner_agent_nvml_errors_total", "NVML calls that failed, by call.")
        .by(&[Label::free("call")])
        .in_unit("calls")
        .absent("never")
        .note("What a device does not offer is no error.");
const NVML_EVENT_GAPS: Family = Family::counter(
    "gleaner_agent_nvml_event_gaps_total",
    "Times at which the driver may have reported an error that nobody heard, by reason.",
)
.by(&[Label::of("reason", &["lost", "failed", "closed", "full", "codes"])])
.in_unit("gaps")
.absent("never")
.note(
    "The GPU was lost, listening failed, the library was closed, more than 256 came within a tick, or \
     more than 64 numbers of one device.",
)
.experimental();
const NVML_READS: Family =
    Family::counter("gleaner_agent_nvml_reads_total", "Answers of a device in time.")
        .of(Subject::Device)
        .in_unit("answers")
        .absent("the device was never listed");
const NVML_READ_SECONDS: Family = Family::counter(
    "gleaner_agent_nvml_read_seconds_total",
    "Time inside the driver for the answers of a device.",
)
.of(Subject::Device)
.absent("the device was never listed")
.experimental();
const NVML_LATE: Family = Family::counter(
    "gleaner_agent_nvml_late_reads_total",
    "Answers of a device that came after nvml.deadline_ms and were thrown away.",
)
.of(Subject::Device)
.in_unit("answers")
.absent("the device was never listed");
const NVML_UNLISTED: Family = Family::gauge(
    "gleaner_agent_nvml_unlisted_devices",
    "Devices that the driver counts and that cannot be read.",
)
.in_unit("devices")
.absent("never");

const QUEUE_DEPTH: Family = Family::gauge(
    "gleaner_agent_queue_depth",
    "What waited in a queue inside the agent when the sources were read last.",
)
.by(&[Label::of("queue", &names(&QUEUES))])
.in_unit("entries")
.absent("never")
.note("Their bounds, and what counts their losses, are below.")
.experimental();

type Depth = fn(&Snapshot) -> usize;
const QUEUES: [(&str, Depth); 3] = [
    ("nvml_answers", |it| it.nvml.waiting_answers),
    ("nvml_events", |it| it.nvml.waiting_events),
    ("commands", |it| it.waiting_commands),
];

/// When what the spool's file holds has no series.
const NOT_OPEN: &str = "the spool is not open";
const SPOOL_RECORDS: Family = Family::gauge(
    "gleaner_agent_spool_records",
    "Records on disk that the collector has not acknowledged.",
)
.in_unit("records")
.absent(NOT_OPEN);
const SPOOL_BYTES: Family =
    Family::gauge("gleaner_agent_spool_bytes", "Used size of the spool database.").absent(NOT_OPEN);
const SPOOL_HELD: Family = Family::gauge(
    "gleaner_agent_spool_held_records",
    "Records in memory that are not on disk yet.",
)
.in_unit("records")
.absent("never");
const SPOOL_LOST: Family = Family::counter(
    "gleaner_agent_spool_lost_records_total",
    "Records that did not fit into memory while the disk refused.",
)
.in_unit("records")
.absent("never");

const CONNECTED: Family = Family::gauge(
    "gleaner_agent_collector_connected",
    "1 while the durable lane to the collector is up.",
)
.in_unit(FLAG)
.absent("never");
type Count = fn(&LinkState) -> u64;
/// Of the durable lane.
const UPLINK: [(Family, Count); 5] = [
    (
        Family::counter("gleaner_agent_uplink_connects_total", "Sessions that were welcomed.")
            .in_unit("sessions"),
        |it| it.counters.connects,
    ),
    (
        Family::counter("gleaner_agent_uplink_batches_total", "Batches sent, repeats included.")
            .in_unit("batches"),
        |it| it.counters.batches,
    ),
    (
        Family::counter(
            "gleaner_agent_uplink_acknowledged_records_total",
            "Records that the collector has committed and synced.",
        )
        .in_unit("records"),
        |it| it.counters.records_acked,
    ),
    (
        Family::counter(
            "gleaner_agent_uplink_resumes_total",
            "Times the collector asked to rewind.",
        )
        .in_unit("requests"),
        |it| it.counters.resumes,
    ),
    (
        Family::counter("gleaner_agent_uplink_rejects_total", "Refusals by the collector.")
            .in_unit("refusals"),
        |it| it.counters.rejects,
    ),
];

/// Of the tracing, beside what agent and collector serve alike.
pub(super) fn tracing_families() -> Vec<Family> {
    vec![OVERFLOW_LAUNCHES, HIT_COST]
}

pub(super) fn families() -> Vec<Family> {
    let nvml =
        [NVML_ERRORS, NVML_READS, NVML_READ_SECONDS, NVML_LATE, NVML_EVENT_GAPS, NVML_UNLISTED];
    let spool = [QUEUE_DEPTH, SPOOL_RECORDS, SPOOL_BYTES, SPOOL_HELD, SPOOL_LOST, CONNECTED];
    let uplink = UPLINK.map(|(family, _)| family.absent("never"));
    [&spool[..], &uplink, &nvml].concat()
}

pub(super) fn write_overflow(text: &mut Text, node: &str, overflow: &CudaCounts) {
    text.family(OVERFLOW_LAUNCHES).count(&Labels::new([("node", node)]), Some(overflow.launches()));
}

pub(super) fn write_hit_costs(text: &mut Text, node: &str, costs: Option<HitCosts>) {
    text.family(HIT_COST);
    let Some(costs) = costs else { return };
    for (kind, cost) in HIT_KINDS {
        text.seconds(&Labels::new([("node", node), ("kind", kind)]), cost(costs).into());
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

/// What they lose is counted by the parts themselves.
pub(super) fn write_queues(text: &mut Text, snapshot: &Snapshot) {
    text.family(QUEUE_DEPTH);
    for (queue, depth) in QUEUES {
        let depth = u64::try_from(depth(snapshot)).unwrap_or(u64::MAX);
        text.count(&Labels::new([("queue", queue)]), Some(depth));
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
    let none = Labels::default();
    text.family(CONNECTED).count(&none, Some(u64::from(link.connected)));
    for (family, read) in UPLINK {
        text.family(family).count(&none, Some(read(link)));
    }
}
