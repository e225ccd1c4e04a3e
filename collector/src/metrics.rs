//! The collector's metrics about itself. What nodes report is not here: that is `outputs`.
//!
//! A struct per part of the collector; each part gets its own and counts where the thing happens.

use std::time::Duration;

use prometheus::{
    Counter, Encoder as _, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};
use proto::family::{FLAG, Family, Label, Table};

use crate::clock;

const RECORDS: Family = Family::counter(
    "gleaner_collector_records_total",
    "Records by what became of them; those that are quarantined have a reason.",
)
.by(&[Label::of("outcome", &["applied", "duplicate", "quarantined"]), Label::free("reason")])
.in_unit("records")
.absent("none was quarantined for that reason")
.note("Every record ends as one of them.");
const GAPS: Family = Family::counter(
    "gleaner_collector_gaps_total",
    "Runs of sequence numbers that an agent could not send any more.",
)
.in_unit("runs");
const UNKNOWN_COUNTERS: Family = Family::counter(
    "gleaner_collector_unknown_counters_total",
    "Counts of newer agents whose counter this collector does not know: in no sum, kept in the raw record.",
)
.in_unit("counts");
const REGRESSIONS: Family = Family::counter(
    "gleaner_collector_regressions_total",
    "Hellos of agents that knew more as acknowledged than this ledger holds.",
)
.in_unit("hellos");
const COMMITS: Family = Family::counter(
    "gleaner_collector_commits_total",
    "Transactions of the ledger, synced to disk.",
)
.in_unit("transactions");
const COMMIT_SECONDS: Family = Family::histogram(
    "gleaner_collector_commit_seconds",
    "Time from the first statement of a transaction to the end of its sync.",
)
.experimental();
const WAL_BYTES: Family =
    Family::gauge("gleaner_collector_wal_bytes", "Size of the ledger's write-ahead log.")
        .experimental();
const WRITABLE: Family = Family::gauge(
    "gleaner_collector_ledger_writable",
    "1 when the ledger takes records, 0 when its volume is full.",
)
.in_unit(FLAG)
.note("While it is 0, agents keep what they have.");
const STREAMS: Family =
    Family::gauge("gleaner_collector_streams", "Open streams of agents, by lane.")
        .by(&[Label::of("lane", &["durable", "live"])])
        .in_unit("streams")
        .absent("none was ever open");
const REJECTS: Family = Family::counter(
    "gleaner_collector_rejects_total",
    "Streams that were ended with a reason, by code.",
)
.by(&[Label::free("code")])
.in_unit("streams")
.absent("none was ended with that code");
const CONNECTIONS: Family =
    Family::gauge("gleaner_collector_connections", "Open connections to the gRPC port.")
        .in_unit("connections");
const REFUSED_CONNECTIONS: Family = Family::counter(
    "gleaner_collector_refused_connections_total",
    "Connections to the gRPC port that were closed unused, by reason.",
)
.by(&[Label::free("reason")])
.in_unit("connections")
.absent("none was closed for that reason");
const LIVE_UPDATES: Family =
    Family::counter("gleaner_collector_live_updates_total", "Messages of the live lane.")
        .in_unit("messages");
const MALFORMED_UPDATES: Family = Family::counter(
    "gleaner_collector_malformed_updates_total",
    "Messages of the live lane that were refused for their content.",
)
.in_unit("messages");
const CPU_SECONDS: Family = Family::counter(
    "gleaner_collector_process_cpu_seconds_total",
    "Processor time of this process, user and system.",
);
const RESIDENT_BYTES: Family =
    Family::gauge("gleaner_collector_process_resident_bytes", "Resident memory of this process.");

/// Everything here.
#[must_use]
pub fn table() -> Table {
    let never_absent = [
        GAPS,
        UNKNOWN_COUNTERS,
        REGRESSIONS,
        COMMITS,
        COMMIT_SECONDS,
        WAL_BYTES,
        WRITABLE,
        CONNECTIONS,
        LIVE_UPDATES,
        MALFORMED_UPDATES,
        CPU_SECONDS,
        RESIDENT_BYTES,
    ];
    let never_absent = never_absent.map(|it| it.absent("never"));
    let others = [RECORDS, STREAMS, REJECTS, REFUSED_CONNECTIONS];
    Table { name: "collector", families: [&others[..], &never_absent].concat() }
}

/// Every metric of this process.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    process: Process,
    pub ledger: Ledger,
    pub ingest: Ingest,
}

