//! What was metered of each instance besides whose its time was: energy, work, presence, health.

use std::collections::BTreeMap;

use crate::exposition::{Labels, Text};
use crate::family::{Family, Label, Subject};
use crate::names::{CLASSES, class_name, class_names};
use crate::series::REASONS;
use crate::telemetry::v1::Class;

const METHOD: Label = Label::of("method", &["floor_dynamic", "time", "slices"]);
const NOT_SEEN: &str = "no agent said so of a tile of it";

pub const TENANT_ENERGY: Family = Family::counter(
    "gleaner_tenant_gpu_energy_joules_total",
    "Metered energy of a tenant by share; method says how it was cut.",
)
.of(Subject::Tenant)
.by(&[Label::of("share", &["active", "held_idle", "held_unknown"]), METHOD])
.absent("the tenant had no such share of which the energy is known")
.experimental();
pub const UNOWNED_ENERGY: Family = Family::counter(
    "gleaner_gpu_unowned_energy_joules_total",
    "Metered energy of nobody by share and reason; method says how it was cut.",
)
.of(Subject::Instance)
.by(&[
    Label::of("share", &["free", "unattributed", "unobserved"]),
    Label::of("reason", &REASONS),
    METHOD,
])
.absent("the instance had no such share of which the energy is known")
.experimental();
const METERED_ENERGY: Family = Family::counter(
    "gleaner_gpu_metered_energy_joules_total",
    "Energy that the device counted while it was metered; of a MIG instance, its part.",
)
.of(Subject::Instance)
.absent("the counter was never readable at both ends of a tile, or sizes of MIG instances are not known")
.experimental();
const CLASS_ENERGY: Family = Family::counter(
    "gleaner_gpu_class_energy_joules_total",
    "Metered energy of an instance by its class at the time.",
)
.of(Subject::Instance)
.by(&[Label::of("class", &class_names(&CLASSES))])
.absent("the instance drew nothing in that class, or it is not known")
.experimental();
const SM_ACTIVE: Family = Family::counter(
    "gleaner_gpu_sm_active_seconds_total",
    "Time in which multiprocessors of the instance had work, averaged over them.",
)
.of(Subject::Instance)
.absent("the device has no profiling counters (GPM), or a GPU instance is shared")
.experimental();
const SM_MEASURED: Family = Family::counter(
    "gleaner_gpu_sm_measured_seconds_total",
    "Time for which gleaner_gpu_sm_active_seconds_total speaks.",
)
.of(Subject::Instance)
.absent("it was never measured")
.experimental();
const PROCESS: Family = Family::counter(
    "gleaner_gpu_process_seconds_total",
    "Observed time in which the driver listed a process on the instance.",
)
.of(Subject::Instance)
.absent(NOT_SEEN)
.experimental();
const HEALTHY: Family = Family::counter(
    "gleaner_gpu_healthy_seconds_total",
    "Observed time in which the device of the instance was in good health.",
)
.of(Subject::Instance)
.absent(NOT_SEEN)
.experimental();

pub(super) fn families() -> Vec<Family> {
    vec![
        TENANT_ENERGY,
        UNOWNED_ENERGY,
        METERED_ENERGY,
        CLASS_ENERGY,
        SM_ACTIVE,
        SM_MEASURED,
        PROCESS,
        HEALTHY,
    ]
}

/// Of one instance. `None` = never known; it is not zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metered {
    /// Millijoules.
    pub energy: Option<u128>,
    /// Millijoules, without classes that had none.
    pub class_energy: BTreeMap<Class, u128>,
    /// Nanoseconds: active, measured.
    pub sm: Option<(u128, u128)>,
    /// Nanoseconds: with a process, in good health.
    pub seen: Option<(u128, u128)>,
}

pub fn write_metered(text: &mut Text, instances: &[(Labels, Metered)]) {
    text.family(METERED_ENERGY);
    for (labels, it) in instances {
        if let Some(mj) = it.energy {
            text.joules(labels, mj);
        }
    }
    text.family(CLASS_ENERGY);
    for (labels, it) in instances {
        for (class, mj) in &it.class_energy {
            text.joules(&labels.with("class", class_name(*class)), *mj);
        }
    }
    type Seconds = fn(&Metered) -> Option<u128>;
    let families: [(Family, Seconds); 4] = [
        (SM_ACTIVE, |it| it.sm.map(|it| it.0)),
        (SM_MEASURED, |it| it.sm.map(|it| it.1)),
        (PROCESS, |it| it.seen.map(|it| it.0)),
        (HEALTHY, |it| it.seen.map(|it| it.1)),
    ];
    for (family, nanoseconds) in families {
        text.family(family);
        for (labels, it) in instances {
            if let Some(ns) = nanoseconds(it) {
                text.seconds(labels, ns);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Metered, write_metered};
    use crate::exposition::{Labels, Text};
    use crate::telemetry::v1::Class;

    #[test]
    fn what_was_never_known_has_no_series() {
        let known = Metered {
            energy: Some(61_503),
            class_energy: [(Class::Free, 3), (Class::Active, 61_500)].into(),
            sm: Some((5, 1_000_000_000)),
            seen: Some((0, 7)),
        };
        let named = |name: &str| Labels::new([("gpu_uuid", name)]);
        let mut text = Text::default();
        write_metered(&mut text, &[(named("A"), known), (named("B"), Metered::default())]);
        let body = text.into_body();
        assert!(!body.contains("\"B\""), "{body}");
        for line in [
            "gleaner_gpu_metered_energy_joules_total{gpu_uuid=\"A\"} 61.503\n",
            "gleaner_gpu_class_energy_joules_total{gpu_uuid=\"A\",class=\"free\"} 0.003\n",
            "gleaner_gpu_sm_active_seconds_total{gpu_uuid=\"A\"} 0.000000005\n",
            "gleaner_gpu_process_seconds_total{gpu_uuid=\"A\"} 0.000000000\n",
        ] {
            assert!(body.contains(line), "{line} is not in\n{body}");
        }
    }
}
