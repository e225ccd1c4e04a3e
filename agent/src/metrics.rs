//! The agent's `/metrics`: the node's series, as the collector serves them for the fleet, and the
//! agent's own.

use prometheus::{
    Encoder as _, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder,
};
use proto::exposition::{Labels, Text};
use proto::series;
use proto::telemetry::v1::{CudaCounts, LiveUpdate};

use crate::model::usage::Share;
use crate::record::common::wire_counts;
use crate::spool::SpoolStatus;
use crate::totals::{Held, Tenant, Totals};
use crate::uplink::link::LinkState;

/// What a scrape shows of the node. Rendered only when asked for.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub node: String,
    pub live: LiveUpdate,
    pub totals: Totals,
}

/// The agent's own counters. One struct, registered once.
#[derive(Clone, Debug)]
pub struct Own {
    registry: Registry,
    pub readings: IntCounterVec,
    pub reading_seconds: Histogram,
    pub records: IntCounter,
    pub spool_records: IntGauge,
    pub spool_bytes: IntGauge,
    pub spool_held: IntGauge,
    pub spool_lost: IntGauge,
    pub connected: IntGauge,
    pub acknowledged: IntGauge,
}

impl Own {
    #[must_use]
    pub fn register() -> Self {
        let registry = Registry::new();
        let own = Self {
            readings: IntCounterVec::new(
                Opts::new("gleaner_agent_readings_total", "Readings of all sources, by cause."),
                &["cause"],
            )
            .expect("the name and label are valid"),
            reading_seconds: Histogram::with_opts(
                HistogramOpts::new(
                    "gleaner_agent_reading_seconds",
                    "Time from the start of a reading to its records and classes.",
                )
                .buckets(vec![0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0]),
            )
            .expect("the buckets rise"),
            records: counter("gleaner_agent_records_total", "Records handed to the spool."),
            spool_records: gauge(
                "gleaner_agent_spool_records",
                "Records in the spool that the collector has not acknowledged.",
            ),
            spool_bytes: gauge("gleaner_agent_spool_bytes", "Size of the spool database."),
            spool_held: gauge(
                "gleaner_agent_spool_held_records",
                "Records in memory that are not on disk yet.",
            ),
            spool_lost: gauge(
                "gleaner_agent_spool_lost_records",
                "Records that did not fit into memory while the disk refused, since the start.",
            ),
            acknowledged: gauge(
                "gleaner_agent_acknowledged_records",
                "Records that the collector has acknowledged since the start.",
            ),
            connected: gauge(
                "gleaner_agent_collector_connected",
                "1 while the durable lane to the collector is up.",
            ),
            registry,
        };
        own.collect_all();
        own
    }

    /// While the spool is not open its gauges keep what was last known.
    pub fn set_delivery(&self, spool: &SpoolStatus, link: &LinkState) {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        if let Some(open) = &spool.open {
            self.spool_records.set(gauge(open.unsent_records));
            self.spool_bytes.set(gauge(open.used_bytes));
        }
        self.spool_held.set(gauge(spool.held_records));
        self.spool_lost.set(gauge(spool.lost_records));
        self.connected.set(i64::from(link.connected));
        self.acknowledged.set(gauge(link.counters.records_acked));
    }

    fn collect_all(&self) {
        let collectors: [Box<dyn prometheus::core::Collector>; 9] = [
            Box::new(self.readings.clone()),
            Box::new(self.reading_seconds.clone()),
            Box::new(self.records.clone()),
            Box::new(self.spool_records.clone()),
            Box::new(self.spool_bytes.clone()),
            Box::new(self.spool_held.clone()),
            Box::new(self.spool_lost.clone()),
            Box::new(self.connected.clone()),
            Box::new(self.acknowledged.clone()),
        ];
        for collector in collectors {
            self.registry.register(collector).expect("each name is registered once");
        }
        let process = prometheus::process_collector::ProcessCollector::for_self();
        self.registry.register(Box::new(process)).expect("each name is registered once");
    }

    fn render(&self) -> String {
        let mut body = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut body)
            .expect("writing to memory succeeds");
        String::from_utf8(body).expect("the encoder writes UTF-8")
    }
}

fn counter(name: &str, help: &str) -> IntCounter {
    IntCounter::new(name, help).expect("the name is valid")
}

fn gauge(name: &str, help: &str) -> IntGauge {
    IntGauge::new(name, help).expect("the name is valid")
}

/// The whole body of a scrape. Before the first reading there is nothing to say about the node.
#[must_use]
pub fn render(snapshot: Option<&Snapshot>, own: &Own) -> String {
    let mut text = Text::default();
    if let Some(snapshot) = snapshot {
        series::write_live(&mut text, &[(snapshot.node.as_str(), &snapshot.live)]);
        write_shares(&mut text, snapshot);
        series::write_cuda(&mut text, &cuda_by_tenant(&snapshot.totals));
    }
    text.into_body() + &own.render()
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
        let mut labels =
            Labels::new([("node", snapshot.node.as_str()), ("gpu_uuid", &id.device.0)]);
        if let Some(mig) = &id.mig {
            labels.push("mig_uuid", mig);
        }
        text.seconds(&unowned_labels(labels, share), *nanoseconds);
    }
}

fn labels_of(tenant: &Tenant) -> Labels {
    series::labels_of(
        &tenant.tenant,
        tenant.namespace.as_deref(),
        tenant.pod.as_deref(),
        tenant.container.as_deref(),
    )
}

fn held_labels(labels: Labels, held: Held) -> Labels {
    match held {
        Held::Active(method) => labels.with("share", "active").with("method", method.as_str()),
        Held::Idle => labels.with("share", "held_idle"),
        Held::Unknown => labels.with("share", "held_unknown"),
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
        Share::Active(..) | Share::HeldIdle(_) | Share::HeldUnknown(_) => {
            unreachable!("`Totals` keeps what belongs to somebody by tenant")
        }
    }
}

fn cuda_by_tenant(totals: &Totals) -> Vec<(Labels, CudaCounts)> {
    let counted = totals.tenants.iter().filter(|(_, it)| !it.cuda.is_zero());
    counted.map(|(tenant, it)| (labels_of(tenant), wire_counts(&it.cuda))).collect()
}
