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
            Health::Unspecified => return Some(Withheld::Unknown),
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

// === impl Withheld ===

impl Withheld {
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
