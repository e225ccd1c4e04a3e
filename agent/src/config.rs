//! The agent's configuration: what may be written, and what it means.
//!
//! `RawConfig` is the file, field for field; `Config` is what it means after every check. All limits
//! of the agent are here or in `agent-ebpf/src/maps.rs`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::Uri;
use serde::{Deserialize, Serialize};

/// The file. Knows nothing about this host.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawConfig {
    /// Name of this node; empty = the host name.
    pub node: String,
    pub cluster: String,
    /// How often the sources are read. At most 5 s: a collector calls a node silent after some missed
    /// readings, after 15 s by default.
    pub tick_ms: u64,
    /// How often a tile is closed; a change of holders closes it earlier.
    pub tile_ms: u64,
    /// Where `/proc` of the host is mounted.
    pub proc_root: PathBuf,
    pub nvml: RawNvml,
    pub cuda: RawCuda,
    pub holders: RawHolders,
    pub spool: RawSpool,
    pub collector: RawCollector,
    pub http: RawHttp,
    pub admin: RawAdmin,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawNvml {
    /// A file name is searched for as the dynamic linker does; a path is taken as it is.
    pub library: PathBuf,
    /// A device that has not answered within this time is `hung`; the others go on.
    pub deadline_ms: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawCuda {
    /// Trace the CUDA driver and process life with eBPF.
    pub enabled: bool,
    /// libcuda files to hook; those that do not exist are skipped.
    pub libraries: Vec<PathBuf>,
    /// Processes that can be counted apart at one time. Beyond it calls count in an overflow row:
    /// totals stay exact, their attribution is lost and `dropped` says how often.
    pub max_processes: u32,
    /// Library files that are hooked at one time: those of `libraries`, replaced ones that processes
    /// still map, and copies that processes map.
    pub max_libraries: u32,
    /// Of these, copies that the processes of one tenant map; 0 = copies are not looked for.
    pub max_libraries_per_tenant: u32,
    /// Hook the functions that allocate and free memory.
    pub memory_hooks: bool,
    /// Allocations that can be remembered at one time, of all processes. Beyond it live memory is
    /// marked as a lower bound.
    pub max_allocations: u32,
    /// Functions that are hooked only on demand, by the names of [`ExtraHooks`].
    pub extra_hooks: Vec<String>,
    /// `cheapest`: hooks go to the first instruction of a function that the kernel need not
    /// single-step. `entry`: to the first instruction, whatever it costs.
    pub attach_at: String,
    /// Folder in a bpf file system where hooks and counts outlive the agent; empty = they end with
    /// it.
    pub pin_root: PathBuf,
    /// How much of its time tracing may cost a process, and all of them together of each CPU. Where
    /// counting every call would cost more, calls are counted in windows and scaled. 100 = every
    /// call is counted, whatever it costs.
    pub budget_percent: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawHolders {
    /// `unknown`: nothing tells this agent what is allocated, so a device without a process is
    /// `unknown` and never offered. `none`: this node has no allocator, so such a device is free.
    pub allocations: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawSpool {
    /// Folder of the spool database.
    pub path: PathBuf,
    /// The database never grows beyond this. Tiles that were not sent yet are merged before that.
    pub max_bytes: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawCollector {
    /// `http://host:port` of the collector's gRPC port; empty = none, `/metrics` works alone.
    pub address: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawHttp {
    /// Of `/metrics`, `/status`, `/healthz` and `/readyz`.
    pub listen: String,
    /// `/metrics` has the readings of devices under the names, units and labels of dcgm-exporter too.
    pub dcgm_compat: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawAdmin {
    /// Unix socket for `gleaner-agent trace` and for a successor; empty = `admin.sock` in the
    /// spool's folder, where a successor looks for it.
    pub socket: PathBuf,
}

impl Default for RawConfig {
    fn default() -> Self {
        Self {
            node: String::new(),
            cluster: "default".to_owned(),
            tick_ms: 1_000,
            tile_ms: 10_000,
            proc_root: "/proc".into(),
            nvml: RawNvml::default(),
            cuda: RawCuda::default(),
            holders: RawHolders::default(),
            spool: RawSpool::default(),
            collector: RawCollector::default(),
            http: RawHttp::default(),
            admin: RawAdmin::default(),
        }
    }
}

impl Default for RawNvml {
    fn default() -> Self {
        Self { library: "libnvidia-ml.so.1".into(), deadline_ms: 2_000 }
    }
}

impl Default for RawCuda {
    fn default() -> Self {
        let libraries = [
            "/usr/lib/x86_64-linux-gnu/libcuda.so.1",
            "/usr/lib/aarch64-linux-gnu/libcuda.so.1",
            "/usr/lib64/libcuda.so.1",
            "/usr/lib/libcuda.so.1",
            "/usr/lib/wsl/lib/libcuda.so.1",
            // NixOS, Container-Optimized OS, the driver container, Tegra.
            "/run/opengl-driver/lib/libcuda.so.1",
            "/home/kubernetes/bin/nvidia/lib64/libcuda.so.1",
            "/var/lib/nvidia/lib64/libcuda.so.1",
            "/run/nvidia/driver/usr/lib/x86_64-linux-gnu/libcuda.so.1",
            "/run/nvidia/driver/usr/lib/aarch64-linux-gnu/libcuda.so.1",
            "/run/nvidia/driver/usr/lib64/libcuda.so.1",
            "/usr/lib/aarch64-linux-gnu/tegra/libcuda.so.1",
            "/usr/lib/aarch64-linux-gnu/nvidia/libcuda.so.1",
        ];
        Self {
            enabled: true,
            libraries: libraries.map(PathBuf::from).to_vec(),
            max_processes: 4_096,
            max_libraries: 64,
            max_libraries_per_tenant: 8,
            memory_hooks: true,
            max_allocations: 65_536,
            extra_hooks: Vec::new(),
            attach_at: "cheapest".to_owned(),
            pin_root: "/sys/fs/bpf/gleaner".into(),
            budget_percent: 1.0,
        }
    }
}

impl Default for RawHolders {
    fn default() -> Self {
        Self { allocations: "unknown".to_owned() }
    }
}

impl Default for RawSpool {
    fn default() -> Self {
        Self { path: "/var/lib/gleaner/agent".into(), max_bytes: 256 * 1024 * 1024 }
    }
}

impl Default for RawCollector {
    fn default() -> Self {
        Self { address: "http://127.0.0.1:9801".to_owned() }
    }
}

impl Default for RawHttp {
    fn default() -> Self {
        Self { listen: "127.0.0.1:9810".to_owned(), dcgm_compat: false }
    }
}

/// What the file means. After `parse` nobody checks again.
#[derive(Clone, Debug)]
pub struct Config {
    pub node: String,
    pub cluster: String,
    pub tick: Duration,
    pub tile: Duration,
    pub proc_root: PathBuf,
    pub nvml: Nvml,
    pub cuda: Cuda,
    pub allocations: Allocations,
    pub spool: Spool,
    /// `None` = work alone.
    pub collector: Option<String>,
    pub http_listen: SocketAddr,
    pub dcgm_compat: bool,
    pub admin_socket: PathBuf,
}

#[derive(Clone, Debug)]
pub struct Nvml {
    pub library: PathBuf,
    pub deadline: Duration,
}

#[derive(Clone, Debug)]
pub struct Cuda {
    pub enabled: bool,
    pub libraries: Vec<PathBuf>,
    pub max_processes: u32,
    pub max_libraries: usize,
    /// 0 = copies are not looked for.
    pub max_libraries_per_tenant: usize,
    pub memory_hooks: bool,
    pub max_allocations: u32,
    pub extra_hooks: Vec<ExtraHooks>,
    pub attach_at: AttachAt,
    /// `None` = nothing outlives the agent.
    pub pin_root: Option<PathBuf>,
    /// Of each second; `None` = no bound.
    pub budget: Option<Duration>,
}

/// Which functions are hooked, and where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HookChoice {
    pub attach_at: AttachAt,
    /// A bit for each of [`ExtraHooks`].
    extras: u8,
}

impl HookChoice {
    #[must_use]
    pub fn new(attach_at: AttachAt, extras: &[ExtraHooks]) -> Self {
        Self { attach_at, extras: extras.iter().fold(0, |bits, it| bits | 1 << *it as u8) }
    }

    #[must_use]
    pub fn has(self, extra: ExtraHooks) -> bool {
        self.extras & 1 << extra as u8 != 0
    }
}

impl Cuda {
    #[must_use]
    pub fn hook_choice(&self) -> HookChoice {
        HookChoice::new(self.attach_at, &self.extra_hooks)
    }
}

/// Functions that are hooked only on demand: calls that are frequent, or that few people ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum ExtraHooks {
    Memset,
    /// Copies of two and three dimensions.
    StridedCopies,
    BatchCopies,
    /// Recording and asking for events, asking for streams.
    Events,
    HostFunctions,
    ModuleLoads,
}

impl ExtraHooks {
    pub const ALL: [Self; 6] = [
        Self::Memset,
        Self::StridedCopies,
        Self::BatchCopies,
        Self::Events,
        Self::HostFunctions,
        Self::ModuleLoads,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Memset => "memset",
            Self::StridedCopies => "strided_copies",
            Self::BatchCopies => "batch_copies",
            Self::Events => "events",
            Self::HostFunctions => "host_functions",
            Self::ModuleLoads => "module_loads",
        }
    }
}

/// Where in a driver function its hook goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachAt {
    /// At the first instruction that the kernel need not single-step, where one may be used.
    #[default]
    Cheapest,
    Entry,
}

#[derive(Clone, Debug)]
pub struct Spool {
    pub path: PathBuf,
    pub max_bytes: u64,
}

/// What tells the agent which devices are allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocations {
    /// Nothing: a device without a process is `unknown`.
    Unknown,
    /// There is no allocator: a device without a process is free.
    None,
}

/// Why the agent did not start. Nothing was attached, opened or sent.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {source}; nothing was started")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: {source}; nothing was started, correct the file and start again")]
    File { path: PathBuf, source: proto::diagnostics::ConfigFileError },
    #[error("{key} is {got}, expected {expected}; nothing was started")]
    Range { key: &'static str, got: String, expected: &'static str },
    #[error("the host has no usable name ({0}); set `node` in the configuration")]
    HostName(nix::Error),
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
        let tick = millis("tick_ms", self.tick_ms, 100, 5_000, "100 to 5000")?;
        let tile = millis("tile_ms", self.tile_ms, 1_000, 3_600_000, "1000 to 3600000")?;
        let deadline =
            millis("nvml.deadline_ms", self.nvml.deadline_ms, 50, 60_000, "50 to 60000")?;
        let allocations = match self.holders.allocations.as_str() {
            "unknown" => Allocations::Unknown,
            "none" => Allocations::None,
            other => {
                return Err(range("holders.allocations", other, "\"unknown\" or \"none\""));
            }
        };
        if self.spool.max_bytes < 1024 * 1024 {
            return Err(range("spool.max_bytes", self.spool.max_bytes, "at least 1048576"));
        }
        let http_listen =
            self.http.listen.parse().map_err(|_error: std::net::AddrParseError| {
                range("http.listen", &self.http.listen, "an address like 127.0.0.1:9810")
            })?;
        let collector = Some(self.collector.address).filter(|it| !it.is_empty());
        if let Some(address) = collector.as_deref().filter(|it| !is_http_address(it)) {
            return Err(range("collector.address", address, "http://HOST:PORT"));
        }
        let admin_socket = if self.admin.socket.as_os_str().is_empty() {
            self.spool.path.join("admin.sock")
        } else {
            self.admin.socket
        };
        Ok(Config {
            node: if self.node.is_empty() { host_name()? } else { self.node },
            cluster: self.cluster,
            tick,
            tile,
            proc_root: self.proc_root,
            nvml: Nvml { library: self.nvml.library, deadline },
            cuda: self.cuda.parse()?,
            allocations,
            spool: Spool { path: self.spool.path, max_bytes: self.spool.max_bytes },
            collector,
            http_listen,
            dcgm_compat: self.http.dcgm_compat,
            admin_socket,
        })
    }
}

