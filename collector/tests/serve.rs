//! A whole collector on loopback, spoken to as agents and the client do.

#![expect(clippy::unwrap_used, reason = "the helpers of tests fail as tests do")]

use std::path::Path;
use std::time::Duration;

use collector::config::RawConfig;
use collector::run::{Addresses, Collector};
use prost::Message as _;
use proto::capacity::v1::capacity_client::CapacityClient;
use proto::capacity::v1::{GetFleetRequest, node::Presence};
use proto::telemetry::v1::deliver_request::Message as Request;
use proto::telemetry::v1::deliver_response::Message as Answer;
use proto::telemetry::v1::reject::Code;
use proto::telemetry::v1::telemetry_client::TelemetryClient;
use proto::telemetry::v1::{
    Batch, Class, ClassTime, ClockReading, DeliverRequest, DeliverResponse, Hello, InstanceId,
    LiveUpdate, NodeIdentity, Record, Remainder, SealedRecord, Tile, Welcome, record, remainder,
};
use proto::usage::v1::GetUsageRequest;
use proto::usage::v1::usage_client::UsageClient;
use tempfile::tempdir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const SECOND: u64 = 1_000_000_000;
/// Far more than any answer takes; a test that waits for it has failed.
const SOON: Duration = Duration::from_secs(10);

/// A collector in this process.
struct Running {
    addresses: Addresses,
    stop: oneshot::Sender<()>,
    end: JoinHandle<()>,
}

impl Running {
    async fn start(ledger: &Path) -> Self {
        let mut raw = RawConfig::default();
        raw.grpc.listen = "127.0.0.1:0".to_owned();
        raw.http.listen = "127.0.0.1:0".to_owned();
        raw.ledger.path = ledger.to_owned();
        raw.ledger.min_free_bytes = 0;
        let collector = Collector::start(raw.parse().unwrap()).await.unwrap();
        let addresses = collector.addresses();
        let (stop, stopped) = oneshot::channel();
        #[expect(clippy::disallowed_methods, reason = "a test has no run.rs that owns its tasks")]
        let end = tokio::spawn(async move {
            let stopped = async { stopped.await.unwrap() };
            collector.run(stopped).await.unwrap();
        });
        Self { addresses, stop, end }
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        timeout(SOON, self.end).await.expect("it stops in time").unwrap();
    }

    async fn channel(&self) -> Channel {
        let address = format!("http://{}", self.addresses.grpc);
        Channel::from_shared(address).unwrap().connect().await.unwrap()
    }

    async fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(self.addresses.http).await.unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }
}

/// The durable lane of an agent of the node `n`.
struct Agent {
    requests: mpsc::Sender<DeliverRequest>,
    answers: Streaming<DeliverResponse>,
}

impl Agent {
    async fn connect(collector: &Running) -> Self {
        let (requests, stream) = mpsc::channel(8);
        let mut client = TelemetryClient::new(collector.channel().await);
        let answers = client.deliver(ReceiverStream::new(stream)).await.unwrap().into_inner();
        Self { requests, answers }
    }

    async fn welcomed(collector: &Running) -> (Self, Welcome) {
        let mut agent = Self::connect(collector).await;
        let Some(Answer::Welcome(welcome)) = agent.ask(Request::Hello(hello())).await else {
            panic!("a Hello is answered with a Welcome")
        };
        (agent, welcome)
    }

    async fn ask(&mut self, message: Request) -> Option<Answer> {
        self.requests.send(DeliverRequest { message: Some(message) }).await.unwrap();
        self.next().await
    }

    async fn next(&mut self) -> Option<Answer> {
        let answer = timeout(SOON, self.answers.message()).await.expect("there is an answer");
        answer.unwrap().and_then(|it| it.message)
    }

    async fn rejected(&mut self, message: Request, code: Code, reason: &str) {
        let Some(Answer::Reject(reject)) = self.ask(message).await else {
            panic!("it is rejected with {code:?}")
        };
        assert_eq!(reject.code(), code);
        assert!(reject.reason.contains(reason), "{}", reject.reason);
        assert!(!reject.what_to_do.is_empty() && reject.retry_after_ms > 0);
        assert_eq!(self.next().await, None, "a Reject ends the stream");
    }
}

fn identity() -> NodeIdentity {
    NodeIdentity {
        cluster: String::new(),
        node: "n".to_owned(),
        boot_id: "b".to_owned(),
        agent_version: "1".to_owned(),
    }
}

fn hello() -> Hello {
    Hello {
        node: Some(identity()),
        spool_id: vec![1; 16],
        clock: Some(ClockReading { boot_ns: 1_000_000 * SECOND, real_ns: 0 }),
        ..Hello::default()
    }
}

