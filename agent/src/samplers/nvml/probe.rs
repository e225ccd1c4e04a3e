//! What a device lets us read, and what we therefore ask.
//!
//! A probe asks everything once. `Facts` is what was found, the rules are in `Plan::from_facts`.
//! Nothing here calls NVML: the calls are in `driver.rs`, the meaning of the answers in `decode.rs`.

use std::collections::BTreeSet;

use crate::samplers::nvml::answers::{Answers, Call, Refusal};

/// What one device offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// `None` when the driver did not answer, which is not the same as off.
    pub(crate) mig_on: Option<bool>,
    /// What this device, this driver or our privilege does not have.
    pub(crate) missing: BTreeSet<Call>,
    /// The agent sees the PIDs that the driver sees.
    pub(crate) host_pids: bool,
}

/// What is asked at each tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) instances: Instances,
    /// Process lists are asked for, and what they leave out is not there.
    pub(crate) lists_processes: bool,
    /// One bit for each call, so that a plan travels with every report.
    calls: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Instances {
    /// The device is its own only instance.
    Whole,
    Mig,
    /// It is not known which: the device is listed and nothing is said about its use.
    Unmeasurable,
}

// === impl Facts ===

impl Facts {
    /// What a probe's answers say. A call that failed is not missing: it is asked again.
    pub(crate) fn from_answers(answers: &Answers, host_pids: bool) -> Self {
        let refused = |call| answers.refused.get(&call).copied();
        let mig_on = answers
            .mig_on
            .or_else(|| (refused(Call::MigMode) == Some(Refusal::NotSupported)).then_some(false));
        let missing =
            answers.refused.iter().filter(|(_, it)| it.is_a_fact()).map(|(call, _)| *call);
        Self { mig_on, missing: missing.collect(), host_pids }
    }
}

// === impl Plan ===

impl Plan {
    /// Ask everything, to learn what there is.
    pub(crate) fn probe() -> Self {
        Self {
            instances: Instances::Unmeasurable,
            lists_processes: true,
            calls: bits(Call::of_a_device()),
        }
    }

    /// Everything that is there and means something here.
    ///
    /// With MIG on, the device's utilisation and process samples say nothing about an instance, and
    /// its process list cannot be split. Outside of the host's PID namespace the driver leaves out
    /// processes that we cannot see, so that an empty list would not mean an unused device.
    pub(crate) fn from_facts(facts: &Facts) -> Self {
        let instances = match facts.mig_on {
            Some(true) => Instances::Mig,
            Some(false) => Instances::Whole,
            None => Instances::Unmeasurable,
        };
        let wanted = |call: &Call| match call {
            Call::Utilization => instances == Instances::Whole,
            Call::ComputeProcesses
            | Call::GraphicsProcesses
            | Call::MpsProcesses
            | Call::ProcessesUtilization => instances == Instances::Whole && facts.host_pids,
            // On new devices it answers and says 0, so that it is for drivers without the other.
            Call::ProcessUtilization => {
                let newer_is_missing = facts.missing.contains(&Call::ProcessesUtilization);
                instances == Instances::Whole && facts.host_pids && newer_is_missing
            }
            Call::MigDevices => instances == Instances::Mig,
            _ => true,
        };
        let calls = Call::of_a_device().filter(|it| !facts.missing.contains(it));
        Self { instances, lists_processes: facts.host_pids, calls: bits(calls.filter(wanted)) }
    }

    /// What is left of it at a tick that asks for no figures.
    #[must_use]
    pub(crate) fn without_slow(self) -> Self {
        let slow = bits(Call::of_a_device().filter(|it| it.is_slow()));
        Self { calls: self.calls & !slow, ..self }
    }

    pub(crate) fn asks_for_figures(self) -> bool {
        Call::of_a_device().any(|it| it.is_slow() && self.asks(it))
    }

    pub(crate) fn asks(self, call: Call) -> bool {
        self.calls & bit(call) != 0
    }

    /// What is left out, for people who ask why a value is absent.
    pub(crate) fn not_asked(self) -> impl Iterator<Item = Call> {
        Call::of_a_device().filter(move |it| !self.asks(*it))
    }
}

fn bits(calls: impl Iterator<Item = Call>) -> u64 {
    calls.fold(0, |bits, call| bits | bit(call))
}

