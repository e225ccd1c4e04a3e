//! How each source and each way out is doing, in one shape for `/status`, `/healthz` and `doctor`.
//!
//! A source that is missing is a state with a price, never a reason to stop: the agent is healthy as
//! long as its loop turns.

use serde::Serialize;

use crate::model::readings::{NvmlReadings, NvmlState, Tracing};
use crate::spool::{SpoolState, SpoolStatus};
use crate::uplink::link::LinkState;

/// One source or way out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    pub name: &'static str,
    pub state: State,
    /// What was found, and what to do where something is missing.
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Active,
    /// Switched off by the configuration.
    Disabled,
    Failed,
}

#[must_use]
pub fn of_nvml(readings: &NvmlReadings) -> Part {
    let (state, message) = match &readings.state {
        NvmlState::Ok => (State::Active, format!("{} devices", readings.devices.len())),
        NvmlState::Absent(text) | NvmlState::Failed(text) => (State::Failed, text.clone()),
    };
    Part { name: "nvml", state, message }
}

#[must_use]
pub fn of_tracing(tracing: &Tracing, enabled: bool) -> Part {
    let hooks = format!(
        "{} of {} hooks attached, {} at single-stepped instructions, {} losses",
        tracing.hooks_attached,
        tracing.hooks_wanted,
        tracing.hooks_slow,
        tracing.losses()
    );
    let (state, message) = match (enabled, tracing.on) {
        (false, _) => (State::Disabled, "switched off: cuda.enabled = false".to_owned()),
        (true, true) if tracing.reason.is_empty() => {
            (State::Active, hooks + &unpinned(tracing.unpinned.as_deref()))
        }
        (true, true) => (State::Active, format!("{hooks}; {}", tracing.reason)),
        (true, false) => (State::Failed, tracing.reason.clone()),
    };
    Part { name: "tracing", state, message }
}

/// What that costs.
fn unpinned(why: Option<&str>) -> String {
    why.map_or_else(String::new, |why| {
        format!("; calls made while no agent runs are not counted: {why}")
    })
}

#[must_use]
pub fn of_spool(spool: &SpoolStatus) -> Part {
    let (state, message) = match (&spool.state, &spool.open) {
        (SpoolState::Full(trouble) | SpoolState::Failing(trouble), _) => {
            (State::Failed, trouble.clone())
        }
        (SpoolState::Writing, Some(open)) => (
            State::Active,
            format!("{} records not acknowledged, {} bytes", open.unsent_records, open.used_bytes),
        ),
        (SpoolState::Writing, None) => (State::Failed, "not open yet".to_owned()),
    };
    Part { name: "spool", state, message }
}

#[must_use]
pub fn of_link(link: &LinkState, address: Option<&str>) -> Part {
    let (state, message) = match address {
        None => (
            State::Disabled,
            "no collector configured: usage stays in the spool, /metrics works".to_owned(),
        ),
        Some(_) if link.connected => (State::Active, link.message.clone()),
        Some(_) => (State::Failed, link.message.clone()),
    };
    Part { name: "collector", state, message }
}