impl RawCuda {
    fn parse(self) -> Result<Cuda, ConfigError> {
        let attach_at = match self.attach_at.as_str() {
            "cheapest" => AttachAt::Cheapest,
            "entry" => AttachAt::Entry,
            other => return Err(range("cuda.attach_at", other, "\"cheapest\" or \"entry\"")),
        };
        if !(64..=1_000_000).contains(&self.max_processes) {
            return Err(range("cuda.max_processes", self.max_processes, "64 to 1000000"));
        }
        if !(1..=128).contains(&self.max_libraries) {
            return Err(range("cuda.max_libraries", self.max_libraries, "1 to 128"));
        }
        if self.max_libraries_per_tenant > self.max_libraries {
            let key = "cuda.max_libraries_per_tenant";
            return Err(range(key, self.max_libraries_per_tenant, "at most cuda.max_libraries"));
        }
        if !(1_024..=4_194_304).contains(&self.max_allocations) {
            return Err(range("cuda.max_allocations", self.max_allocations, "1024 to 4194304"));
        }
        let extra_hooks =
            self.extra_hooks.iter().map(|it| extra_hooks(it)).collect::<Result<_, _>>()?;
        let pin_root = Some(self.pin_root).filter(|it| !it.as_os_str().is_empty());
        if let Some(path) = pin_root.as_deref().filter(|it| !it.is_absolute()) {
            return Err(range("cuda.pin_root", path.display(), "an absolute path, or empty"));
        }
        Ok(Cuda {
            enabled: self.enabled,
            libraries: self.libraries,
            max_processes: self.max_processes,
            max_libraries: usize::try_from(self.max_libraries).unwrap_or(usize::MAX),
            max_libraries_per_tenant: usize::try_from(self.max_libraries_per_tenant)
                .unwrap_or(usize::MAX),
            memory_hooks: self.memory_hooks,
            max_allocations: self.max_allocations,
            extra_hooks,
            attach_at,
            pin_root,
            budget: budget(self.budget_percent)?,
        })
    }
}

