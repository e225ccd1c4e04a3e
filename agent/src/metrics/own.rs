//! What the agent counts of its own work while it works; what its parts keep is in `parts`.

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder as _, Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry, TextEncoder,
};

/// One struct, registered once. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Own {
    registry: Registry,
    pub readings: IntCounterVec,
    pub reading_seconds: Histogram,
    pub records: IntCounter,
}

// === impl Own ===

impl Own {
    #[must_use]
    pub fn register() -> Self {
        let own = Self {
            registry: Registry::new(),
            readings: IntCounterVec::new(
                Opts::new(
                    "gleaner_agent_readings_total",
                    "Readings of all sources, by cause (tick, event, stop).",
                ),
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
            records: IntCounter::new("gleaner_agent_records_total", "Records handed to the spool.")
                .expect("the name is valid"),
        };
        let collectors: [Box<dyn Collector>; 4] = [
            Box::new(own.readings.clone()),
            Box::new(own.reading_seconds.clone()),
            Box::new(own.records.clone()),
            Box::new(ProcessCollector::for_self()),
        ];
        for collector in collectors {
            own.registry.register(collector).expect("each name is registered once");
        }
        own
    }

    #[must_use]
    pub fn render(&self) -> String {
        let mut body = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut body)
            .expect("writing to memory succeeds");
        String::from_utf8(body).expect("the encoder writes UTF-8")
    }
}
