//! The admin socket: what people on this node, and a successor, may ask of a running agent.
//!
//! One line of JSON each way. Who asks must be root or the agent's own user. Nothing that comes over
//! the network ends up here.

pub mod client;
pub mod server;

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Longest question or answer.
const MOST_BYTES: u64 = 16 * 1024;
/// How long tracing may be paused, or NVML let go, at one time: what is forgotten ends.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 3_600);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// From a successor: stop measuring, give up everything, keep what is pinned if it is of this ABI.
    Handover {
        abi: u32,
        version: String,
    },
    /// Take every hook off for this long.
    Pause {
        seconds: u64,
    },
    Resume,
    /// Let go of NVML for this long.
    Release {
        seconds: u64,
    },
    /// Open NVML again.
    Take,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", content = "text", rename_all = "snake_case")]
pub enum Answer {
    /// What was done, in a sentence.
    Done(String),
    /// It is under way, and what it waits for.
    Unfinished(String),
    /// Nothing was done, and why.
    Refused(String),
}

/// `90s`, `10m`, `2h`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let expected = || format!("`{text}` is not a time like 90s, 10m or 2h");
    let unit = text.chars().last().ok_or_else(expected)?;
    let seconds_of_one = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        _ => return Err(expected()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_not_a_number| expected())?;
    let time = Duration::from_secs(number.saturating_mul(seconds_of_one));
    if time.is_zero() || time > LONGEST_PAUSE {
        return Err(format!("{text} is out of range, expected 1s to 24h"));
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use super::parse_duration;

    fn check(text: &str, expected: Option<u64>) {
        assert_eq!(parse_duration(text).ok().map(|it| it.as_secs()), expected, "{text}");
    }

    #[test]
    fn times_are_written_with_a_unit() {
        check("90s", Some(90));
        check("10m", Some(600));
        check("24h", Some(86_400));
        for wrong in ["", "10", "m", "0s", "25h", "1.5h", "-1m", "9999999999999999999h", "10ä"] {
            check(wrong, None);
        }
    }
}