/// Of each second. 0 is refused: it would mean that nothing is traced, which `cuda.enabled` says.
fn budget(percent: f64) -> Result<Option<Duration>, ConfigError> {
    if !(0.1..=100.0).contains(&percent) {
        return Err(range(
            "cuda.budget_percent",
            percent,
            "0.1 to 100 (100 = no bound; to trace nothing, set cuda.enabled = false)",
        ));
    }
    Ok((percent < 100.0).then(|| Duration::from_secs_f64(percent / 100.0)))
}

impl Default for Cuda {
    fn default() -> Self {
        RawCuda::default().parse().expect("a test parses the defaults")
    }
}

fn extra_hooks(name: &str) -> Result<ExtraHooks, ConfigError> {
    let known = ExtraHooks::ALL.into_iter().find(|it| it.as_str() == name);
    let expected = "a list of \"memset\", \"strided_copies\", \"batch_copies\", \"events\", \
                    \"host_functions\", \"module_loads\"";
    known.ok_or_else(|| range("cuda.extra_hooks", name, expected))
}

fn is_http_address(text: &str) -> bool {
    text.parse::<Uri>().is_ok_and(|it| {
        it.scheme_str() == Some("http") && it.host().is_some_and(|host| !host.is_empty())
    })
}

fn host_name() -> Result<String, ConfigError> {
    let name = nix::unistd::gethostname().map_err(ConfigError::HostName)?;
    Ok(name.to_string_lossy().into_owned())
}

