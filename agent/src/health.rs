//! How each source and each way out is doing, in one shape for `/status`, `/readyz` and `doctor`.
//!
//! A source that is missing is a state with a price, never a reason to stop: the agent is healthy as
//! long as its loop turns.

use serde::{Deserialize, Serialize};

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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Active,
    /// Switched off, by the configuration or for a while by somebody on the node.
    Disabled,
    Failed,
}

#[must_use]
pub fn of_nvml(readings: &NvmlReadings) -> Part {
    let (state, message) = match &readings.state {
        NvmlState::Ok => (State::Active, format!("{} devices", readings.devices.len())),
        NvmlState::Absent(text) | NvmlState::Failed(text) | NvmlState::Replaced(text) => {
            (State::Failed, text.clone())
        }
        NvmlState::Released(text) => (State::Disabled, text.clone()),
    };
    Part { name: "nvml", state, message }
}

/// Whether it can be known whose time it is.
#[must_use]
pub fn of_attribution(readings: &NvmlReadings) -> Part {
    let (state, message) = if readings.sees_processes {
        (State::Active, "the driver's process lists are those of the host".to_owned())
    } else {
        (
            State::Failed,
            "unavailable: the agent is not in the host's PID namespace, and the driver leaves out \
             processes that the agent cannot see. Who uses a GPU is unknown, no GPU counts as idle \
             or free, and its time is unobserved. Run the agent with hostPID, or outside of a \
             container"
                .to_owned(),
        )
    };
    Part { name: "attribution", state, message }
}

#[must_use]
pub fn of_tracing(tracing: &Tracing, enabled: bool) -> Part {
    let hooks = hooks(tracing);
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

/// What is hooked, and how far the counts can be trusted.
fn hooks(tracing: &Tracing) -> String {
    let mut text = format!(
        "{} of {} hooks attached, {} at single-stepped instructions",
        tracing.hooks_attached, tracing.hooks_wanted, tracing.hooks_slow
    );
    if let Some(sampling) = &tracing.sampling {
        text += &format!(
            "; sampled, counts are scaled by up to {:.2}: {}",
            sampling.factor, sampling.reason
        );
    }
    if let Some(costs) = &tracing.hit_costs {
        text += &format!(
            "; a hit costs {} ns, with its return {} ns, single-stepped {} ns ({})",
            costs.entry_ns,
            costs.pair_ns,
            costs.slow_ns,
            if costs.measured { "measured here" } else { "assumed, it could not be measured" }
        );
    }
    if let Some(what) = tracing.kernel_lacks {
        text += &format!("; {what}");
    }
    for what in tracing.kept_bounds.iter().chain(&tracing.memory_held_back) {
        text += &format!("; {what}");
    }
    let lost = tracing.lost.iter().filter(|(_, count)| **count > 0);
    for (cause, count) in lost {
        text += &format!("; lost: {count} {}", loss(cause));
    }
    text
}

/// What a loss means, and what to do about it.
fn loss(cause: &str) -> &str {
    match cause {
        "calls" => {
            "calls without an owner, the table of processes was full: raise cuda.max_processes"
        }
        "records" => "records, the ring was full: the next reading found what they said",
        "results" => "results of calls, counted as successful",
        "allocations" => "allocations, live bytes are too small",
        "contexts" => "contexts or calls whose device was not remembered",
        "sizes" => "batches of copies, of which only the first copies' bytes are counted",
        "cgroups" => {
            "groups whose path was not kept: what ended at once in them has its user's name"
        }
        "processes" => "processes whose last counts have no owner: their ids were used again",
        "looks" => {
            "times that all hooks of a library were off, to look at its text: calls were missed"
        }
        "ends" => "processes whose last counts have no owner: too many ended at once",
        "accounts" => "calls that an agent which died had read and not kept",
        other => other,
    }
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

#[cfg(test)]
mod tests {
    use super::{State, of_tracing};
    use crate::model::readings::{Sampling, Tracing};

    fn check(change: impl FnOnce(&mut Tracing), expected: (State, &str)) {
        let mut tracing =
            Tracing { on: true, hooks_attached: 40, hooks_wanted: 42, ..Tracing::default() };
        change(&mut tracing);
        let part = of_tracing(&tracing, true);
        assert_eq!((part.state, part.message.as_str()), expected);
    }

    #[test]
    fn what_limits_the_counts_is_said() {
        let hooks = "40 of 42 hooks attached, 0 at single-stepped instructions";
        check(|_| {}, (State::Active, hooks));
        let sampled = |it: &mut Tracing| {
            it.sampling = Some(Sampling { factor: 2.5, reason: "too many launches".to_owned() });
        };
        let text = format!("{hooks}; sampled, counts are scaled by up to 2.50: too many launches");
        check(sampled, (State::Active, &text));
        let text = format!("{hooks}; lost: 3 allocations, live bytes are too small");
        let lost = |it: &mut Tracing| it.lost = [("allocations", 3), ("calls", 0)].into();
        check(lost, (State::Active, &text));
        let held = |it: &mut Tracing| it.memory_held_back = vec!["no memory".to_owned()];
        check(held, (State::Active, &format!("{hooks}; no memory")));
        let old = |it: &mut Tracing| it.kernel_lacks = Some("an old kernel");
        check(old, (State::Active, &format!("{hooks}; an old kernel")));
    }
}
