//! The uplink against a collector that is away, slow, wrong or killed: every record arrives, once.

mod collector;
mod delivery;
mod lanes;

use std::time::Duration;

use proto::telemetry::v1::{Device, LiveUpdate, NodeIdentity};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::backoff::Bounds;
use super::link::LinkState;
use super::{Pace, UplinkConfig, run};
use crate::attribution::fixtures;
use crate::config;
use crate::model::usage::{Class, Record, Share};
use crate::spool::{Spool, SpoolHandle};
use collector::Collector;

/// Far more than anything here takes: what is not there by then does not come.
const PATIENCE: Duration = Duration::from_secs(20);

const FENCED: Duration = Duration::from_millis(60);

/// A spool and its uplink.
struct Agent {
    spool: Spool,
    live: watch::Sender<Option<LiveUpdate>>,
    link: watch::Receiver<LinkState>,
    shutdown: watch::Sender<bool>,
    tasks: JoinSet<()>,
    _folder: TempDir,
    appended: u64,
}

/// As patient as a test.
fn pace() -> Pace {
    Pace {
        retry: Bounds::new(Duration::from_millis(1), Duration::from_millis(20)).unwrap(),
        welcome_within: Duration::from_millis(1_500),
        answer_within: Duration::from_millis(1_500),
        fenced: FENCED,
        proven: Duration::from_secs(10),
    }
}

fn live_update(boot_ns: u64) -> LiveUpdate {
    let device = Device { gpu_uuid: "GPU-0".to_owned(), ..Device::default() };
    LiveUpdate { spool_records: boot_ns, devices: vec![device], ..LiveUpdate::default() }
}

/// One free nanosecond. It has no neighbour that the spool could merge it with.
fn tile(number: u64) -> Record {
    let (shares, classes) = ([(Share::Free, 1)].into(), [(Class::Free, 1)].into());
    Record::Tile(Box::new(fixtures::tile((2 * number, 2 * number + 1), shares, classes)))
}

// === impl Agent ===

impl Agent {
    /// Not connected yet.
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let config = config::Spool { path: folder.path().to_owned(), max_bytes: 64 << 20 };
        let spool = Spool::open(&config, "boot").unwrap();
        let (live, _) = watch::channel(Some(live_update(0)));
        let (_, link) = watch::channel(LinkState::unconnected(""));
        let (shutdown, _) = watch::channel(false);
        let tasks = JoinSet::new();
        Self { spool, live, link, shutdown, tasks, _folder: folder, appended: 0 }
    }

    fn connected(collector: &Collector) -> Self {
        let mut agent = Self::new();
        agent.connect(&collector.url());
        agent
    }

    fn connect(&mut self, address: &str) {
        let identity = NodeIdentity { node: "n".to_owned(), ..NodeIdentity::default() };
        let mut config = UplinkConfig::new(address, identity).unwrap();
        config.pace = pace();
        let (link, state) = watch::channel(LinkState::unconnected(""));
        self.link = state;
        self.tasks.spawn(run(
            config,
            self.handle(),
            self.live.subscribe(),
            link,
            self.shutdown.subscribe(),
        ));
    }

    fn handle(&self) -> SpoolHandle {
        self.spool.handle()
    }

    fn append(&mut self, records: u64) {
        let first = self.appended;
        self.appended += records;
        self.handle().append((first..self.appended).map(tile).collect(), None);
    }

    /// Until the collector has everything and has said so.
    async fn delivered(&self, collector: &Collector) {
        eventually("everything is committed", || {
            collector.ledger().tiles.len() as u64 >= self.appended
        })
        .await;
        let status = self.handle().status();
        eventually("everything is acknowledged", || {
            let status = status.borrow();
            status.held_records == 0
                && status.open.as_ref().is_some_and(|it| it.unsent_records == 0)
        })
        .await;
    }

    async fn link_is(&mut self, what: &str, is: impl FnMut(&LinkState) -> bool) -> LinkState {
        let reached = match timeout(PATIENCE, self.link.wait_for(is)).await {
            Ok(state) => Some(state.unwrap().clone()),
            Err(_) => None,
        };
        reached.unwrap_or_else(|| panic!("{what}: {:?}", self.link.borrow()))
    }

    /// Until the uplink has ended.
    async fn stop(&mut self) {
        self.shutdown.send_replace(true);
        timeout(PATIENCE, self.tasks.join_next()).await.unwrap().unwrap().unwrap();
    }

    /// Every record that was appended is in the ledger, in order, and none twice.
    async fn check_ledger(&self, collector: &Collector) {
        self.delivered(collector).await;
        let tiles = collector.ledger().tiles.clone();
        let wrong = tiles.iter().zip(0..).find(|(found, expected)| *found != expected);
        assert_eq!((wrong, tiles.len() as u64), (None, self.appended));
    }
}

/// Polls what no channel tells.
async fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let reached = timeout(PATIENCE, async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(reached.await.is_ok(), "{what}");
}
