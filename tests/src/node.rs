//! A simulated node with the real agent on it.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use agent::config::RawConfig;
use gpu_state::scenario::Scenario;
use tempfile::TempDir;

use crate::artefacts::{Build, artefact};
use crate::cgroups::Slice;
use crate::collector::Collector;
use crate::daemon::{Daemon, wrapped};
use crate::ports;
use crate::scrape::{Scrape, get};
use crate::tenant::Tenant;
use crate::wait::{check, eventually};

/// What an agent may take to be ready, with all hooks attached.
const READY: Duration = Duration::from_secs(30);

/// What a successor logs when the agent before it has given up everything.
const TOOK_OVER: &str = "took over from a running agent";

/// What a node shall be, before it is.
#[derive(Clone, Debug)]
pub struct Setup {
    pub scenario: Scenario,
    pub config: RawConfig,
    /// `None` = the node has no stand-ins: its agent and workloads use the driver of this machine.
    pub build: Option<Build>,
}

/// A folder with the stand-in libraries, and an agent that knows no others.
#[derive(Debug)]
pub struct Node {
    /// As the product names it.
    pub name: String,
    pub config: RawConfig,
    /// Before the folder: the agent writes there.
    agent: Option<Daemon>,
    slice: Slice,
    scenario: Scenario,
    folder: TempDir,
}

impl Setup {
    /// Healthy devices, nobody who allocates them, quick ticks and tiles, a port of its own.
    pub fn gpus(count: u32) -> Self {
        let mut config = RawConfig { tick_ms: 200, tile_ms: 1_000, ..RawConfig::default() };
        config.holders.allocations = "none".to_owned();
        config.collector.address = String::new();
        // Nodes of other tests run beside this one.
        config.cuda.pin_root = PathBuf::new();
        // So are their drivers.
        config.cuda.max_libraries_per_tenant = 0;
        // Counts are compared to the last call: none is estimated.
        config.cuda.budget_percent = 100.0;
        config.http.listen = format!("127.0.0.1:{}", ports::free());
        Self { scenario: Scenario::with_gpus(count), config, build: Some(Build::Cmp) }
    }

    /// This machine, with its own GPUs and driver.
    pub fn real() -> Self {
        Self { build: None, ..Self::gpus(0) }
    }

    /// A node as a file in `tests/scenarios` describes it.
    pub fn scenario(file: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios").join(file);
        let text = std::fs::read_to_string(&path);
        let text = text.unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
        let scenario = toml::from_str(&text);
        let scenario = scenario.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { scenario, ..Self::gpus(0) }
    }

    #[must_use]
    pub fn named(mut self, node: &str) -> Self {
        node.clone_into(&mut self.config.node);
        self
    }

    #[must_use]
    pub fn reporting_to(mut self, collector: &Collector) -> Self {
        self.config.collector.address = collector.grpc_url();
        self
    }

    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// Makes the node; its agent does not run yet.
    pub fn make(self) -> Node {
        let folder = tempfile::tempdir().expect("the temporary folder is writable");
        open_to_all(folder.path());
        let mut config = self.config;
        if let Some(build) = self.build {
            stand_in(build, folder.path());
            self.scenario.write(folder.path()).expect("the folder is writable");
            config.nvml.library = folder.path().join("libnvidia-ml.so.1");
            config.cuda.libraries = vec![folder.path().join("libcuda.so.1")];
        }
        if config.node.is_empty() {
            "node-a".clone_into(&mut config.node);
        }
        config.spool.path = folder.path().join("spool");
        Node {
            name: config.node.clone(),
            config,
            agent: None,
            slice: Slice::new(),
            scenario: self.scenario,
            folder,
        }
    }

    /// Makes the node and starts its agent.
    pub fn start(self) -> Node {
        let mut node = self.make();
        node.start_agent();
        node
    }
}

impl Node {
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What the workloads open: the stand-in, or the driver where the linker finds it.
    pub fn cuda_library(&self) -> PathBuf {
        let stand_in = self.folder.path().join("libcuda.so.1");
        if stand_in.exists() { stand_in } else { "libcuda.so.1".into() }
    }

