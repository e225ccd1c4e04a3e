//! Which sources of a device work, and when each gave a value last. Values in, values out: no call, no
//! clock.
//!
//! A source that the device does not offer is not here: it neither works nor fails.

use std::collections::BTreeMap;

use crate::model::readings::{Counters, Source, SourceState};
use crate::samplers::nvml::answers::{Answers, Call};
use crate::samplers::nvml::probe::Plan;

/// What is remembered of one device's sources.
#[derive(Clone, Debug, Default)]
pub(crate) struct Validity(BTreeMap<Source, SourceState>);

/// What is asked of a device for one source.
const CALLS: [(Source, &[Call]); 9] = [
    (Source::Utilization, &[Call::Utilization]),
    (Source::Memory, &[Call::Memory]),
    (Source::Power, &[Call::Power]),
    (Source::Energy, &[Call::Energy]),
    (Source::Processes, &[Call::ComputeProcesses, Call::GraphicsProcesses, Call::MpsProcesses]),
    (Source::ProcessUtilization, &[Call::ProcessesUtilization, Call::ProcessUtilization]),
    (Source::Instances, &[Call::MigDevices]),
    (Source::Gpm, &[Call::Gpm]),
    (Source::Fields, &[Call::Fields]),
];

// === impl Validity ===

impl Validity {
    /// Takes in the answers of a device that answered. `whole`: the plan has all that the device
    /// offers, also what is not asked at each tick.
    pub(crate) fn advance(
        &mut self,
        (plan, whole): (Plan, bool),
        answers: &Answers,
        counters: &Counters,
        now_us: u64,
    ) {
        for (source, calls) in CALLS {
            let mut asked = calls.iter().filter(|it| plan.asks(**it)).peekable();
            if asked.peek().is_none() {
                if whole {
                    self.0.remove(&source);
                }
                continue;
            }
            let refused: Vec<_> = asked.filter_map(|it| answers.refused.get(it)).collect();
            // The device has lost what its probe found; the next probe says whether for good.
            if refused.iter().any(|it| it.is_a_fact()) {
                self.0.remove(&source);
                continue;
            }
            let answered = refused.iter().all(|it| it.is_ordinary());
            self.note(source, answered && is_usable(source, counters), now_us);
        }
    }

    /// Nothing of what is asked was answered.
    pub(crate) fn silence(&mut self) {
        self.0.values_mut().for_each(|it| it.success = false);
    }

    pub(crate) fn sources(&self) -> BTreeMap<Source, SourceState> {
        self.0.clone()
    }

    fn note(&mut self, source: Source, success: bool, now_us: u64) {
        let state = self.0.entry(source).or_insert(SourceState { success, last_us: None });
        state.success = success;
        if success {
            state.last_us = Some(now_us);
        }
    }
}

/// An answer that cannot be true is no value.
fn is_usable(source: Source, counters: &Counters) -> bool {
    match source {
        Source::Utilization => counters.busy.is_some(),
        Source::Memory => counters.memory_used_bytes.is_some(),
        Source::Power => counters.power_mw.is_some(),
        Source::Energy => counters.energy_mj.is_some(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::Validity;
    use crate::model::readings::{Counters, Source};
    use crate::model::units::Percent;
    use crate::samplers::nvml::answers::{Answers, Call, Refusal};
    use crate::samplers::nvml::probe::{Facts, Plan};

    const NOW: u64 = 1_000;

    fn whole_device() -> Plan {
        let answers = Answers { mig_on: Some(false), ..Answers::default() };
        Plan::from_facts(&Facts::from_answers(&answers, true))
    }

    fn read() -> Counters {
        Counters {
            busy: Percent::new(0),
            memory_used_bytes: Some(0),
            power_mw: Some(0),
            energy_mj: Some(0),
            ..Counters::default()
        }
    }

    /// After a good tick at `NOW` and one a second later: what works, with the age of what does not.
    fn after(answers: &Answers, counters: &Counters) -> BTreeMap<Source, (bool, u64)> {
        let mut validity = Validity::default();
        let plan = whole_device();
        validity.advance((plan, true), &Answers::default(), &read(), NOW);
        validity.advance((plan.without_slow(), false), answers, counters, NOW + 5);
        let state = |it: &super::SourceState| (it.success, it.last_us.unwrap());
        validity.sources().iter().map(|(source, it)| (*source, state(it))).collect()
    }

    #[test]
    fn what_answers_works_and_what_is_not_asked_stays() {
        let good = after(&Answers::default(), &read());
        assert_eq!(good[&Source::Utilization], (true, NOW + 5));
        assert_eq!(good[&Source::Processes], (true, NOW + 5));
        assert_eq!(good[&Source::Fields], (true, NOW));
        assert!(!good.contains_key(&Source::Instances), "MIG is off");
    }

    #[test]
    fn a_refusal_is_a_failure_of_its_source_alone() {
        for (call, source) in [
            (Call::Power, Source::Power),
            (Call::MpsProcesses, Source::Processes),
            (Call::Gpm, Source::Gpm),
        ] {
            let found = after(&Answers::refused(call, Refusal::Failed), &read());
            assert_eq!(found[&source], (false, NOW));
            let failing = found.values().filter(|it| !it.0).count();
            assert_eq!(failing, 1, "{call:?}");
        }
    }

    #[test]
    fn nothing_newer_is_an_answer_and_what_is_not_offered_is_absent() {
        let refused =
            |refusal| after(&Answers::refused(Call::ProcessesUtilization, refusal), &read());
        assert_eq!(refused(Refusal::NotFound)[&Source::ProcessUtilization], (true, NOW + 5));
        let gone = refused(Refusal::NotSupported);
        assert!(!gone.contains_key(&Source::ProcessUtilization));
    }

    #[test]
    fn an_answer_that_cannot_be_true_is_none() {
        let found = after(&Answers::default(), &Counters { energy_mj: None, ..read() });
        assert_eq!(found[&Source::Energy], (false, NOW));
        assert_eq!(found[&Source::Memory], (true, NOW + 5));
    }

    #[test]
    fn a_silent_device_fails_in_all_that_it_offers() {
        let mut validity = Validity::default();
        validity.silence();
        assert!(validity.sources().is_empty());
        validity.advance((whole_device(), true), &Answers::default(), &read(), NOW);
        validity.silence();
        let sources = validity.sources();
        assert!(sources.values().all(|it| !it.success && it.last_us == Some(NOW)));
    }
}