/// Of the ledger's writer.
#[derive(Clone, Debug)]
pub struct Ledger {
    pub applied: IntCounter,
    pub duplicate: IntCounter,
    /// By reason.
    pub quarantined: IntCounterVec,
    pub gaps: IntCounter,
    pub unknown_counters: IntCounter,
    pub regressions: IntCounter,
    pub commits: IntCounter,
    pub commit_seconds: Histogram,
    pub wal_bytes: IntGauge,
    pub writable: IntGauge,
}

/// Of the streams from agents.
#[derive(Clone, Debug)]
pub struct Ingest {
    /// By lane.
    pub streams: IntGaugeVec,
    /// By code.
    pub rejects: IntCounterVec,
    pub connections: IntGauge,
    /// By reason.
    pub refused_connections: IntCounterVec,
    pub live_updates: IntCounter,
    pub malformed_updates: IntCounter,
}

#[derive(Clone, Debug)]
struct Process {
    cpu_seconds: Counter,
    resident_bytes: IntGauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let registry = Registry::new();
        let at = &registry;
        Self {
            ledger: Ledger::register(at),
            ingest: Ingest::register(at),
            process: Process::register(at),
            registry,
        }
    }
}

impl Metrics {
    /// Prometheus text of every metric, to be appended to a scrape body.
    #[must_use]
    pub fn encode(&self) -> String {
        self.process.read();
        let mut body = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut body) {
            tracing::warn!("own metrics are left out of this scrape: {error}");
        }
        String::from_utf8_lossy(&body).into_owned()
    }
}

impl Ledger {
    fn register(at: &Registry) -> Self {
        let records = counters(at, &RECORDS);
        Self {
            applied: records.with_label_values(&["applied", ""]),
            duplicate: records.with_label_values(&["duplicate", ""]),
            quarantined: records,
            gaps: counter(at, &GAPS),
            unknown_counters: counter(at, &UNKNOWN_COUNTERS),
            regressions: counter(at, &REGRESSIONS),
            commits: counter(at, &COMMITS),
            commit_seconds: commit_seconds(at),
            wal_bytes: gauge(at, &WAL_BYTES),
            writable: gauge(at, &WRITABLE),
        }
    }
}

fn commit_seconds(at: &Registry) -> Histogram {
    let buckets = vec![0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0];
    let options = HistogramOpts::from(options(&COMMIT_SECONDS));
    registered(at, Histogram::with_opts(options.buckets(buckets)))
}

impl Ingest {
    fn register(at: &Registry) -> Self {
        Self {
            streams: registered(at, IntGaugeVec::new(options(&STREAMS), &label_names(&STREAMS))),
            rejects: counters(at, &REJECTS),
            connections: gauge(at, &CONNECTIONS),
            refused_connections: counters(at, &REFUSED_CONNECTIONS),
            live_updates: counter(at, &LIVE_UPDATES),
            malformed_updates: counter(at, &MALFORMED_UPDATES),
        }
    }
}

// === process ===

impl Process {
    fn register(at: &Registry) -> Self {
        Self {
            cpu_seconds: registered(at, Counter::with_opts(options(&CPU_SECONDS))),
            resident_bytes: gauge(at, &RESIDENT_BYTES),
        }
    }

    /// A value that cannot be read stays as it was.
    fn read(&self) {
        let used = Duration::from_nanos(clock::process_cpu_ns()).as_secs_f64();
        self.cpu_seconds.inc_by((used - self.cpu_seconds.get()).max(0.0));
        if let Some(bytes) = resident_bytes() {
            self.resident_bytes.set(bytes);
        }
    }
}

fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|it| it.strip_prefix("VmRSS:"))?;
    let kibibytes: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1_024)
}

// === registration ===

fn counter(at: &Registry, family: &Family) -> IntCounter {
    registered(at, IntCounter::with_opts(options(family)))
}

fn gauge(at: &Registry, family: &Family) -> IntGauge {
    registered(at, IntGauge::with_opts(options(family)))
}

fn counters(at: &Registry, family: &Family) -> IntCounterVec {
    registered(at, IntCounterVec::new(options(family), &label_names(family)))
}

fn options(family: &Family) -> Opts {
    Opts::new(family.name, family.help)
}

fn label_names(family: &Family) -> Vec<&'static str> {
    family.labels.iter().map(|it| it.name).collect()
}

fn registered<M>(at: &Registry, metric: prometheus::Result<M>) -> M
where
    M: prometheus::core::Collector + Clone + 'static,
{
    let metric = metric.expect("names and labels are constants that Prometheus accepts");
    at.register(Box::new(metric.clone())).expect("every name is registered once");
    metric
}
