//! A scenario at a moment: its devices with every step that is past on top of them.

use recording::change::apply;
use toml::{Table, Value};

use crate::device::Sample;
use crate::scenario::{Scenario, ScenarioError};

/// What a scenario is so long after its node was opened first.
pub(crate) fn at(scenario: &Scenario, after_ms: u64) -> Result<Scenario, ScenarioError> {
    let wrong = |why: String| ScenarioError::Step(why);
    let past = &scenario.steps[..passed(scenario, after_ms)];
    let mut now = scenario.clone();
    for step in past {
        now.nvml_init_fails = step.nvml_init_fails.or(now.nvml_init_fails);
    }
    now.nvml_init_fails = now.nvml_init_fails.filter(|it| *it != 0);
    for (index, gpu) in now.gpus.iter_mut().enumerate() {
        let mut changes = past.iter().filter_map(|it| it.gpus.get(&index.to_string())).peekable();
        if changes.peek().is_some() {
            let mut table = Table::try_from(&*gpu).map_err(|it| wrong(it.to_string()))?;
            changes.for_each(|it| apply(&mut table, it));
            *gpu = Value::Table(table).try_into().map_err(|it| wrong(format!("{it}")))?;
        }
    }
    let stranger = past
        .iter()
        .flat_map(|it| it.gpus.keys())
        .find(|it| it.parse::<usize>().ok().is_none_or(|index| index >= scenario.gpus.len()));
    match stranger {
        Some(index) => Err(wrong(format!("there is no device {index}"))),
        None => Ok(now),
    }
}

/// How many steps are past.
pub(crate) fn passed(scenario: &Scenario, after_ms: u64) -> usize {
    scenario.steps.partition_point(|it| it.at_ms <= after_ms)
}

/// When the next step is due, in milliseconds since the node was opened first.
pub(crate) fn next_ms(scenario: &Scenario, after_ms: u64) -> Option<u64> {
    scenario.steps.get(passed(scenario, after_ms)).map(|it| it.at_ms)
}

/// The recorded samples of one device that were told up to now: those of all steps that are past, as
/// a driver's ring would have them. `began_us` is Unix time in microseconds.
pub(crate) fn samples(
    scenario: &Scenario,
    device: usize,
    began_us: u64,
    after_ms: u64,
) -> Vec<Sample> {
    let past = &scenario.steps[..passed(scenario, after_ms)];
    let told = past.iter().filter_map(|it| it.samples.get(&device.to_string())).flatten();
    let sample = |(pid, at_us, sm_percent): &(u32, i64, u32)| Sample {
        pid: *pid,
        timestamp_us: began_us.saturating_add_signed(*at_us),
        sm_percent: *sm_percent,
    };
    told.map(sample).collect()
}

#[cfg(test)]
mod tests {
    use super::{at, samples};
    use crate::scenario::{Scenario, State};

    const TEXT: &str = "
        [[gpus]]
        busy_percent = 10
        fields = { 94 = 1, 95 = 7 }
        [[gpus]]
        [[steps]]
        at_ms = 1000
        samples = { 0 = [[5000001, -200, 40]] }
        [steps.gpus.0]
        busy_percent = 20
        fields = { 94 = 2 }
        [[steps]]
        at_ms = 2000
        nvml_init_fails = 9
        gpus = { 1 = { state = \"lost\" } }
        samples = { 0 = [[5000001, 900000, 50]] }
        [[steps]]
        at_ms = 3000
        nvml_init_fails = 0
    ";

    fn scenario() -> Scenario {
        toml::from_str(TEXT).unwrap()
    }

    #[test]
    fn a_step_changes_what_it_names_from_its_moment_on() {
        let scenario = scenario();
        let seen = |ms| {
            let now = at(&scenario, ms).unwrap();
            let replays = (now.gpus[0].fields["94"], now.gpus[0].fields["95"]);
            let lost = now.gpus[1].state == State::Lost;
            (now.gpus[0].busy_percent, replays, lost, now.nvml_init_fails)
        };
        assert_eq!(seen(0), (Some(10), (1, 7), false, None));
        assert_eq!(seen(999), seen(0));
        assert_eq!(seen(1_000), (Some(20), (2, 7), false, None));
        assert_eq!(seen(2_000), (Some(20), (2, 7), true, Some(9)));
        assert_eq!(seen(3_000), (Some(20), (2, 7), true, None));
    }

    #[test]
    fn samples_are_those_of_every_step_that_is_past() {
        let scenario = scenario();
        let seen = |device, ms| samples(&scenario, device, 1_000_000, ms).len();
        assert_eq!((seen(0, 0), seen(0, 1_500), seen(0, 9_000), seen(1, 9_000)), (0, 1, 2, 0));
        let first = samples(&scenario, 0, 1_000_000, 1_500)[0];
        assert_eq!((first.timestamp_us, first.sm_percent), (999_800, 40));
    }

    #[test]
    fn a_step_that_does_not_fit_is_no_scenario() {
        for step in ["gpus = { 1 = { busy = 1 } }", "gpus = { 2 = { busy_percent = 1 } }"] {
            let text = format!("[[gpus]]\n[[gpus]]\n[[steps]]\nat_ms = 5\n{step}\n");
            let scenario: Scenario = toml::from_str(&text).unwrap();
            assert!(at(&scenario, 4).is_ok() && at(&scenario, 5).is_err(), "{step}");
        }
    }
}
