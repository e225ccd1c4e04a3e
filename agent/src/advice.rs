//! What to do about a device that is not as it should be: state in, suggestion out.
//!
//! A suggestion is for people and for what they run; nothing here acts on it. The first rule that holds
//! counts: what is wrong with the driver of the node, then with the device, then what the driver itself
//! asks for. No I/O, no clock.

use proto::telemetry::v1::suggestion::Action;

use crate::model::figures::Figure;
use crate::model::readings::{DeviceReading, Health, NvmlState};
use crate::model::units::BootNs;

/// Calls about a sick device can take most of a minute, and a reset of it some more. One that takes
/// longer than this does not return.
const STUCK_NS: u64 = 300_000_000_000;

/// One phrase each, why and what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suggestion {
    pub action: Action,
    pub reason: &'static str,
}

/// `None` = there is nothing to do.
#[must_use]
pub fn suggestion(at: BootNs, state: &NvmlState, device: &DeviceReading) -> Option<Suggestion> {
    let (action, reason) =
        of_driver(state).or_else(|| of_health(at, device)).or_else(|| asked_for(device))?;
    Some(Suggestion { action, reason })
}

fn of_driver(state: &NvmlState) -> Option<(Action, &'static str)> {
    Some(match state {
        NvmlState::Ok => return None,
        NvmlState::Released(_) => {
            (Action::Wait, "NVML was let go on request and is opened again by itself")
        }
        NvmlState::Replaced(_) => (
            Action::FinishUpgrade,
            "the driver and its library are of different versions: stop what uses the GPUs and load \
             the new driver, or reboot",
        ),
        NvmlState::Absent(_) => (
            Action::LoadDriver,
            "the driver is not loaded: load it, or wait where an upgrade is under way",
        ),
        NvmlState::Failed(_) => {
            (Action::ReadLog, "NVML fails: look for NVRM and Xid in the kernel's log")
        }
    })
}

fn of_health(at: BootNs, device: &DeviceReading) -> Option<(Action, &'static str)> {
    let stuck = device.inside_since.is_some_and(|it| at.since(it) >= STUCK_NS);
    Some(match device.health {
        Health::Ok => return None,
        Health::Released => {
            (Action::Wait, "NVML was let go on request and is opened again by itself")
        }
        Health::Lost => (
            Action::RebootNode,
            "it has fallen off the bus: drain the node and reboot it; if it is lost again, check power, \
             slot and cables",
        ),
        Health::ResetRequired => (
            Action::ResetGpu,
            "the driver refuses it until a reset: end its processes, let NVML go and run nvidia-smi \
             --gpu-reset",
        ),
        Health::Hung if stuck => (
            Action::RebootNode,
            "a call about it has not returned for minutes, and no process that is in one can be \
             killed: drain the node and reboot it",
        ),
        Health::Hung => (Action::Wait, "a call about it has not returned yet"),
        Health::Degraded => asked_for(device).unwrap_or((
            Action::ReadLog,
            "calls about it fail: gleaner_agent_nvml_errors_total says which; look for NVRM and Xid \
             in the kernel's log",
        )),
    })
}

/// By the driver itself, where it has a word for it.
fn asked_for(device: &DeviceReading) -> Option<(Action, &'static str)> {
    Some(match device.figures.get(Figure::RecoveryAction)? {
        1 => (
            Action::ResetGpu,
            "the driver asks for a reset: end its processes, let NVML go and run nvidia-smi \
             --gpu-reset",
        ),
        2 => (Action::RebootNode, "the driver asks for a reboot of the node"),
        3 => (
            Action::DrainPeers,
            "the driver asks that nothing is exchanged with other GPUs: end the jobs that use several",
        ),
        4 => (
            Action::DrainAndReset,
            "the driver asks for a reset once its work is done: start nothing new on it",
        ),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::{Action, STUCK_NS, suggestion};
    use crate::attribution::fixtures;
    use crate::model::figures::Figure;
    use crate::model::readings::{DeviceReading, Health, NvmlState};
    use crate::model::units::BootNs;

    const AT: BootNs = BootNs(2 * STUCK_NS);

    fn check(state: &NvmlState, change: impl FnOnce(&mut DeviceReading), expected: Option<Action>) {
        let readings = fixtures::readings(AT.0, 1);
        let mut device = readings.nvml.devices.into_values().next().unwrap();
        change(&mut device);
        let found = suggestion(AT, state, &device);
        assert_eq!(found.map(|it| it.action), expected, "{state:?} {device:?}");
        assert!(found.is_none_or(|it| !it.reason.is_empty() && !it.reason.contains("  ")));
    }

    fn health(health: Health, expected: Option<Action>) {
        check(&NvmlState::Ok, |it| it.health = health, expected);
    }

    fn recovery(asked: u64, of: Health, expected: Option<Action>) {
        let change = |it: &mut DeviceReading| {
            it.health = of;
            it.figures = [(Figure::RecoveryAction, asked)].into_iter().collect();
        };
        check(&NvmlState::Ok, change, expected);
    }

    #[test]
    fn each_state_has_its_action() {
        health(Health::Ok, None);
        health(Health::Degraded, Some(Action::ReadLog));
        health(Health::Lost, Some(Action::RebootNode));
        health(Health::ResetRequired, Some(Action::ResetGpu));
        health(Health::Released, Some(Action::Wait));
        health(Health::Hung, Some(Action::Wait));
        for (inside_ns, expected) in [(STUCK_NS - 1, Action::Wait), (STUCK_NS, Action::RebootNode)]
        {
            let hang = |it: &mut DeviceReading| {
                it.health = Health::Hung;
                it.inside_since = Some(BootNs(AT.0 - inside_ns));
            };
            check(&NvmlState::Ok, hang, Some(expected));
        }
    }

    #[test]
    fn what_the_driver_asks_for_is_passed_on() {
        for (asked, expected) in [
            (0, None),
            (1, Some(Action::ResetGpu)),
            (2, Some(Action::RebootNode)),
            (3, Some(Action::DrainPeers)),
            (4, Some(Action::DrainAndReset)),
        ] {
            recovery(asked, Health::Ok, expected);
            recovery(asked, Health::Degraded, expected.or(Some(Action::ReadLog)));
            // What is known without it is stronger.
            recovery(asked, Health::Lost, Some(Action::RebootNode));
        }
    }

    #[test]
    fn a_driver_that_is_not_there_goes_before_its_devices() {
        let text = || "why".to_owned();
        for (state, expected) in [
            (NvmlState::Absent(text()), Action::LoadDriver),
            (NvmlState::Replaced(text()), Action::FinishUpgrade),
            (NvmlState::Released(text()), Action::Wait),
            (NvmlState::Failed(text()), Action::ReadLog),
        ] {
            for health in [Health::Degraded, Health::Lost, Health::Ok] {
                check(&state, |it| it.health = health, Some(expected));
            }
        }
    }
}
