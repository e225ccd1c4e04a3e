//! The real collector, with its ledger in a folder of its own.

use std::future::Future;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use proto::capacity::v1::capacity_client::CapacityClient;
use proto::capacity::v1::{Fleet, GetFleetRequest, InstanceState};
use proto::telemetry::v1::{Class, Device, Instance};
use proto::usage::v1::usage_client::UsageClient;
use proto::usage::v1::{GetUsageRequest, GetUsageResponse};
use tempfile::TempDir;
use toml::{Table, Value};
use tonic::transport::Channel;

use crate::artefacts::artefact;
use crate::daemon::Daemon;
use crate::ports;
use crate::scheduler::Scheduler;
use crate::scrape::{Scrape, get};
use crate::wait::{check, eventually};

const READY: Duration = Duration::from_secs(20);

/// A collector on ports that it keeps over restarts.
#[derive(Debug)]
pub struct Collector {
    /// The file, table by table.
    pub config: Table,
    /// Before the folder: the collector writes there.
    daemon: Option<Daemon>,
    http: u16,
    grpc: u16,
    folder: TempDir,
}

impl Collector {
    /// Quick to notice silence, with the shortest dwell that there is.
    pub fn start() -> Self {
        let mut collector = Self::make();
        collector.start_again();
        collector
    }

    /// As `start`, before it runs.
    pub fn make() -> Self {
        let folder = tempfile::tempdir().expect("the temporary folder is writable");
        let (http, grpc) = (ports::free(), ports::free());
        let ledger = folder.path().join("ledger");
        let mut collector = Self { config: Table::new(), daemon: None, http, grpc, folder };
        collector.set("http", "listen", format!("127.0.0.1:{http}"));
        collector.set("grpc", "listen", format!("127.0.0.1:{grpc}"));
        collector.set("ledger", "path", ledger.to_string_lossy().into_owned());
        collector.set("ledger", "min_free_bytes", 1 << 20);
        collector.set("idle", "profile", "blink");
        collector.set("idle", "stale_after_ms", 2_000);
        collector.set("idle", "heartbeat_ms", 1_000);
        collector.set("idle", "valid_for_ms", 5_000);
        collector
    }

    /// Sets `[table] key`.
    pub fn set(&mut self, table: &str, key: &str, value: impl Into<Value>) {
        let table = self.config.entry(table).or_insert_with(|| Value::Table(Table::new()));
        let table = table.as_table_mut().expect("only tables are at the top");
        table.insert(key.to_owned(), value.into());
    }

    /// Starts it, on its ports and its ledger, and waits until it is ready.
    #[track_caller]
    pub fn start_again(&mut self) {
        self.start_unready();
        let url = self.url("/healthz");
        let daemon = self.daemon.as_mut().expect("it was started");
        eventually(READY, "the collector is ready", || {
            if let Some(status) = daemon.ended() {
                panic!("the collector ended ({status}) before it was ready");
            }
            get(&url).map(drop)
        });
    }

    pub fn start_unready(&mut self) {
        assert!(self.daemon.is_none(), "it runs already");
        let log = self.folder.path().join("collector.log");
        self.daemon = Some(Daemon::start(&self.command(&[]), &log));
    }

    /// Its command line with its configuration and further arguments.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let file = self.folder.path().join("collector.toml");
        std::fs::write(&file, self.config.to_string()).expect("the folder is writable");
        let mut command = Command::new(artefact("gleaner-collector"));
        command.arg("--config").arg(file).args(arguments);
        command
    }

    /// SIGKILL.
    #[track_caller]
    pub fn kill(&mut self) {
        self.daemon.take().expect("it runs").kill();
    }

    /// SIGTERM, and how it ended.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.daemon.take().expect("it runs").stop()
    }

    #[track_caller]
    pub fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().expect("it runs")
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Everything that it has said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("collector.log")).unwrap_or_default()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.http)
    }

    pub fn grpc_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.grpc)
    }

    pub fn grpc_port(&self) -> u16 {
        self.grpc
    }

    pub fn http_port(&self) -> u16 {
        self.http
    }

    // === what it says ===

    #[track_caller]
    pub fn metrics(&self) -> Scrape {
        Scrape::of(&self.url("/metrics")).expect("a running collector serves its metrics")
    }

    /// A subscriber to its idle stream.
    pub fn scheduler(&self) -> Scheduler {
        Scheduler::subscribe(self.grpc_url())
    }

    pub fn fleet(&self) -> Result<Fleet, String> {
        self.ask(|channel| async move {
            CapacityClient::new(channel).get_fleet(GetFleetRequest {}).await
        })
    }

    /// Of all time and every tenant.
    pub fn usage(&self) -> Result<GetUsageResponse, String> {
        self.ask(|channel| async move {
            UsageClient::new(channel).get_usage(GetUsageRequest::default()).await
        })
    }

    /// The client, talking to this collector.
    pub fn client(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(artefact("gleaner"));
        command.arg("--collector").arg(self.grpc_url()).args(arguments);
        command
    }

    /// Waits until its metrics say it.
    #[track_caller]
    pub fn until<T>(
        &self,
        deadline: Duration,
        what: &str,
        look: impl Fn(&Scrape) -> Result<T, String>,
    ) -> T {
        eventually(deadline, what, || look(&Scrape::of(&self.url("/metrics"))?))
    }

    /// Waits until the fleet view shows a device in this class.
    #[track_caller]
    pub fn until_class(&self, deadline: Duration, gpu_uuid: &str, class: Class) {
        eventually(deadline, &format!("the fleet shows {gpu_uuid} as {class:?}"), || {
            let fleet = self.fleet()?;
            let (_, instance, _) = find(&fleet, gpu_uuid).ok_or("it is not in the fleet")?;
            check(instance.class() == class, || {
                format!("it is {:?}: {}", instance.class(), instance.reason)
            })
        });
    }

    /// One answer of one of its gRPC services.
    pub fn ask<T, F>(&self, call: impl FnOnce(Channel) -> F) -> Result<T, String>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("the kernel offers epoll");
        runtime.block_on(async {
            let endpoint = Channel::from_shared(self.grpc_url()).expect("it is an address");
            let endpoint = endpoint.timeout(Duration::from_secs(5));
            let channel = endpoint.connect().await.map_err(|error| error.to_string())?;
            call(channel).await.map(tonic::Response::into_inner).map_err(|error| error.to_string())
        })
    }
}

/// A device without MIG in the fleet: itself, its only instance, and what the collector adds.
pub fn find<'a>(
    fleet: &'a Fleet,
    gpu_uuid: &str,
) -> Option<(&'a Device, &'a Instance, &'a InstanceState)> {
    fleet.nodes.iter().find_map(|node| {
        let instances = node
            .devices
            .iter()
            .flat_map(|device| device.instances.iter().map(move |instance| (device, instance)));
        let mut both = instances.zip(&node.instances);
        let found = both.find(|((device, _), _)| device.gpu_uuid == gpu_uuid)?;
        let ((device, instance), state) = found;
        Some((device, instance, state))
    })
}
