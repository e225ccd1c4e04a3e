//! How the agent's sources are doing, as `doctor --json` and `/status` say it.

use anyhow::Context;
use serde::Deserialize;

/// As far as it is read here.
#[derive(Debug, Deserialize)]
pub(super) struct Parts {
    parts: Vec<Part>,
}

#[derive(Debug, Deserialize)]
struct Part {
    name: String,
    state: String,
    message: String,
}

impl Parts {
    pub(super) fn read(json: &str) -> anyhow::Result<Self> {
        serde_json::from_str(json).context("cannot read what the agent says about itself")
    }

    /// Why there are no real GPUs; `None` when there are.
    pub(super) fn without_gpus(&self) -> Option<&str> {
        match self.trouble("nvml") {
            None if self.find("nvml").is_some_and(|it| it.message.starts_with("0 ")) => {
                Some("the driver lists no device")
            }
            trouble => trouble,
        }
    }

    /// Why CUDA calls are not traced; `None` when they are.
    pub(super) fn without_tracing(&self) -> Option<&str> {
        self.trouble("tracing")
    }

    fn trouble(&self, name: &str) -> Option<&str> {
        match self.find(name) {
            Some(it) if it.state == "active" => None,
            Some(it) => Some(&it.message),
            None => Some("the agent does not say"),
        }
    }

    fn find(&self, name: &str) -> Option<&Part> {
        self.parts.iter().find(|it| it.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::Parts;

    fn check(state: &str, message: &str, expected: Option<&str>) {
        let text = format!(
            r#"{{"parts":[{{"name":"nvml","state":"{state}","message":"{message}"}}],"libraries":[]}}"#
        );
        assert_eq!(Parts::read(&text).unwrap().without_gpus(), expected);
    }

    #[test]
    fn real_gpus_are_used_where_there_are_some() {
        check("active", "8 devices", None);
        check("active", "0 devices", Some("the driver lists no device"));
        check("failed", "no NVIDIA driver", Some("no NVIDIA driver"));
    }

    #[test]
    fn a_part_that_is_not_named_is_not_taken_for_good() {
        let parts = Parts::read(r#"{"parts":[]}"#).unwrap();
        assert_eq!(parts.without_tracing(), Some("the agent does not say"));
        assert!(Parts::read("{}").is_err());
    }
}