    pub fn gpu_uuid(&self, index: usize) -> &str {
        &self.scenario.gpus[index].uuid
    }

    // === the agent ===

    /// Starts the agent and waits until it has read everything once.
    #[track_caller]
    pub fn start_agent(&mut self) {
        self.start_agent_unready();
        let url = self.url("/readyz");
        let agent = self.agent.as_mut().expect("it was started");
        eventually(READY, "the agent is ready", || {
            if let Some(status) = agent.ended() {
                panic!("the agent ended ({status}) before it was ready");
            }
            get(&url).map(drop)
        });
    }

    /// Starts the agent and does not wait.
    pub fn start_agent_unready(&mut self) {
        let command = self.agent_command(&[]);
        self.run_agent(&command);
    }

    /// Agents beside the one that this node knows of, with the same configuration.
    pub fn other_agents<const COUNT: usize>(&self) -> [Daemon; COUNT] {
        let command = self.agent_command(&[]);
        std::array::from_fn(|it| {
            Daemon::start(&command, &self.folder.path().join(format!("other-{it}.log")))
        })
    }

    /// Starts the agent under another program that takes it as its last arguments: `setpriv …`.
    pub fn start_agent_under(&mut self, outer: Command) {
        let command = wrapped(outer, &[], &self.agent_command(&[]));
        self.run_agent(&command);
    }

    /// Starts the agent as a user without a name, with these capabilities and no others.
    pub fn start_agent_as(&mut self, user: u32, capabilities: &str) {
        let spool = &self.config.spool.path;
        std::fs::create_dir(spool).expect("the folder is writable");
        std::os::unix::fs::chown(spool, Some(user), Some(user)).expect("root may give it away");
        let mut setpriv = Command::new("setpriv");
        setpriv.arg(format!("--reuid={user}")).arg(format!("--regid={user}"));
        setpriv.arg("--clear-groups");
        for set in ["inh-caps", "ambient-caps", "bounding-set"] {
            setpriv.arg(format!("--{set}=-all,{capabilities}"));
        }
        self.start_agent_under(setpriv);
    }

    /// The agent's command line with this node's configuration and further arguments.
    pub fn agent_command(&self, arguments: &[&str]) -> Command {
        let file = self.folder.path().join("agent.toml");
        let text = toml::to_string(&self.config).expect("a configuration is a table");
        std::fs::write(&file, text).expect("the folder is writable");
        let mut command = Command::new(artefact("gleaner-agent"));
        command.arg("--config").arg(file).args(arguments);
        command
    }

    /// Starts a second agent, which takes over from the first, and waits until it has read everything
    /// once. Gives the first one, which waits for its end.
    #[track_caller]
    pub fn hand_over(&mut self) -> Daemon {
        let old = self.take_agent();
        let before = self.agent_log().matches(TOOK_OVER).count();
        self.start_agent_unready();
        let agent = self.agent.as_mut().expect("it was started");
        let log = self.folder.path().join("agent.log");
        let times =
            |what: &str| std::fs::read_to_string(&log).unwrap_or_default().matches(what).count();
        eventually(READY, "the successor is ready", || {
            if let Some(status) = agent.ended() {
                panic!("the successor ended ({status}) before it was ready");
            }
            check(times(TOOK_OVER) > before, || "it waits".to_owned())?;
            get(&format!("http://{}/readyz", self.config.http.listen)).map(drop)
        });
        old
    }

    /// SIGTERM, and how it ended.
    #[track_caller]
    pub fn stop_agent(&mut self) -> ExitStatus {
        self.take_agent().stop()
    }

    /// SIGKILL.
    #[track_caller]
    pub fn kill_agent(&mut self) {
        self.take_agent().kill();
    }

    #[track_caller]
    pub fn agent(&mut self) -> &mut Daemon {
        self.agent.as_mut().expect("the agent was started")
    }

