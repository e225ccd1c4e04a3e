//! The uplink against a collector that acknowledges, breaks, resumes and refuses.

mod server;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost::Message;
use proto::telemetry::v1::{
    Device, Limits, LiveUpdate, NodeIdentity, Reject, record::Kind, reject::Code,
};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::attribution::fixtures;
use crate::config;
use crate::model::units::BootNs;
use crate::model::usage::{Class, Record, Share, Tile};
use crate::spool::{Spool, SpoolHandle};
use crate::uplink::{LinkState, Phase, UplinkConfig, run};
use server::{Act, Server, Shared, State};

const PATIENCE: Duration = Duration::from_secs(30);

/// An agent's spool and uplink, without what measures.
struct Agent {
    spool: Option<Spool>,
    handle: SpoolHandle,
    live: watch::Sender<Option<LiveUpdate>>,
    link: watch::Receiver<LinkState>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
    appended: u64,
    _folder: tempfile::TempDir,
}

impl Agent {
    fn start(address: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let spool = config::Spool { path: folder.path().to_owned(), max_bytes: 64 << 20 };
        let spool = Spool::open(&spool, "boot").unwrap();
        let handle = spool.handle();
        let (live, readings) = watch::channel(None);
        let (link_in, link) = watch::channel(LinkState::default());
        let (stop, stopping) = watch::channel(false);
        let config =
            UplinkConfig { address: address.to_owned(), identity: NodeIdentity::default() };
        let mut tasks = JoinSet::new();
        tasks.spawn(run(config, handle.clone(), readings, link_in, stopping));
        let spool = Some(spool);
        Self { spool, handle, live, link, stop, tasks, appended: 0, _folder: folder }
    }

    fn of(server: &Server) -> Self {
        let agent = Self::start(&format!("http://{}", server.address));
        agent.read(1);
        agent
    }

    fn read(&self, boot_ns: u64) {
        let device = Device { gpu_uuid: "GPU-0".to_owned(), ..Device::default() };
        let clock = proto::telemetry::v1::ClockReading { boot_ns, real_ns: 0 };
        let update =
            LiveUpdate { devices: vec![device], clock: Some(clock), ..LiveUpdate::default() };
        self.live.send_replace(Some(update));
    }

    fn append(&mut self, records: u64) {
        let tiles = (self.appended..self.appended + records).map(tile).collect();
        self.appended += records;
        self.handle.append(tiles);
    }

    async fn until_acked(&self) {
        self.until_acked_through(self.appended).await;
    }

    async fn until_acked_through(&self, through: u64) {
        let mut status = self.handle.status();
        let done = status.wait_for(|it| {
            it.held_records == 0
                && it
                    .open
                    .as_ref()
                    .is_some_and(|it| it.acked_through >= through && it.unsent_records == 0)
        });
        let waited = tokio::time::timeout(PATIENCE, done).await.map(|it| it.is_ok());
        let link = self.link.borrow().clone();
        assert_eq!(waited, Ok(true), "not everything was acknowledged in time: {link:?}");
    }

    async fn until_link(&mut self, holds: impl FnMut(&LinkState) -> bool) -> LinkState {
        let found = tokio::time::timeout(PATIENCE, self.link.wait_for(holds)).await;
        found.expect("the link gets there in time").unwrap().clone()
    }

    async fn stop(mut self) {
        self.stop.send_replace(true);
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        tokio::time::timeout(Duration::from_secs(3), ended).await.expect("it stops in time");
        assert!(self.spool.take().unwrap().close(PATIENCE).await);
    }
}

/// Gaps keep the tiles apart: the spool would merge those that follow each other.
fn tile(index: u64) -> Record {
    Record::Tile(Tile {
        id: fixtures::id(0),
        start: BootNs(2 * index),
        end: BootNs(2 * index + 1),
        shares: BTreeMap::from([(Share::Free, 1)]),
        classes: BTreeMap::from([(Class::Free, 1)]),
        energy_mj: None,
        memory: None,
    })
}

fn collector(script: Vec<Act>) -> Shared {
    let state = State { script, ledger_id: b"ledger-1".to_vec(), ..State::default() };
    Arc::new(Mutex::new(state))
}

