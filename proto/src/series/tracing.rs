//! Series of the tracing itself: what is hooked, what was lost, how much of the time hits count.

use std::collections::BTreeMap;

use crate::cuda::{LOSS_CAUSES, loss_cause};
use crate::exposition::{Labels, Text};
use crate::family::{FLAG, Family, Label, Subject};
use crate::telemetry::v1::{LiveUpdate, Tracing};

/// When there is no series.
const OFF: &str = "tracing is off";

const ON: Family =
    Family::gauge("gleaner_tracing_on", "1 while CUDA calls are counted on the node, else 0.")
        .of(Subject::Node)
        .in_unit(FLAG)
        .absent("never");
const HOOKS_ATTACHED: Family =
    Family::gauge("gleaner_tracing_hooks_attached", "CUDA driver functions that are hooked.")
        .of(Subject::Node)
        .in_unit("hooks")
        .absent(OFF);
const HOOKS_WANTED: Family = Family::gauge(
    "gleaner_tracing_hooks_wanted",
    "CUDA driver functions of the node's libraries that should be hooked.",
)
.of(Subject::Node)
.in_unit("hooks")
.absent(OFF);
const HOOKS_SLOW: Family = Family::gauge(
    "gleaner_tracing_hooks_slow",
    "Hooks at instructions that the kernel must single-step, which costs the traced process more.",
)
.of(Subject::Node)
.in_unit("hooks")
.absent(OFF);
const LOST: Family = Family::counter(
    "gleaner_tracing_lost_total",
    "Counts or records of the kernel side whose attribution was lost, by cause.",
)
.of(Subject::Node)
.by(&[Label::of("cause", &LOSS_CAUSES)])
.in_unit("losses")
.absent(OFF)
.note("See below.");
const SAMPLING: Family = Family::gauge(
    "gleaner_tracing_sampling_factor",
    "1 while every hit counts; more where hooks are taken off by turns and counts are scaled by it.",
)
.of(Subject::Node)
.in_unit("factor")
.absent(OFF)
.note("Of the most sampled file.");
const HELD_BACK: Family = Family::gauge(
    "gleaner_tracing_memory_held_back_files",
    "Library files whose memory calls are not counted, because a process changed their code.",
)
.of(Subject::Node)
.in_unit("files")
.absent(OFF);

type Count = fn(&Tracing) -> u64;
const GAUGES: [(Family, Count); 4] = [
    (HOOKS_ATTACHED, |it| it.hooks_attached.into()),
    (HOOKS_WANTED, |it| it.hooks_wanted.into()),
    (HOOKS_SLOW, |it| it.hooks_slow.into()),
    (HELD_BACK, |it| u64::try_from(it.memory_held_back.len()).unwrap_or(u64::MAX)),
];

pub(super) fn families() -> Vec<Family> {
    let gauges = GAUGES.map(|(family, _)| family);
    [&[ON], &gauges[..], &[SAMPLING, LOST]].concat()
}

/// While nothing is counted there is nothing to say about the counting but that it is off.
pub(super) fn write(text: &mut Text, updates: &[(&str, &LiveUpdate)]) {
    text.family(ON);
    for (node, update) in updates {
        let on = update.tracing.as_ref().map(|it| u64::from(it.on));
        text.count(&Labels::new([("node", *node)]), on);
    }
    let counting: Vec<(Labels, &Tracing)> = updates
        .iter()
        .filter_map(|(node, update)| Some((node, update.tracing.as_ref()?)))
        .filter(|(_, tracing)| tracing.on)
        .map(|(node, tracing)| (Labels::new([("node", *node)]), tracing))
        .collect();
    for (family, read) in GAUGES {
        text.family(family);
        for (labels, tracing) in &counting {
            text.count(labels, Some(read(tracing)));
        }
    }
    text.family(SAMPLING);
    for (labels, tracing) in &counting {
        text.sample(labels, Some(tracing.sampling_factor.unwrap_or(1.0)));
    }
    text.family(LOST);
    for (labels, tracing) in &counting {
        for (cause, count) in losses(tracing) {
            text.count(&labels.with("cause", cause), Some(count));
        }
    }
}

/// Causes that this version does not know are one.
fn losses(tracing: &Tracing) -> BTreeMap<&'static str, u64> {
    let mut losses = BTreeMap::new();
    for loss in &tracing.lost {
        let sum: &mut u64 = losses.entry(loss_cause(&loss.cause)).or_default();
        *sum = sum.saturating_add(loss.count);
    }
    losses
}

#[cfg(test)]
mod tests {
    use super::write;
    use crate::exposition::Text;
    use crate::telemetry::v1::{LiveUpdate, Tracing, TracingLoss};

    fn body(tracing: Tracing) -> String {
        let update = LiveUpdate { tracing: Some(tracing), ..LiveUpdate::default() };
        let mut text = Text::default();
        write(&mut text, &[("n", &update)]);
        text.into_body()
    }

    #[test]
    fn while_it_is_off_nothing_else_is_said() {
        let off = body(Tracing { hooks_wanted: 3, ..Tracing::default() });
        let samples: Vec<_> = off.lines().filter(|it| !it.starts_with('#')).collect();
        assert_eq!(samples, ["gleaner_tracing_on{node=\"n\"} 0"]);
    }

    #[test]
    fn losses_have_a_bounded_set_of_causes() {
        let loss = |cause: &str, count| TracingLoss { cause: cause.to_owned(), count };
        let lost = vec![loss("records", 2), loss("novelty", 3), loss("surprise", 4)];
        let on = body(Tracing { on: true, lost, ..Tracing::default() });
        assert!(on.contains("gleaner_tracing_lost_total{node=\"n\",cause=\"records\"} 2\n"));
        assert!(on.contains("gleaner_tracing_lost_total{node=\"n\",cause=\"other\"} 7\n"));
    }

    #[test]
    fn sampling_has_a_factor() {
        let check = |sampling_factor, expected: &str| {
            let on = body(Tracing { on: true, sampling_factor, ..Tracing::default() });
            assert!(on.contains(&format!("sampling_factor{{node=\"n\"}} {expected}\n")), "{on}");
        };
        check(None, "1");
        check(Some(2.5), "2.5");
    }
}
