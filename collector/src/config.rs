//! The collector's configuration: what may be written, and what it means.
//!
//! `RawConfig` is the file, field for field; `Config` is what it means after every check. The limits
//! that an operator may change are here; those that protect the process are constants beside the
//! code that keeps them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The file. Knows nothing about this host.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawConfig {
    /// The cluster of agents that name none.
    pub cluster: String,
    pub grpc: RawGrpc,
    pub http: RawHttp,
    pub ledger: RawLedger,
    pub idle: RawIdle,
    pub limits: RawLimits,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawGrpc {
    /// Of agents, schedulers and the client. Port 0 = any free port.
    pub listen: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawHttp {
    /// Of the page, `/metrics` and `/healthz`. Port 0 = any free port.
    pub listen: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawLedger {
    /// Folder of the ledger database.
    pub path: PathBuf,
    /// With less free space than this on its volume the ledger takes nothing more, and goes on by
    /// itself when there is a tenth more than this again. Agents keep what is not acknowledged.
    pub min_free_bytes: u64,
    /// How long the records themselves are kept. Sums per hour are kept for ever.
    pub keep_records_days: u32,
    /// How long after its end an hour is final, where every node that reported in it has passed it. What
    /// comes later for it is a correction.
    pub final_after_hours: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawIdle {
    /// How long held capacity must be idle before it is offered: `blink` 1 min, `nap` 5 min,
    /// `sleep` 30 min, `abandoned` 2 h.
    pub profile: String,
    /// A node that has been silent for longer has no idle capacity.
    pub stale_after_ms: u64,
    /// How long an offer holds after a subscriber received it.
    pub valid_for_ms: u64,
    /// How often subscribers are told that nothing changed.
    pub heartbeat_ms: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawLimits {
    /// A larger gRPC message is refused.
    pub max_message_bytes: u32,
    /// Nodes that are known; an agent of a further one is refused.
    pub max_nodes: u32,
    /// Connections to the gRPC port; further ones are closed at once.
    pub max_connections: u32,
    /// Sets of tenant labels in `/metrics`; what is posted beyond it counts for the tenant
    /// `__overflow__`. The ledger records it exactly either way.
    pub max_tenants: u32,
}

impl Default for RawConfig {
    fn default() -> Self {
        Self {
            cluster: "default".to_owned(),
            grpc: RawGrpc::default(),
            http: RawHttp::default(),
            ledger: RawLedger::default(),
            idle: RawIdle::default(),
            limits: RawLimits::default(),
        }
    }
}

impl Default for RawGrpc {
    fn default() -> Self {
        Self { listen: "127.0.0.1:9801".to_owned() }
    }
}

impl Default for RawHttp {
    fn default() -> Self {
        Self { listen: "127.0.0.1:9800".to_owned() }
    }
}

impl Default for RawLedger {
    fn default() -> Self {
        Self {
            path: "/var/lib/gleaner/collector".into(),
            min_free_bytes: 1024 * 1024 * 1024,
            keep_records_days: 7,
            final_after_hours: 24,
        }
    }
}

impl Default for RawIdle {
    fn default() -> Self {
        Self {
            profile: "nap".to_owned(),
            stale_after_ms: 15_000,
            valid_for_ms: 30_000,
            heartbeat_ms: 10_000,
        }
    }
}

impl Default for RawLimits {
    fn default() -> Self {
        Self {
            max_message_bytes: 4 * 1024 * 1024,
            max_nodes: 20_000,
            max_connections: 12_000,
            max_tenants: 20_000,
        }
    }
}

/// What the file means. After `parse` nobody checks again.
#[derive(Clone, Debug)]
pub struct Config {
    pub cluster: String,
    pub grpc_listen: SocketAddr,
    pub http_listen: SocketAddr,
    pub ledger: Ledger,
    pub idle: Idle,
    pub limits: Limits,
}

#[derive(Clone, Debug)]
pub struct Ledger {
    pub path: PathBuf,
    pub min_free_bytes: u64,
    pub keep_records: Duration,
    pub final_after: Duration,
    /// Sets of tenant labels in the view.
    pub max_tenants: usize,
    pub max_nodes: usize,
}

#[derive(Clone, Copy, Debug)]
pub struct Idle {
    /// How long held capacity must be idle before it is offered; free capacity has no dwell.
    pub dwell: Duration,
    pub stale_after: Duration,
    /// At most 30 s, and longer than two heartbeats.
    pub valid_for: Duration,
    pub heartbeat: Duration,
}

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub max_message_bytes: usize,
    pub max_nodes: usize,
    pub max_connections: usize,
}

/// Why the collector did not start. No port was bound and nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {source}; nothing was started")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: {source}; nothing was started, correct the file and start again")]
    File { path: PathBuf, source: proto::diagnostics::ConfigFileError },
    #[error("{key} is {got}, expected {expected}; nothing was started")]
    Range { key: &'static str, got: String, expected: &'static str },
}

impl RawConfig {
    /// Reads the file, or the embedded defaults where none is named.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let Some(path) = path else { return Ok(Self::default()) };
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        proto::diagnostics::parse(&text)
            .map_err(|source| ConfigError::File { path: path.to_owned(), source })
    }

    /// What it means; the first value that is out of range is named.
    pub fn parse(self) -> Result<Config, ConfigError> {
        if self.cluster.is_empty() || self.cluster.len() > 128 {
            return Err(range("cluster", &self.cluster, "a name of 1 to 128 bytes"));
        }
        let limits = self.limits.parse()?;
        Ok(Config {
            cluster: self.cluster,
            grpc_listen: address("grpc.listen", &self.grpc.listen)?,
            http_listen: address("http.listen", &self.http.listen)?,
            ledger: self.ledger.parse(&self.limits)?,
            idle: self.idle.parse()?,
            limits,
        })
    }
}

impl RawLedger {
    fn parse(self, limits: &RawLimits) -> Result<Ledger, ConfigError> {
        let days = within(
            "ledger.keep_records_days",
            u64::from(self.keep_records_days),
            (1, 3_650),
            "1 to 3650",
        )?;
        let hours = within(
            "ledger.final_after_hours",
            u64::from(self.final_after_hours),
            (1, days * 24),
            "1 to the hours of ledger.keep_records_days",
        )?;
        Ok(Ledger {
            path: self.path,
            min_free_bytes: self.min_free_bytes,
            keep_records: Duration::from_secs(days * 86_400),
            final_after: Duration::from_secs(hours * 3_600),
            max_tenants: count(limits.max_tenants),
            max_nodes: count(limits.max_nodes),
        })
    }
}

impl RawIdle {
    fn parse(self) -> Result<Idle, ConfigError> {
        let minutes = match self.profile.as_str() {
            "blink" => 1,
            "nap" => 5,
            "sleep" => 30,
            "abandoned" => 120,
            other => {
                let expected = "\"blink\", \"nap\", \"sleep\" or \"abandoned\"";
                return Err(range("idle.profile", other, expected));
            }
        };
        let millis = |key, got, bounds, expected| {
            within(key, got, bounds, expected).map(Duration::from_millis)
        };
        let stale_after =
            millis("idle.stale_after_ms", self.stale_after_ms, (1_000, 600_000), "1000 to 600000")?;
        let valid_for =
            millis("idle.valid_for_ms", self.valid_for_ms, (1_000, 30_000), "1000 to 30000")?;
        let heartbeat =
            millis("idle.heartbeat_ms", self.heartbeat_ms, (100, 15_000), "100 to 15000")?;
        if heartbeat * 2 > valid_for {
            let expected = "at most half of idle.valid_for_ms, so that one may be late";
            return Err(range("idle.heartbeat_ms", self.heartbeat_ms, expected));
        }
        Ok(Idle { dwell: Duration::from_secs(minutes * 60), stale_after, valid_for, heartbeat })
    }
}

impl RawLimits {
    fn parse(&self) -> Result<Limits, ConfigError> {
        let bytes = within(
            "limits.max_message_bytes",
            u64::from(self.max_message_bytes),
            (64 * 1024, 64 * 1024 * 1024),
            "65536 to 67108864",
        )?;
        for (key, got) in [
            ("limits.max_nodes", self.max_nodes),
            ("limits.max_connections", self.max_connections),
            ("limits.max_tenants", self.max_tenants),
        ] {
            within(key, u64::from(got), (1, 1_000_000), "1 to 1000000")?;
        }
        Ok(Limits {
            max_message_bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
            max_nodes: count(self.max_nodes),
            max_connections: count(self.max_connections),
        })
    }
}

fn address(key: &'static str, text: &str) -> Result<SocketAddr, ConfigError> {
    text.parse().map_err(|_unspecific: std::net::AddrParseError| {
        range(key, text, "an address like 127.0.0.1:9800")
    })
}

fn within(
    key: &'static str,
    got: u64,
    (least, most): (u64, u64),
    expected: &'static str,
) -> Result<u64, ConfigError> {
    if (least..=most).contains(&got) { Ok(got) } else { Err(range(key, got, expected)) }
}

fn range(key: &'static str, got: impl ToString, expected: &'static str) -> ConfigError {
    ConfigError::Range { key, got: got.to_string(), expected }
}

fn count(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::RawConfig;

    fn check(change: impl FnOnce(&mut RawConfig), expected: &str) {
        let mut raw = RawConfig::default();
        change(&mut raw);
        let text = raw.parse().expect_err("it is refused").to_string();
        assert_eq!(text, format!("{expected}; nothing was started"));
    }

    #[test]
    fn values_out_of_range_are_named() {
        check(
            |it| it.idle.profile = "doze".to_owned(),
            "idle.profile is doze, expected \"blink\", \"nap\", \"sleep\" or \"abandoned\"",
        );
        check(
            |it| it.idle.valid_for_ms = 60_000,
            "idle.valid_for_ms is 60000, expected 1000 to 30000",
        );
        check(
            |it| it.idle.valid_for_ms = 15_000,
            "idle.heartbeat_ms is 10000, expected at most half of idle.valid_for_ms, so that one may be late",
        );
        check(
            |it| it.grpc.listen = "localhost".to_owned(),
            "grpc.listen is localhost, expected an address like 127.0.0.1:9800",
        );
        check(|it| it.limits.max_nodes = 0, "limits.max_nodes is 0, expected 1 to 1000000");
        check(|it| it.cluster = String::new(), "cluster is , expected a name of 1 to 128 bytes");
    }

    #[test]
    fn the_defaults_are_valid() {
        RawConfig::default().parse().unwrap();
    }

    #[test]
    fn a_misspelt_key_is_named() {
        let error = proto::diagnostics::parse::<RawConfig>("[idle]\nprofil = \"nap\"\n");
        assert_eq!(
            error.expect_err("it is refused").to_string(),
            "unknown key \"idle.profil\" (line 2): did you mean \"idle.profile\"?",
        );
    }
}
