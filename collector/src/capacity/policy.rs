//! Which idleness is offered. Pure.
//!
//! Free capacity is offered at once. Held capacity is offered once it has been idle for the dwell,
//! without interruption (`state::node` has the rule); the dwell has passed when a reading says so, never
//! because readings fail to come. The first contrary reading withdraws. What is unknown, used, unhealthy
//! or silent is never offered.

use proto::capacity::v1::withdrawn;
use proto::telemetry::v1::{Class, Health};

use crate::state::node::{Idleness, Observed, Presence};

/// The profile that held capacity is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    pub held_dwell_ns: u64,
}

/// What becomes of one instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Idle for at least `dwell_ns`, which is 0 for free capacity.
    Offer {
        dwell_ns: u64,
    },
    Withhold(Withheld),
}

/// Why an instance is not offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withheld {
    Busy,
    /// No reading, no clock, or no signal: unknown is never idle.
    Unknown,
    Unhealthy,
    Silent,
    Gone,
    /// Idle, and not for long enough yet.
    Dwelling {
        left_ns: u64,
    },
}

// === impl Policy ===

impl Policy {
    #[must_use]
    pub fn decide(&self, observed: &Observed<'_>) -> Decision {
        match self.withheld(observed) {
            Some(withheld) => Decision::Withhold(withheld),
            None => Decision::Offer { dwell_ns: self.dwell_ns(observed.class()) },
        }
    }

    fn withheld(&self, observed: &Observed<'_>) -> Option<Withheld> {
        match observed.node.presence {
            Presence::Gone => return Some(Withheld::Gone),
            Presence::Silent => return Some(Withheld::Silent),
            Presence::Live => {}
        }
        match observed.device.health() {
            Health::Ok => {}
            Health::Unspecified | Health::Released => return Some(Withheld::Unknown),
            Health::Degraded | Health::Hung | Health::Lost | Health::ResetRequired => {
                return Some(Withheld::Unhealthy);
            }
        }
        match observed.class() {
            Class::Unspecified | Class::Unknown => Some(Withheld::Unknown),
            Class::Active | Class::HostBound => Some(Withheld::Busy),
            Class::Down => Some(Withheld::Unhealthy),
            class => self.idle_but_withheld(observed, class),
        }
    }

    fn idle_but_withheld(&self, observed: &Observed<'_>, class: Class) -> Option<Withheld> {
        if observed.device.readings.is_none() {
            return Some(Withheld::Unknown);
        }
        let Some(idle_ns) = observed.idle_age_when_read_ns() else {
            return Some(Withheld::Unknown);
        };
        let left_ns = self.dwell_ns(class).saturating_sub(idle_ns);
        (left_ns > 0).then_some(Withheld::Dwelling { left_ns })
    }

    fn dwell_ns(&self, class: Class) -> u64 {
        match Idleness::of(class) {
            Some(Idleness::Held) => self.held_dwell_ns,
            Some(Idleness::Free) | None => 0,
        }
    }
}

// === impl Decision ===

impl Decision {
    #[must_use]
    pub fn is_dwelling(self) -> bool {
        matches!(self, Self::Withhold(Withheld::Dwelling { .. }))
    }
}

// === impl Withheld ===

impl Withheld {
    /// For people and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Unknown => "unknown",
            Self::Unhealthy => "unhealthy",
            Self::Silent => "silent",
            Self::Gone => "gone",
            Self::Dwelling { .. } => "dwelling",
        }
    }

    /// As the stream says it when an offer ends.
    #[must_use]
    pub fn reason(self) -> withdrawn::Reason {
        match self {
            Self::Busy => withdrawn::Reason::Busy,
            Self::Unknown => withdrawn::Reason::Unknown,
            Self::Unhealthy => withdrawn::Reason::Health,
            Self::Silent => withdrawn::Reason::Silent,
            Self::Gone => withdrawn::Reason::Gone,
            Self::Dwelling { .. } => withdrawn::Reason::ClassChanged,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Decision, Policy, Withheld};
    use crate::state::fixtures::{LIMITS, SECOND, gone, gpu, held_by, live, tick};
    use crate::state::{Event, fleet::Fleet};
    use proto::telemetry::v1::{Class, Device, Health};

    const POLICY: Policy = Policy { held_dwell_ns: 60 * SECOND };
    const AT_ONCE: Decision = Decision::Offer { dwell_ns: 0 };

    /// What is decided at second 200 on a device, and then on what happens.
    fn check_after(device: Device, events: Vec<Event>, expected: Decision) {
        let mut fleet = Fleet::new(LIMITS);
        fleet.apply(live("n", 200, vec![device]));
        for event in events {
            fleet.apply(event);
        }
        let snapshot = fleet.snapshot();
        let observed = snapshot.nodes[0].instances().next().expect("the node has an instance");
        assert_eq!(POLICY.decide(&observed), expected);
    }

    fn check(device: Device, expected: Decision) {
        check_after(device, Vec::new(), expected);
    }

    #[test]
    fn free_capacity_has_no_dwell() {
        check(gpu("GPU-1", Class::Free, 200), AT_ONCE);
    }

    #[test]
    fn held_capacity_lasts_its_dwell_first() {
        for class in [Class::HeldNoProcess, Class::HeldNoContext, Class::MemoryHeld, Class::Stalled]
        {
            let held = |since_s| held_by(gpu("GPU-1", class, since_s), &["a"]);
            let left_ns = SECOND;
            check(held(141), Decision::Withhold(Withheld::Dwelling { left_ns }));
            check(held(140), Decision::Offer { dwell_ns: 60 * SECOND });
        }
    }

    #[test]
    fn a_dwell_does_not_end_without_a_reading() {
        let held = held_by(gpu("GPU-1", Class::MemoryHeld, 141), &["a"]);
        let left_ns = SECOND;
        check_after(held, vec![tick(210)], Decision::Withhold(Withheld::Dwelling { left_ns }));
    }

    #[test]
    fn what_is_used_or_unknown_is_never_offered() {
        for (class, withheld) in [
            (Class::Active, Withheld::Busy),
            (Class::HostBound, Withheld::Busy),
            (Class::Unknown, Withheld::Unknown),
            (Class::Unspecified, Withheld::Unknown),
            (Class::Down, Withheld::Unhealthy),
        ] {
            check(gpu("GPU-1", class, 0), Decision::Withhold(withheld));
        }
        let unread = Device { readings: None, ..gpu("GPU-1", Class::Free, 0) };
        check(unread, Decision::Withhold(Withheld::Unknown));
    }

    #[test]
    fn only_health_that_is_known_to_be_good_is_offered() {
        for (health, withheld) in [
            (Health::Unspecified, Withheld::Unknown),
            (Health::Degraded, Withheld::Unhealthy),
            (Health::Hung, Withheld::Unhealthy),
            (Health::Lost, Withheld::Unhealthy),
            (Health::ResetRequired, Withheld::Unhealthy),
            (Health::Released, Withheld::Unknown),
        ] {
            let device = Device { health: health.into(), ..gpu("GPU-1", Class::Free, 0) };
            check(device, Decision::Withhold(withheld));
        }
    }

    #[test]
    fn a_node_that_is_not_heard_has_no_idle_capacity() {
        let free = || gpu("GPU-1", Class::Free, 0);
        check_after(free(), vec![tick(215)], AT_ONCE);
        check_after(free(), vec![tick(216)], Decision::Withhold(Withheld::Silent));
        check_after(free(), vec![gone("n")], Decision::Withhold(Withheld::Gone));
    }
}
