//! The agent's one loop: read, think, hand on. Owns every task and the order of the shutdown.
//!
//! A tick reads every source; a process event (an exit, a new CUDA process, a first launch after a
//! silence) reads them at once, so that a class change does not wait for the tick.

mod commands;
mod succession;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proto::telemetry::v1::{LiveUpdate, NodeIdentity};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{info, warn};

use crate::admin::{self, Published};
use crate::classify::Policy;
use crate::clock;
use crate::config::Config;
use crate::control::server::Asked;
use crate::health;
use crate::metrics::{Snapshot, own::Own};
use crate::model::usage::Record;
use crate::pacing::Pacing;
use crate::pipeline::Pipeline;
use crate::samplers::process::driver::boot_id;
use crate::samplers::sources::Sources;
use crate::spool::{Spool, SpoolError, SpoolStatus};
use crate::status::{self, Status};
use crate::uplink::link::LinkState;
use crate::uplink::{self, UplinkConfig, UplinkError};
use succession::Successor;

/// How long the last records may take to reach the collector when the agent stops. What does not
/// make it stays in the spool.
const FLUSH: Duration = Duration::from_millis(1_200);

/// How long the sources may take for their last reading.
const LAST_READING: Duration = Duration::from_millis(500);

/// How long the disk may take for the last commit.
const CLOSE: Duration = Duration::from_secs(2);

/// Why the agent stopped.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(
        "cannot listen on {address} (http.listen): {source}; nothing was attached or sent. \
         Another agent may be running: stop it, or set http.listen to a free port"
    )]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error(
        "an agent runs here and does not hand over: {0}; nothing was attached or sent. Stop that \
         agent, or give this one another spool.path and http.listen"
    )]
    Predecessor(String),
    #[error("{0}")]
    Spool(#[from] SpoolError),
    #[error("{0}; nothing was attached or sent")]
    Uplink(#[from] UplinkError),
    #[error(
        "cannot read the kernel's boot id: {0}; nothing was attached or sent. Set proc_root to where the host's /proc is mounted"
    )]
    BootId(std::io::Error),
    #[error("cannot wait for signals: {0}; nothing was attached or sent")]
    Signal(std::io::Error),
}

/// Runs until SIGINT or SIGTERM. An agent that runs on the same spool hands over first; after it has
/// handed over to a successor, this one waits for the signal and does nothing.
pub async fn run(config: Config) -> Result<(), RunError> {
    let mut signals = Signals::listen().map_err(RunError::Signal)?;
    succession::succeed(&config).await?;
    let listener = TcpListener::bind(config.http_listen)
        .await
        .map_err(|source| RunError::Listen { address: config.http_listen, source })?;
    let mut agent = Agent::start(config)?;
    agent.serve(listener);
    match agent.watch(&mut signals).await {
        Ending::Signal => Box::pin(agent.stop()).await,
        Ending::Successor(successor) => {
            Box::pin(agent.hand_over(successor)).await;
            signals.received().await;
        }
    }
    Ok(())
}