fn bit(call: Call) -> u64 {
    1 << (call as u32)
}

#[cfg(test)]
mod tests {
    use super::{Facts, Instances, Plan};
    use crate::samplers::nvml::answers::{Answers, Call, Refusal};

    const PROCESSES: [Call; 5] = [
        Call::ComputeProcesses,
        Call::GraphicsProcesses,
        Call::MpsProcesses,
        Call::ProcessUtilization,
        Call::ProcessesUtilization,
    ];

    fn capable() -> Answers {
        Answers { mig_on: Some(false), ..Answers::default() }
    }

    fn plan(answers: &Answers, host_pids: bool) -> Plan {
        Plan::from_facts(&Facts::from_answers(answers, host_pids))
    }

    /// The plan asks for everything that is a device's, but these.
    fn check(plan: Plan, instances: Instances, without: &[Call]) {
        assert_eq!(plan.instances, instances);
        assert_eq!(plan.not_asked().collect::<Vec<_>>(), without);
    }

    /// Of a whole device whose driver has the newer call.
    const NEEDLESS: [Call; 2] = [Call::ProcessUtilization, Call::MigDevices];

    #[test]
    fn losing_a_capability_loses_its_question_only() {
        check(plan(&capable(), true), Instances::Whole, &NEEDLESS);
        for call in [Call::ComputeProcesses, Call::Energy, Call::Power, Call::Utilization] {
            for refusal in [Refusal::NotSupported, Refusal::Denied] {
                let answers = Answers { refused: [(call, refusal)].into(), ..capable() };
                let plan = plan(&answers, true);
                assert_eq!(plan.instances, Instances::Whole);
                let mut without: Vec<Call> = NEEDLESS.into_iter().chain([call]).collect();
                without.sort();
                assert_eq!(plan.not_asked().collect::<Vec<_>>(), without);
            }
        }
    }

    #[test]
    fn the_older_call_is_for_drivers_without_the_newer_one() {
        let refused = |refusal| Answers {
            refused: [(Call::ProcessesUtilization, refusal)].into(),
            ..capable()
        };
        let older = plan(&refused(Refusal::NotSupported), true);
        check(older, Instances::Whole, &[Call::ProcessesUtilization, Call::MigDevices]);
        for refusal in [Refusal::NotFound, Refusal::Failed] {
            check(plan(&refused(refusal), true), Instances::Whole, &NEEDLESS);
        }
    }

    #[test]
    fn a_failure_is_not_a_fact() {
        for refusal in [Refusal::Failed, Refusal::NotFound, Refusal::GpuLost] {
            let answers = Answers { refused: [(Call::Energy, refusal)].into(), ..capable() };
            check(plan(&answers, true), Instances::Whole, &NEEDLESS);
        }
    }

    #[test]
    fn without_mig_mode_a_device_is_whole_only_if_it_has_no_mig() {
        let refused = |refusal| Answers::refused(Call::MigMode, refusal);
        let old_device = plan(&refused(Refusal::NotSupported), true);
        let without = [Call::MigMode, Call::ProcessUtilization, Call::MigDevices];
        check(old_device, Instances::Whole, &without);
        for refusal in [Refusal::Failed, Refusal::Denied] {
            let plan = plan(&refused(refusal), true);
            assert_eq!(plan.instances, Instances::Unmeasurable);
            let silent = PROCESSES.into_iter().chain([Call::Utilization, Call::MigDevices]);
            assert!(silent.into_iter().all(|it| !plan.asks(it)), "{refusal:?}");
        }
    }

    #[test]
    fn with_mig_the_device_is_not_asked_about_its_use() {
        let plan = plan(&Answers { mig_on: Some(true), ..Answers::default() }, true);
        let mut without = vec![Call::Utilization];
        without.extend(PROCESSES);
        check(plan, Instances::Mig, &without);
    }

    #[test]
    fn outside_of_the_hosts_pid_namespace_no_list_is_asked_for() {
        let mut without = PROCESSES.to_vec();
        without.push(Call::MigDevices);
        let plan = plan(&capable(), false);
        check(plan, Instances::Whole, &without);
        assert!(!plan.lists_processes);
    }
}