/// Which tiles the ledger has, of all spools, in order.
fn tiles(state: &Shared) -> Vec<u64> {
    let state = state.lock().unwrap();
    let mut tiles: Vec<u64> = state
        .ledger
        .values()
        .flatten()
        .map(|payload| {
            let record = proto::telemetry::v1::Record::decode(&payload[..]).unwrap();
            let Some(Kind::Tile(tile)) = record.kind else { panic!("only tiles were sent") };
            tile.start_ns / 2
        })
        .collect();
    tiles.sort_unstable();
    tiles
}

/// Every tile is in the ledger, and once.
fn assert_once(state: &Shared, records: u64) {
    assert_eq!(tiles(state), (0..records).collect::<Vec<_>>());
}

/// Appends in three parts to a collector with a script; everything must arrive, once.
async fn check(script: Vec<Act>) -> (Agent, Server) {
    let server = Server::start(collector(script));
    let mut agent = Agent::of(&server);
    for _ in 0..3 {
        agent.append(5);
        agent.until_acked().await;
    }
    assert_once(&server.state, 15);
    (agent, server)
}

#[tokio::test]
async fn what_is_spooled_is_acknowledged() {
    let (mut agent, server) = check(Vec::new()).await;
    let link = agent.until_link(|it| it.counts.records_acked == 15).await;
    assert_eq!((link.phase, link.reason.as_str()), (Phase::Connected, ""));
    assert_eq!(link.counts.connections, 1);
    let hello = server.state.lock().unwrap().hellos[0].clone();
    assert_eq!(hello.device_uuids, ["GPU-0"]);
    assert_eq!((hello.acked_through, hello.ledger_id_seen.len()), (0, 0));
    agent.stop().await;
    let state = server.state.lock().unwrap();
    assert_eq!((state.deliver_ended, state.live_ended), (1, 1), "both streams were closed");
}

#[tokio::test]
async fn broken_streams_lose_and_double_nothing() {
    let script = vec![Act::CommitAndBreak, Act::Break, Act::Ack, Act::CommitAndBreak];
    let (agent, server) = check(script).await;
    assert!(server.state.lock().unwrap().hellos.len() >= 3);
    agent.stop().await;
}

#[tokio::test]
async fn a_gap_is_filled_on_request() {
    let (agent, server) = check(vec![Act::Resume(1), Act::Ack, Act::Resume(1)]).await;
    assert_eq!(server.state.lock().unwrap().hellos.len(), 1, "it takes no new connection");
    assert!(agent.link.borrow().counts.resumes >= 1);
    agent.stop().await;
}

#[tokio::test]
async fn a_collector_that_asks_for_ever_gets_a_new_connection() {
    let (agent, server) = check(vec![Act::Resume(1); 6]).await;
    assert!(server.state.lock().unwrap().hellos.len() >= 2);
    agent.stop().await;
}

fn reject(code: Code) -> Act {
    Act::Reject(Reject {
        code: code.into(),
        reason: "no\nroom".to_owned(),
        what_to_do: "make some".to_owned(),
        retry_after_ms: 300,
    })
}

#[tokio::test]
async fn a_refusal_is_shown_and_tried_again_when_asked() {
    let server = Server::start(collector(vec![reject(Code::StorageFull)]));
    let mut agent = Agent::of(&server);
    agent.append(5);
    let link = agent.until_link(|it| it.phase == Phase::Lost).await;
    assert_eq!(link.reason, "refused with STORAGE_FULL: no room. make some");
    agent.until_acked().await;
    assert_once(&server.state, 5);
    assert_eq!(agent.link.borrow().counts.rejects, 1);
    agent.stop().await;
}

#[tokio::test]
async fn batches_get_smaller_when_they_are_too_large() {
    let limits = Limits { max_batch_bytes: 64 * 1024, max_in_flight: 1 };
    let state = collector(vec![reject(Code::TooLarge); 6]);
    state.lock().unwrap().limits = limits;
    let server = Server::start(state);
    let mut agent = Agent::of(&server);
    agent.append(2_000);
    agent.until_acked().await;
    assert_once(&server.state, 2_000);
    let batches = server.state.lock().unwrap().batches.clone();
    let (first, last) = (batches[0].1, batches.last().unwrap().1);
    assert!(first > last && first < 2_000, "{batches:?}");
    agent.stop().await;
}

