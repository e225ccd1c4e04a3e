//! What refused calls say about a device. Values in, values out: no call, no clock.

use crate::model::readings::Health;
use crate::samplers::nvml::answers::{Answers, Call, Refusal};
use crate::samplers::nvml::probe::{Instances, Plan};

/// `Degraded` = a planned question that decides who used the device was not answered. A temperature
/// that cannot be read is an absent temperature and nothing more.
pub(crate) fn of_device(plan: Plan, answers: &Answers) -> Health {
    let refused = |refusal| answers.refused.values().any(|it| *it == refusal);
    if refused(Refusal::GpuLost) || answers.refused.get(&Call::Handle) == Some(&Refusal::NotFound) {
        return Health::Lost;
    }
    if refused(Refusal::ResetRequired) {
        return Health::ResetRequired;
    }
    let blind = answers.refused.iter().any(|(call, refusal)| match refusal {
        refusal if refusal.is_about_the_driver() => true,
        _ if *call == Call::Handle => true,
        Refusal::Failed => plan.asks(*call) && is_evidence(plan, *call),
        _ => false,
    });
    if blind { Health::Degraded } else { Health::Ok }
}

/// Calls that went wrong. What a device does not offer, and what a probe asked only to find out, did
/// not.
pub(crate) fn failures(plan: Plan, answers: &Answers) -> impl Iterator<Item = Call> {
    let failed = answers.refused.iter().filter(|(_, refusal)| !refusal.is_ordinary());
    failed.map(|(call, _)| *call).filter(move |call| plan.asks(*call))
}

/// The device no longer has what its probe found.
pub(crate) fn plan_is_stale(answers: &Answers) -> bool {
    answers.refused.values().any(|it| it.is_a_fact())
}

fn is_evidence(plan: Plan, call: Call) -> bool {
    match call {
        // Of an instance nothing else says whether it works.
        Call::Gpm => plan.instances == Instances::Mig,
        Call::Handle
        | Call::MigMode
        | Call::Utilization
        | Call::Memory
        | Call::Energy
        | Call::ComputeProcesses
        | Call::GraphicsProcesses
        | Call::MpsProcesses
        | Call::ProcessUtilization
        | Call::ProcessesUtilization
        | Call::MigDevices => true,
        Call::Open
        | Call::List
        | Call::Power
        | Call::Temperature
        | Call::SmClock
        | Call::MemoryClock
        | Call::Fields
        | Call::Encoder
        | Call::Decoder
        | Call::Jpeg
        | Call::OpticalFlow
        | Call::VideoClock
        | Call::Bar1
        | Call::Fabric
        | Call::AccountingMode => false,
    }
}

#[cfg(test)]
mod tests {
    use super::{failures, of_device};
    use crate::model::readings::Health;
    use crate::samplers::nvml::answers::{Answers, Call, Refusal};
    use crate::samplers::nvml::probe::{Facts, Plan};

    fn whole_device() -> Plan {
        let answers = Answers { mig_on: Some(false), ..Answers::default() };
        Plan::from_facts(&Facts::from_answers(&answers, true))
    }

    fn check(call: Call, refusal: Refusal, expected: Health, fails: bool) {
        let answers = Answers::refused(call, refusal);
        assert_eq!(of_device(whole_device(), &answers), expected, "{call:?} {refusal:?}");
        assert_eq!(failures(whole_device(), &answers).count(), usize::from(fails), "{call:?}");
    }

    #[test]
    fn health_follows_what_was_refused() {
        assert_eq!(of_device(whole_device(), &Answers::default()), Health::Ok);
        check(Call::Energy, Refusal::GpuLost, Health::Lost, true);
        check(Call::Handle, Refusal::NotFound, Health::Lost, false);
        check(Call::Power, Refusal::ResetRequired, Health::ResetRequired, true);
        check(Call::Utilization, Refusal::Failed, Health::Degraded, true);
        check(Call::Utilization, Refusal::DriverGone, Health::Degraded, true);
        check(Call::Handle, Refusal::Denied, Health::Degraded, false);
        // Absent, and nothing more.
        check(Call::Temperature, Refusal::Failed, Health::Ok, true);
        check(Call::Energy, Refusal::NotSupported, Health::Ok, false);
        check(Call::ProcessUtilization, Refusal::NotFound, Health::Ok, false);
        // Asked by the probe of a device without MIG.
        check(Call::MigDevices, Refusal::Failed, Health::Ok, false);
    }
}
