//! From events to offers, and from offers to messages.

mod offers;
mod stream;

use std::time::Duration;

use super::policy::Policy;
use crate::config::Idle;
use crate::state::fixtures::SECOND;

pub(super) const POLICY: Policy = Policy { held_dwell_ns: 60 * SECOND };
pub(super) const IDLE: Idle = Idle {
    dwell: Duration::from_secs(60),
    stale_after: Duration::from_secs(15),
    valid_for: Duration::from_secs(30),
    heartbeat: Duration::from_secs(10),
};
