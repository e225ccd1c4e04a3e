//! The real program, killed again and again while it works: what it acknowledged is there, and nothing
//! is there twice.

#![expect(clippy::unwrap_used, reason = "the helpers of tests fail as tests do")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use prost::Message as _;
use proto::telemetry::v1::deliver_request::Message as Request;
use proto::telemetry::v1::deliver_response::Message as Answer;
use proto::telemetry::v1::telemetry_client::TelemetryClient;
use proto::telemetry::v1::{
    Batch, Class, ClassTime, ClockReading, DeliverRequest, Hello, InstanceId, NodeIdentity, Record,
    Remainder, SealedRecord, Tile, record, remainder,
};
use proto::usage::v1::GetUsageRequest;
use proto::usage::v1::usage_client::UsageClient;
use tempfile::tempdir;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

const KILLS: u64 = 25;
const RECORD_NS: u64 = 1_000_000_000;

/// The program, ended with it.
struct Collector {
    process: Child,
    grpc: String,
}

impl Collector {
    fn start(folder: &Path) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_gleaner-collector"))
            .args(["--config".as_ref(), folder.join("collector.toml").as_os_str()])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let grpc =
            lines.map(Result::unwrap).find_map(|it| it.strip_prefix("grpc ").map(str::to_owned));
        Self { process, grpc: grpc.expect("it says where it listens") }
    }

    /// Connects with the first request.
    fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.grpc)).unwrap().connect_lazy()
    }
}

impl Drop for Collector {
    /// SIGKILL.
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// The record with this number: a second of a device, right after the one before.
fn record(seq: u64) -> SealedRecord {
    let start_ns = seq * RECORD_NS;
    let kind = remainder::Kind::Free.into();
    let tile = Tile {
        instance: Some(InstanceId { gpu_uuid: "GPU-1".to_owned(), mig_uuid: None }),
        start_ns,
        end_ns: start_ns + RECORD_NS,
        remainders: vec![Remainder { kind, reason: String::new(), ns: RECORD_NS, energy_mj: 0 }],
        classes: vec![ClassTime { class: Class::Free.into(), ns: RECORD_NS, energy_mj: 0 }],
        ..Tile::default()
    };
    let kind = Some(record::Kind::Tile(tile));
    let payload = Record { boot_id: "b".to_owned(), node_real_ns: 1, kind }.encode_to_vec();
    SealedRecord { hash: blake3::hash(&payload).as_bytes().to_vec(), payload }
}

/// Sends batches until the collector dies; returns the highest number that it acknowledged. Sends
/// some records a second time on purpose.
async fn send(collector: &Collector, acked: u64) -> u64 {
    let (requests, stream) = mpsc::channel(8);
    let mut client = TelemetryClient::new(collector.channel());
    // On a loaded machine it may die before it answers at all.
    let Ok(answers) = client.deliver(ReceiverStream::new(stream)).await else { return acked };
    let mut answers = answers.into_inner();
    let hello = Hello {
        node: Some(NodeIdentity {
            node: "n".to_owned(),
            boot_id: "b".to_owned(),
            ..NodeIdentity::default()
        }),
        spool_id: vec![1; 16],
        acked_through: acked,
        clock: Some(ClockReading { boot_ns: 10_000_000 * RECORD_NS, real_ns: 0 }),
        ..Hello::default()
    };
    let mut message = Request::Hello(hello);
    let (mut epoch, mut acked) = (0, acked);
    loop {
        if requests.send(DeliverRequest { message: Some(message) }).await.is_err() {
            return acked;
        }
        match answers.message().await.map(|it| it.and_then(|it| it.message)) {
            Ok(Some(Answer::Welcome(welcome))) => {
                assert!(welcome.cursor >= acked, "{} < {acked}: it forgot", welcome.cursor);
                (epoch, acked) = (welcome.epoch, welcome.cursor);
            }
            Ok(Some(Answer::Ack(ack))) => acked = ack.through,
            Ok(Some(other)) => panic!("{other:?}"),
            Ok(None) | Err(_) => return acked,
        }
        let first_seq = acked.saturating_sub(2) + 1;
        let records = (first_seq..acked + 20).map(record).collect();
        message = Request::Batch(Batch { epoch, first_seq, records });
    }
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_and_nothing_counts_twice() {
    let folder = tempdir().unwrap();
    let text = format!(
        "[grpc]\nlisten = '127.0.0.1:0'\n[http]\nlisten = '127.0.0.1:0'\n\
         [ledger]\npath = '{}'\nmin_free_bytes = 0\n",
        folder.path().join("ledger").display()
    );
    std::fs::write(folder.path().join("collector.toml"), text).unwrap();
    let mut acked = 0;
    for kill in 0..KILLS {
        let collector = Collector::start(folder.path());
        // Later kills come at other moments of a commit.
        let (sending, killing) =
            (send(&collector, acked), sleep(Duration::from_millis(10 + 3 * kill)));
        let mut sending = std::pin::pin!(sending);
        tokio::select! {
            end = &mut sending => panic!("it ended by itself after {end}"),
            () = killing => {}
        }
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(collector.process.id().cast_signed()),
            nix::sys::signal::Signal::SIGKILL,
        )
        .unwrap();
        acked =
            timeout(Duration::from_secs(10), sending).await.expect("the stream ends").max(acked);
    }
    let collector = Collector::start(folder.path());
    let mut client = UsageClient::new(collector.channel());
    let usage = client.get_usage(GetUsageRequest::default()).await.unwrap().into_inner();
    let wall = usage.wall.unwrap().low;
    // A batch may have been committed whose acknowledgement did not arrive any more.
    assert!(wall >= acked * RECORD_NS, "{acked} records were acknowledged, {wall} ns are there");
    assert!(
        wall <= (acked + 20) * RECORD_NS,
        "{acked} records were acknowledged, {wall} ns are there"
    );
    assert_eq!((wall % RECORD_NS, usage.unowned.len()), (0, 1), "no hole, no overlap");
    assert!(acked > KILLS, "it got something done: {acked}");
}