fn millis(
    key: &'static str,
    got: u64,
    least: u64,
    most: u64,
    expected: &'static str,
) -> Result<Duration, ConfigError> {
    if (least..=most).contains(&got) {
        Ok(Duration::from_millis(got))
    } else {
        Err(range(key, got, expected))
    }
}

fn range(key: &'static str, got: impl ToString, expected: &'static str) -> ConfigError {
    ConfigError::Range { key, got: got.to_string(), expected }
}

#[cfg(test)]
mod tests {
    use super::RawConfig;

    fn check(change: impl FnOnce(&mut RawConfig), expected: &str) {
        let mut raw = RawConfig::default();
        change(&mut raw);
        assert_eq!(raw.parse().expect_err("it is refused").to_string(), expected);
    }

    #[test]
    fn values_out_of_range_are_named() {
        check(|it| it.tick_ms = 5, "tick_ms is 5, expected 100 to 5000; nothing was started");
        check(
            |it| it.cuda.pin_root = "bpf".into(),
            "cuda.pin_root is bpf, expected an absolute path, or empty; nothing was started",
        );
        check(
            |it| it.cuda.max_libraries_per_tenant = 65,
            "cuda.max_libraries_per_tenant is 65, expected at most cuda.max_libraries; nothing was \
             started",
        );
        check(
            |it| it.holders.allocations = "some".to_owned(),
            "holders.allocations is some, expected \"unknown\" or \"none\"; nothing was started",
        );
        check(
            |it| it.cuda.attach_at = "middle".to_owned(),
            "cuda.attach_at is middle, expected \"cheapest\" or \"entry\"; nothing was started",
        );
        check(
            |it| it.cuda.budget_percent = 0.0,
            "cuda.budget_percent is 0, expected 0.1 to 100 (100 = no bound; to trace nothing, set \
             cuda.enabled = false); nothing was started",
        );
        check(
            |it| it.collector.address = "http://ho st:1".to_owned(),
            "collector.address is http://ho st:1, expected http://HOST:PORT; nothing was started",
        );
        check(
            |it| it.collector.address = "localhost".to_owned(),
            "collector.address is localhost, expected http://HOST:PORT; nothing was started",
        );
    }

    #[test]
    fn the_defaults_are_valid() {
        RawConfig::default().parse().unwrap();
    }
}
