//! What the agent counts of its own work while it works; what its parts keep is in `parts`.

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder as _, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts,
    Registry, TextEncoder,
};
use proto::family::{Family, Label};

const READINGS: Family =
    Family::counter("gleaner_agent_readings_total", "Readings of all sources, by cause.")
        .by(&[Label::of("cause", &["tick", "event", "stop"])])
        .in_unit("readings")
        .absent("there was none for that cause yet");
const READING_SECONDS: Family = Family::histogram(
    "gleaner_agent_reading_seconds",
    "Time from the start of a reading to its records and classes.",
)
.absent("never")
.experimental();
const RECORDS: Family =
    Family::counter("gleaner_agent_records_total", "Records handed to the spool.")
        .in_unit("records")
        .absent("never")
        .note("Tiles and CUDA activities.");
const NVML_CALL_SECONDS: Family = Family::histogram(
    "gleaner_agent_nvml_call_duration_seconds",
    "Time inside the driver for one question, by call.",
)
.by(&[Label::free("call")])
.absent("there was no such call yet")
.note("Of failed and late ones too; a call that hangs counts when it returns.")
.experimental();

/// What the library's collector of the process writes; the words in a scrape are its own.
const PROCESS: [Family; 7] = [
    Family::counter("process_cpu_seconds_total", "Processor time, user and system."),
    Family::gauge("process_resident_memory_bytes", "Resident memory."),
    Family::gauge("process_virtual_memory_bytes", "Address space that is in use."),
    Family::gauge("process_open_fds", "Open file descriptors.").in_unit("descriptors"),
    Family::gauge("process_max_fds", "File descriptors that may be open.").in_unit("descriptors"),
    Family::gauge("process_threads", "Threads of the process.").in_unit("threads"),
    Family::gauge("process_start_time_seconds", "When the process started.").in_unit("Unix time"),
];

pub(super) fn families() -> Vec<Family> {
    let process = PROCESS.map(|it| it.absent("`/proc` cannot be read"));
    [&[READINGS, READING_SECONDS, RECORDS, NVML_CALL_SECONDS], &process[..]].concat()
}

/// One struct, registered once. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Own {
    registry: Registry,
    pub readings: IntCounterVec,
    pub reading_seconds: Histogram,
    pub records: IntCounter,
    pub nvml_call_seconds: HistogramVec,
}

// === impl Own ===

impl Own {
    #[must_use]
    pub fn register() -> Self {
        let own = Self {
            registry: Registry::new(),
            readings: IntCounterVec::new(options(&READINGS), &label_names(&READINGS))
                .expect("the name and label are valid"),
            reading_seconds: Histogram::with_opts(
                HistogramOpts::from(options(&READING_SECONDS))
                    .buckets(vec![0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0]),
            )
            .expect("the buckets rise"),
            records: IntCounter::with_opts(options(&RECORDS)).expect("the name is valid"),
            nvml_call_seconds: HistogramVec::new(
                HistogramOpts::from(options(&NVML_CALL_SECONDS))
                    .buckets(vec![0.000_01, 0.000_1, 0.001, 0.01, 0.1, 1.0, 10.0]),
                &label_names(&NVML_CALL_SECONDS),
            )
            .expect("the name and label are valid, and the buckets rise"),
        };
        let collectors: [Box<dyn Collector>; 5] = [
            Box::new(own.readings.clone()),
            Box::new(own.reading_seconds.clone()),
            Box::new(own.records.clone()),
            Box::new(own.nvml_call_seconds.clone()),
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

fn options(family: &Family) -> Opts {
    Opts::new(family.name, family.help)
}

fn label_names(family: &Family) -> Vec<&'static str> {
    family.labels.iter().map(|it| it.name).collect()
}