    /// Everything that the agents of this node have said.
    pub fn agent_log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("agent.log")).unwrap_or_default()
    }

    #[track_caller]
    pub fn metrics(&self) -> Scrape {
        Scrape::of(&self.url("/metrics")).expect("a running agent serves its metrics")
    }

    /// `/status`.
    #[track_caller]
    pub fn status(&self) -> serde_json::Value {
        self.ask_status().expect("a running agent serves its status")
    }

    /// Waits until one part in `/status` (`nvml`, `tracing`, `spool`, `collector`) has this state, and
    /// gives its message.
    #[track_caller]
    pub fn until_part(&self, deadline: Duration, name: &str, state: &str) -> String {
        eventually(deadline, &format!("{name} is {state}"), || {
            let status = self.ask_status()?;
            let (found, message) = part_of(&status, name);
            check(found == state, || format!("it is {found}: {message}")).map(|()| message)
        })
    }

    fn ask_status(&self) -> Result<serde_json::Value, String> {
        serde_json::from_str(&get(&self.url("/status"))?).map_err(|error| error.to_string())
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.config.http.listen)
    }

    // === what happens on the node ===

    /// Changes what the devices are, under everything that runs.
    pub fn change(&mut self, change: impl FnOnce(&mut Scenario)) {
        change(&mut self.scenario);
        self.scenario.write(self.folder.path()).expect("the folder is writable");
    }

    /// A workload in the cgroup `NAME.service`, ready.
    pub fn tenant(&self, name: &str, arguments: &[&str]) -> Tenant {
        Tenant::start(name, &self.workload(arguments), Some(self.slice.group(name)))
    }

    /// A workload in the cgroup of the test, as this user; ready.
    pub fn tenant_of_user(&self, uid: u32, arguments: &[&str]) -> Tenant {
        let mut user = Command::new("setpriv");
        user.args([
            format!("--reuid={uid}"),
            format!("--regid={uid}"),
            "--clear-groups".to_owned(),
        ]);
        Tenant::start(&uid.to_string(), &wrapped(user, &[], &self.workload(arguments)), None)
    }

    /// The workload's command line with this node's libcuda.
    pub fn workload(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(artefact("workload"));
        command.arg("--library").arg(self.cuda_library()).args(arguments);
        command
    }

    /// Waits until the agent's metrics say it.
    #[track_caller]
    pub fn until<T>(
        &self,
        deadline: Duration,
        what: &str,
        look: impl Fn(&Scrape) -> Result<T, String>,
    ) -> T {
        eventually(deadline, what, || look(&Scrape::of(&self.url("/metrics"))?))
    }

    /// Waits until the agent gives a device this class.
    #[track_caller]
    pub fn until_class(&self, deadline: Duration, gpu: usize, class: &str) {
        let uuid = self.gpu_uuid(gpu);
        self.until(deadline, &format!("{uuid} is {class}"), |scrape| {
            let found = scrape.label("gleaner_gpu_class", &[("gpu_uuid", uuid)], "class");
            check(found.as_deref() == Some(class), || format!("it is {found:?}"))
        });
    }

    fn run_agent(&mut self, command: &Command) {
        assert!(self.agent.is_none(), "one agent at a time");
        self.agent = Some(Daemon::start(command, &self.folder.path().join("agent.log")));
    }

    /// The agent, for whoever ends it otherwise.
    #[track_caller]
    pub fn take_agent(&mut self) -> Daemon {
        self.agent.take().expect("the agent was started")
    }
}

#[track_caller]
fn part_of(status: &serde_json::Value, name: &str) -> (String, String) {
    let parts = status["parts"].as_array().expect("the status has parts");
    let part = parts.iter().find(|it| it["name"] == name);
    let part = part.unwrap_or_else(|| panic!("the status has no part {name}: {status}"));
    let text = |key: &str| part[key].as_str().unwrap_or_default().to_owned();
    (text("state"), text("message"))
}

/// Tenants of other users load the libraries and map the state.
fn open_to_all(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(folder, mode).expect("the folder is ours");
}

fn stand_in(build: Build, folder: &Path) {
    copy("libnvml_stub.so", &folder.join("libnvidia-ml.so.1"));
    copy(build.file(), &folder.join("libcuda.so.1"));
}

fn copy(artefact_name: &str, to: &Path) {
    let from = artefact(artefact_name);
    std::fs::copy(&from, to)
        .unwrap_or_else(|error| panic!("cannot copy {}: {error}", from.display()));
}
