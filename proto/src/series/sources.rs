//! Series that say which readings of a device are of now.

use crate::exposition::{Labels, Text};
use crate::family::{FLAG, Family, Label, Subject, names};
use crate::telemetry::v1::Device;
use crate::telemetry::v1::source_state::Source;

const SUCCESS: Family = Family::gauge(
    "gleaner_gpu_sample_success",
    "1 where the newest attempt to read this source of the device gave a value, 0 where it failed.",
)
.of(Subject::Device)
.by(&[Label::of("source", &names(&SOURCES))])
.in_unit(FLAG)
.absent("the device does not offer it, or NVML is released")
.note("A silent device fails in all that it offers.");
const TIMESTAMP: Family = Family::gauge(
    "gleaner_gpu_sample_timestamp_seconds",
    "Unix time at which this source of the device gave a value last.",
)
.of(Subject::Device)
.by(&[Label::of("source", &names(&SOURCES))])
.absent("it never did, or NVML is released")
.note("By the node's clock.");

const SOURCES: [(&str, Source); 10] = [
    ("utilization", Source::Utilization),
    ("memory", Source::Memory),
    ("power", Source::Power),
    ("energy", Source::Energy),
    ("processes", Source::Processes),
    ("process_utilization", Source::ProcessUtilization),
    ("instances", Source::Instances),
    ("gpm", Source::Gpm),
    ("fields", Source::Fields),
    ("events", Source::Events),
];

pub(super) fn families() -> Vec<Family> {
    vec![SUCCESS, TIMESTAMP]
}

pub(super) fn write(text: &mut Text, devices: &[(Labels, &Device)]) {
    text.family(SUCCESS);
    for (labels, device) in devices {
        for state in &device.sources {
            if let Some(name) = name(state.source()) {
                text.count(&labels.with("source", name), Some(u64::from(state.success)));
            }
        }
    }
    text.family(TIMESTAMP);
    for (labels, device) in devices {
        for state in &device.sources {
            if let (Some(name), Some(ms)) = (name(state.source()), state.last_real_ms) {
                text.seconds(&labels.with("source", name), u128::from(ms) * 1_000_000);
            }
        }
    }
}

/// `None` for a source that a newer agent has.
fn name(source: Source) -> Option<&'static str> {
    SOURCES.iter().find(|(_, it)| *it == source).map(|(name, _)| *name)
}
