//! The page's files and JSON, as a browser gets them.

use std::sync::{Arc, RwLock};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::capacity::board::Board;
use crate::config::RawConfig;
use crate::ledger::totals::Totals;
use crate::metrics::Metrics;
use crate::outputs::{Sources, router};
use crate::state::fixtures::{LIMITS, gpu, held_by, live};
use crate::state::{Event, start};
use proto::telemetry::v1::Class;

/// A collector's HTTP port after `events`, asked for `path`.
async fn get(events: Vec<Event>, path: &str) -> String {
    let idle = RawConfig::default().parse().expect("the defaults are valid").idle;
    let board = Board::new(&idle);
    let (state, owner) = start(LIMITS);
    let sources = Sources {
        state: state.clone(),
        board: board.clone(),
        totals: Arc::new(RwLock::new(Totals::default())),
        metrics: Metrics::default(),
        grpc_port: 9801,
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::select! {
        answer = async {
            for event in events {
                state.send(event).await;
            }
            ask(&address.to_string(), path).await
        } => answer,
        () = owner.run(|changes, ticked_ns| board.apply(changes, ticked_ns)) => unreachable!("a handle is held"),
        end = axum::serve(listener, router(sources)).into_future() => unreachable!("{end:?}"),
    }
}

/// Until the answer ends, or a whole event has come.
async fn ask(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    loop {
        let length = stream.read(&mut part).await.unwrap();
        answer.extend_from_slice(&part[..length]);
        let text = String::from_utf8_lossy(&answer);
        if length == 0 || text.contains("event: picture") && text.contains("\n\n") {
            return text.into_owned();
        }
    }
}

fn events() -> Vec<Event> {
    let held = held_by(gpu("GPU-1", Class::MemoryHeld, 100), &["<b>team</b>"]);
    vec![live("n", 200, vec![held, gpu("GPU-2", Class::Free, 150)])]
}

async fn check(path: &str, expected: &[&str]) {
    let answer = get(events(), path).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    for it in expected {
        assert!(answer.contains(it), "{path} lacks {it}: {answer}");
    }
}

#[tokio::test]
async fn every_path_answers() {
    check("/healthz", &["ok\n"]).await;
    check("/metrics", &["text/plain; version=0.0.4", "gleaner_offers_open{class=\"free\"} 1\n"])
        .await;
    check("/", &["text/html", "content-security-policy: default-src 'none'", "<h1>gleaner</h1>"])
        .await;
    check("/assets/page.js", &["text/javascript", "EventSource"]).await;
    check("/assets/page.css", &["text/css", "prefers-color-scheme"]).await;
    check("/assets/icon.svg", &["image/svg+xml", "<svg"]).await;
    assert!(get(events(), "/nothing").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn json_keeps_what_is_unknown_apart_from_zero() {
    let answer = get(events(), "/api/v1/fleet").await;
    let body = answer.split_once("\r\n\r\n").expect("headers end").1;
    let fleet: serde_json::Value = serde_json::from_str(body).expect("it is JSON");
    assert_eq!(fleet["summary"]["classes"]["memory_held"], 1);
    assert_eq!(fleet["summary"]["dwelling"], 1);
    let gpu = &fleet["nodes"][0]["gpus"][0];
    assert_eq!(gpu["busy_ratio"], serde_json::Value::Null);
    assert_eq!(gpu["instances"][0]["withheld"], "dwelling");
    assert_eq!(gpu["instances"][0]["dwell_left_ms"], 200_000);
    assert_eq!(gpu["instances"][0]["holders"][0]["tenant"], "<b>team</b>");
    assert_eq!(fleet["nodes"][0]["gpus"][1]["instances"][0]["offered"], true);
}

#[tokio::test]
async fn offers_are_those_of_the_table() {
    check("/api/v1/offers", &["\"open\":1", "\"id\":\"n/GPU-2\"", "\"class\":\"free\""]).await;
}

#[tokio::test]
async fn a_picture_shows_what_was_asked_for() {
    check("/api/v1/events", &["text/event-stream", "\"grpc_port\":9801", "\"node\":\"n\""]).await;
    check("/api/v1/events?q=TEAM", &["\"node\":\"n\"", "GPU-1", "\"offers\":[]"]).await;
    assert!(!get(events(), "/api/v1/events?q=TEAM").await.contains("GPU-2"));
    check("/api/v1/events?q=nobody", &["\"nodes\":[]", "\"live\":1"]).await;
    check("/api/v1/events?nodes=0", &["\"nodes\":[]", "\"nodes_left_out\":1"]).await;
}