/// Ten free seconds of a device.
fn tile(start_s: u64) -> SealedRecord {
    let ns = 10 * SECOND;
    let start_ns = start_s * SECOND;
    let free =
        Remainder { kind: remainder::Kind::Free.into(), reason: String::new(), ns, energy_mj: 0 };
    let tile = Tile {
        instance: Some(InstanceId { gpu_uuid: "GPU-1".to_owned(), mig_uuid: None }),
        start_ns,
        end_ns: start_ns + ns,
        remainders: vec![free],
        classes: vec![ClassTime { class: Class::Free.into(), ns, energy_mj: 0 }],
        ..Tile::default()
    };
    let kind = Some(record::Kind::Tile(tile));
    let payload = Record { boot_id: "b".to_owned(), node_real_ns: 1, kind }.encode_to_vec();
    SealedRecord { hash: blake3::hash(&payload).as_bytes().to_vec(), payload }
}

fn batch(epoch: u64, first_seq: u64, records: Vec<SealedRecord>) -> Request {
    Request::Batch(Batch { epoch, first_seq, records })
}

async fn wall_ns(collector: &Running) -> u64 {
    let mut client = UsageClient::new(collector.channel().await);
    let usage = client.get_usage(GetUsageRequest::default()).await.unwrap().into_inner();
    usage.wall.unwrap().low
}

// === the durable lane ===

#[tokio::test]
async fn records_are_acknowledged_once_they_count() {
    let folder = tempdir().unwrap();
    let collector = Running::start(folder.path()).await;
    let (mut agent, welcome) = Agent::welcomed(&collector).await;
    assert_eq!((welcome.epoch, welcome.cursor, welcome.ledger_id.len()), (1, 0, 16));
    let ack = agent.ask(batch(1, 1, vec![tile(0), tile(10)])).await;
    assert!(matches!(ack, Some(Answer::Ack(it)) if it.through == 2), "{ack:?}");
    let again = agent.ask(batch(1, 2, vec![tile(10), tile(20)])).await;
    assert!(matches!(again, Some(Answer::Ack(it)) if it.through == 3), "{again:?}");
    assert_eq!(wall_ns(&collector).await, 30 * SECOND);
    let metrics = collector.metrics().await;
    let seconds = "gleaner_gpu_seconds_total{node=\"n\",gpu_uuid=\"GPU-1\",share=\"free\"} 30";
    assert!(metrics.contains(seconds), "{metrics}");
    assert!(metrics.contains("gleaner_collector_streams{lane=\"durable\"} 1\n"));
    collector.stop().await;

    let collector = Running::start(folder.path()).await;
    let (_agent, welcome) = Agent::welcomed(&collector).await;
    assert_eq!((welcome.epoch, welcome.cursor), (2, 3));
    assert!(collector.metrics().await.contains(seconds), "counters go on after a restart");
    collector.stop().await;
}

#[tokio::test]
async fn a_gap_is_asked_for_once() {
    let folder = tempdir().unwrap();
    let collector = Running::start(folder.path()).await;
    let (mut agent, _) = Agent::welcomed(&collector).await;
    for first_seq in [7, 8] {
        let resume = agent.ask(batch(1, first_seq, vec![tile(first_seq * 10)])).await;
        assert!(matches!(resume, Some(Answer::Resume(it)) if it.next == 1), "{resume:?}");
    }
    // The agent has gone back as far as it can.
    let ack = agent.ask(batch(1, 7, vec![tile(70)])).await;
    assert!(matches!(ack, Some(Answer::Ack(it)) if it.through == 7), "{ack:?}");
    collector.stop().await;
}

#[tokio::test]
async fn a_later_agent_takes_over() {
    let folder = tempdir().unwrap();
    let collector = Running::start(folder.path()).await;
    let (mut first, _) = Agent::welcomed(&collector).await;
    let (mut second, welcome) = Agent::welcomed(&collector).await;
    assert_eq!(welcome.epoch, 2);
    let Some(Answer::Reject(reject)) = first.next().await else { panic!("the first is told") };
    assert_eq!(reject.code(), Code::StaleEpoch);
    second.rejected(batch(1, 1, vec![tile(0)]), Code::StaleEpoch, "connected later").await;
    collector.stop().await;
}

#[tokio::test]
async fn what_cannot_be_read_is_rejected_with_a_reason() {
    let folder = tempdir().unwrap();
    let collector = Running::start(folder.path()).await;
    let connect = || Agent::connect(&collector);
    let early = batch(1, 1, Vec::new());
    connect().await.rejected(early, Code::Malformed, "did not begin with a Hello").await;
    let nameless = Hello { node: None, ..hello() };
    connect().await.rejected(Request::Hello(nameless), Code::Malformed, "node is missing").await;

    let (mut agent, _) = Agent::welcomed(&collector).await;
    agent.rejected(Request::Hello(hello()), Code::Malformed, "second Hello").await;
    let (mut agent, welcome) = Agent::welcomed(&collector).await;
    agent.rejected(batch(welcome.epoch, 0, Vec::new()), Code::Malformed, "first_seq").await;
    let (mut agent, welcome) = Agent::welcomed(&collector).await;
    let many = batch(welcome.epoch, 1, vec![SealedRecord::default(); 4_097]);
    agent.rejected(many, Code::TooLarge, "4097 records").await;
    let (mut agent, welcome) = Agent::welcomed(&collector).await;
    let payload = vec![0; 5 * 1024 * 1024];
    let large = batch(welcome.epoch, 1, vec![SealedRecord { payload, hash: Vec::new() }]);
    agent.rejected(large, Code::TooLarge, "nothing is lost").await;
    assert_eq!(wall_ns(&collector).await, 0);
    collector.stop().await;
}