/// Why the loop ended.
enum Ending {
    Signal,
    Successor(Successor),
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn received(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Everything that runs, and what passes between the parts.
struct Agent {
    config: Config,
    identity: NodeIdentity,
    sources: Sources,
    pipeline: Pipeline,
    spool: Spool,
    spool_status: watch::Receiver<SpoolStatus>,
    own: Own,
    published: watch::Sender<Option<Arc<Published>>>,
    live: watch::Sender<Option<LiveUpdate>>,
    link: watch::Receiver<LinkState>,
    stopping: watch::Sender<bool>,
    uplink: JoinSet<()>,
    http: JoinSet<()>,
    questions: mpsc::Receiver<Asked>,
    control: JoinSet<()>,
}

// === impl Agent ===

impl Agent {
    fn start(config: Config) -> Result<Self, RunError> {
        let boot_id = boot_id(&config.proc_root).map_err(RunError::BootId)?;
        let identity = NodeIdentity {
            cluster: config.cluster.clone(),
            node: config.node.clone(),
            boot_id,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let uplink = match &config.collector {
            Some(address) => Some(UplinkConfig::new(address, identity.clone())?),
            None => None,
        };
        let spool = Spool::open(&config.spool, &identity.boot_id)?;
        let (live, live_out) = watch::channel(None);
        let (link_in, link) = watch::channel(LinkState::unconnected("no collector was tried yet"));
        let (stopping, stop) = watch::channel(false);
        let (control, questions) = commands::listen(&config);
        let mut delivery = JoinSet::new();
        if let Some(uplink) = uplink {
            delivery.spawn(uplink::run(uplink, spool.handle(), live_out, link_in, stop));
        }
        Ok(Self {
            sources: Sources::start(&config, spool.baseline()),
            pipeline: Pipeline::new(
                Policy::new(config.allocations),
                config.tile,
                spool.positions().clone(),
                spool.baseline().cloned(),
            ),
            own: Own::register(),
            published: watch::channel(None).0,
            config,
            identity,
            spool_status: spool.handle().status(),
            spool,
            live,
            link,
            stopping,
            uplink: delivery,
            http: JoinSet::new(),
            questions,
            control,
        })
    }

    fn serve(&mut self, listener: TcpListener) {
        let mut stop = self.stopping.subscribe();
        let router = admin::router(self.published.subscribe(), self.own.clone());
        self.http.spawn(async move {
            let stopped = async move { drop(stop.wait_for(|it| *it).await) };
            let served = axum::serve(listener, router).with_graceful_shutdown(stopped).await;
            if let Err(error) = served {
                warn!("the HTTP port failed: {error}; metering and delivery go on");
            }
        });
    }

    async fn watch(&mut self, signals: &mut Signals) -> Ending {
        let mut ticker = tokio::time::interval(self.config.tick);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut pacing = Pacing::default();
        loop {
            let cause = tokio::select! {
                () = signals.received() => return Ending::Signal,
                Some(asked) = self.questions.recv() => match self.answer(asked).await {
                    Some(ending) => return ending,
                    None => continue,
                },
                _ = ticker.tick() => "tick",
                change = self.sources.cuda.changed() => {
                    pacing.note(Instant::now(), change);
                    continue;
                }
                () = pacing.due() => {
                    pacing.begin(Instant::now());
                    "event"
                }
            };
            self.read(cause).await;
        }
    }

    async fn read(&mut self, cause: &str) {
        let at = clock::boot();
        let readings = self.sources.read(at).await;
        self.observe_calls();
        let records = self.pipeline.step(readings);
        self.own.readings.with_label_values(&[cause]).inc();
        self.own.records.inc_by(records.len() as u64);
        self.keep(records);
        self.publish();
        self.own
            .reading_seconds
            .observe(Duration::from_nanos(clock::boot().since(at)).as_secs_f64());
    }

    fn observe_calls(&mut self) {
        for (call, nanoseconds) in self.sources.nvml.take_durations() {
            let seconds = Duration::from_nanos(nanoseconds).as_secs_f64();
            self.own.nvml_call_seconds.with_label_values(&[call.as_str()]).observe(seconds);
        }
    }

    fn keep(&mut self, records: Vec<Record>) {
        if records.iter().any(|it| matches!(it, Record::Cuda(_))) {
            self.sources.cuda.note_recorded();
        }
        self.spool.handle().append(records, self.pipeline.take_baseline());
    }

    fn publish(&mut self) {
        let Some(seen) = self.pipeline.observation() else { return };
        let spool = self.spool_status.borrow().clone();
        let link = self.link.borrow().clone();
        let live = uplink::encode::live_update(
            &self.identity,
            seen,
            self.pipeline.since(),
            spool.open.as_ref().map_or(spool.held_records, |it| it.unsent_records),
            clock::real_ns(),
        );
        let parts = vec![
            health::of_nvml(&seen.readings.nvml),
            health::of_tracing(&seen.readings.cuda.tracing, self.config.cuda.enabled),
            health::of_spool(&spool),
            health::of_link(&link, self.config.collector.as_deref()),
            health::of_attribution(&seen.readings.nvml),
        ];
        let status = Status {
            version: env!("CARGO_PKG_VERSION"),
            cluster: self.identity.cluster.clone(),
            node: self.identity.node.clone(),
            boot_id: self.identity.boot_id.clone(),
            parts,
            devices: status::devices(seen, self.pipeline.since()),
            libraries: status::libraries(&self.sources.cuda.coverage()),
        };
        let snapshot = Snapshot {
            node: self.identity.node.clone(),
            live: live.clone(),
            totals: self.pipeline.totals(seen.readings.at),
            overflow: seen.readings.cuda.overflow,
            hit_costs: seen.readings.cuda.tracing.hit_costs,
            nvml: self.sources.nvml.stats(),
            waiting_commands: self.questions.len(),
            spool,
            link,
            dcgm_compat: self.config.dcgm_compat,
        };
        self.live.send_replace(Some(live));
        self.published.send_replace(Some(Arc::new(Published {
            at: clock::boot(),
            status,
            snapshot,
        })));
    }

    /// What was counted is read once more and the hooks are detached; then the records go out, and
    /// what the collector does not take in time stays in the spool.
    async fn stop(mut self) {
        if tokio::time::timeout(LAST_READING, self.read("stop")).await.is_err() {
            warn!("a source did not answer: what it saw since its last reading is unobserved");
        }
        let records = self.pipeline.finish(clock::boot());
        self.sources.stop();
        self.spool.handle().append(records, self.pipeline.take_baseline());
        self.stopping.send_replace(true);
        let flushed = tokio::time::timeout(FLUSH, self.uplink.join_next()).await;
        if flushed.is_err() {
            warn!("the collector did not take the last records in time; they stay in the spool");
        }
        self.uplink.shutdown().await;
        self.http.shutdown().await;
        self.control.shutdown().await;
        if self.spool.close(CLOSE).await {
            info!("stopped: all hooks are detached, what was not sent is in the spool");
        } else {
            let held = self.spool_status.borrow().held_records;
            warn!(
                "stopped: all hooks are detached. The spool could not be written: {held} records \
                 that only memory had are lost, what was written before is kept"
            );
        }
    }
}