#[tokio::test]
async fn records_that_collide_get_a_new_sequence() {
    let state = collector(vec![Act::Ack, reject(Code::SequenceReuse)]);
    let server = Server::start(state);
    let mut agent = Agent::of(&server);
    agent.append(2);
    agent.until_acked().await;
    agent.append(3);
    agent.until_link(|it| it.counts.connections == 2).await;
    agent.until_acked_through(3).await;
    assert_once(&server.state, 5);
    assert_eq!(server.state.lock().unwrap().ledger.len(), 2);
    agent.stop().await;
}

#[tokio::test]
async fn a_collector_that_restarts_is_found_again() {
    let server = Server::start(collector(Vec::new()));
    let mut agent = Agent::of(&server);
    agent.append(5);
    agent.until_acked().await;
    let (address, state) = server.kill();
    let link = agent.until_link(|it| it.phase == Phase::Lost).await;
    assert!(!link.reason.is_empty());
    agent.append(5);
    let server = Server::start_at(address, state);
    agent.until_acked().await;
    assert_once(&server.state, 10);
    assert_eq!(server.state.lock().unwrap().hellos.last().unwrap().acked_through, 5);
    agent.stop().await;
}

#[tokio::test]
async fn a_ledger_that_went_back_is_filled_again() {
    let server = Server::start(collector(Vec::new()));
    let mut agent = Agent::of(&server);
    agent.append(9);
    agent.until_acked().await;
    let (address, state) = server.kill();
    {
        let mut state = state.lock().unwrap();
        state.ledger.values_mut().for_each(|it| it.truncate(4));
        state.ledger_id = b"restored".to_vec();
    }
    let server = Server::start_at(address, state);
    agent.append(1);
    agent.until_acked().await;
    assert_once(&server.state, 10);
    let ledger_id = agent.handle.status().borrow().open.clone().unwrap().ledger_id;
    assert_eq!(ledger_id, b"restored");
    agent.stop().await;
}

#[tokio::test]
async fn a_spool_that_went_back_begins_a_new_sequence() {
    let server = Server::start(collector(Vec::new()));
    let mut agent = Agent::of(&server);
    agent.append(3);
    agent.until_acked().await;
    let (address, state) = server.kill();
    // The collector has numbers that this spool has not given yet.
    let extra = state.lock().unwrap().ledger.values().next().unwrap()[0].clone();
    state.lock().unwrap().ledger.values_mut().for_each(|it| it.push(extra.clone()));
    let server = Server::start_at(address, Arc::clone(&state));
    agent.until_link(|it| it.counts.connections == 2).await;
    agent.append(2);
    agent.until_acked_through(2).await;
    assert_eq!(server.state.lock().unwrap().ledger.len(), 2);
    assert_eq!(tiles(&server.state), [0, 0, 1, 2, 3, 4]);
    agent.stop().await;
}

#[tokio::test]
async fn the_newest_readings_arrive_although_records_do_not() {
    let server = Server::start(collector(vec![Act::Break; 3]));
    let mut agent = Agent::of(&server);
    agent.until_link(|it| it.phase == Phase::Connected).await;
    agent.read(77);
    let arrived = async {
        let newest = |state: &Shared| {
            let state = state.lock().unwrap();
            state.updates.last().and_then(|it| it.clock).map(|it| it.boot_ns)
        };
        while newest(&server.state) != Some(77) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, arrived).await.expect("the readings arrive");
    agent.append(1);
    agent.until_acked().await;
    agent.stop().await;
}

#[tokio::test]
async fn the_last_records_are_sent_before_the_end() {
    let server = Server::start(collector(Vec::new()));
    let mut agent = Agent::of(&server);
    agent.until_link(|it| it.phase == Phase::Connected).await;
    agent.append(50);
    let state = Arc::clone(&server.state);
    agent.stop().await;
    assert_once(&state, 50);
}

#[tokio::test]
async fn without_a_collector_it_stops_at_once_and_keeps_everything() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let mut agent = Agent::start(&format!("http://{address}"));
    agent.read(1);
    agent.append(3);
    let link = agent.until_link(|it| !it.reason.is_empty()).await;
    assert_eq!(link.phase, Phase::Connecting);
    assert!(link.reason.contains("refused"), "{}", link.reason);
    agent.stop().await;
}