#[tokio::test]
async fn a_spool_that_comes_twice_with_other_content_is_rejected() {
    let folder = tempdir().unwrap();
    let collector = Running::start(folder.path()).await;
    let (mut agent, _) = Agent::welcomed(&collector).await;
    agent.ask(batch(1, 1, vec![tile(0)])).await;
    agent.rejected(batch(1, 1, vec![tile(10)]), Code::SequenceReuse, "record 1 of spool").await;
    collector.stop().await;
}

// === the live lane ===

async fn presence(collector: &Running) -> Option<Presence> {
    let mut client = CapacityClient::new(collector.channel().await);
    let fleet = client.get_fleet(GetFleetRequest {}).await.unwrap().into_inner();
    fleet.nodes.first().map(|it| it.presence())
}

async fn eventually(collector: &Running, expected: Presence) {
    let wait = async {
        while presence(collector).await != Some(expected) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, wait).await.unwrap_or_else(|_| panic!("the node never became {expected:?}"));
}

#[tokio::test]
async fn a_node_is_live_for_as_long_as_its_stream() {
    let folder = tempdir().unwrap();
    let collector = Running::start(folder.path()).await;
    let (updates, stream) = mpsc::channel(1);
    let mut client = TelemetryClient::new(collector.channel().await);
    let agent = async {
        let update = LiveUpdate { node: Some(identity()), ..LiveUpdate::default() };
        updates.send(update).await.unwrap();
        eventually(&collector, Presence::Live).await;
        drop(updates);
    };
    let (summary, ()) = tokio::join!(client.live(ReceiverStream::new(stream)), agent);
    assert_eq!(summary.unwrap().into_inner().updates, 1);
    eventually(&collector, Presence::Gone).await;
    collector.stop().await;
}

#[tokio::test]
async fn an_update_without_a_node_is_refused() {
    let folder = tempdir().unwrap();
    let collector = Running::start(folder.path()).await;
    let mut client = TelemetryClient::new(collector.channel().await);
    let status = client.live(tokio_stream::once(LiveUpdate::default())).await.unwrap_err();
    assert_eq!(status.message(), "node.node is empty; nothing of the update was used");
    assert!(collector.metrics().await.contains("gleaner_collector_malformed_updates_total 1\n"));
    collector.stop().await;
}

// === the ports ===

#[tokio::test]
async fn garbage_on_the_grpc_port_harms_nobody() {
    let folder = tempdir().unwrap();
    let collector = Running::start(folder.path()).await;
    let (mut agent, _) = Agent::welcomed(&collector).await;
    for garbage in
        [b"GET / HTTP/1.1\r\n\r\n".as_slice(), &[0xff; 4_096], b"PRI * HTTP/2.0\r\n\r\nXX"]
    {
        let mut stream = TcpStream::connect(collector.addresses.grpc).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        let mut settings = Vec::new();
        let closed = timeout(SOON, stream.read_to_end(&mut settings)).await;
        assert!(closed.is_ok() && settings.len() < 100, "{settings:?}");
    }
    let refused = "gleaner_collector_refused_connections_total{reason=\"not_grpc\"} 3\n";
    assert!(collector.metrics().await.contains(refused));
    let ack = agent.ask(batch(1, 1, vec![tile(0)])).await;
    assert!(matches!(ack, Some(Answer::Ack(_))), "{ack:?}");
    collector.stop().await;
}

#[tokio::test]
async fn a_port_in_use_is_named_and_nothing_is_written() {
    let folder = tempdir().unwrap();
    let first = Running::start(&folder.path().join("first")).await;
    let mut raw = RawConfig::default();
    raw.grpc.listen = first.addresses.grpc.to_string();
    raw.ledger.path = folder.path().join("second");
    let error = Collector::start(raw.parse().unwrap()).await.expect_err("the port is taken");
    let text = error.to_string();
    assert!(text.contains(&first.addresses.grpc.to_string()), "{text}");
    assert!(text.contains("nothing was written") && text.contains("grpc.listen"), "{text}");
    assert!(!folder.path().join("second").exists());
    first.stop().await;
}

#[tokio::test]
async fn health_says_serving() {
    let folder = tempdir().unwrap();
    let collector = Running::start(folder.path()).await;
    let mut client = HealthClient::new(collector.channel().await);
    for service in ["", "gleaner.telemetry.v1.Telemetry"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let status = client.check(request).await.unwrap().into_inner().status();
        assert_eq!(status.as_str_name(), "SERVING");
    }
    collector.stop().await;
}
