//! The agent's own HTTP port: `/metrics`, `/status`, `/healthz`, `/readyz`. Read only.
//!
//! Alive is not ready: a restart helps an agent whose loop stands still, and not one that waits for its
//! disk. What the node lacks is in `/status` and neither.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::watch;

use crate::clock;
use crate::metrics::{self, Snapshot, own::Own};
use crate::model::units::BootNs;
use crate::spool::{SpoolState, SpoolStatus};
use crate::status::Status;

/// Longer than any reading takes, and than hooks take to come on or off on an old kernel.
const STILL_NS: u64 = 60_000_000_000;

const NO_READING: &str = "no reading yet, ask again in a second";

/// What the loop publishes after each reading. Cheap to share; rendered only when asked for.
#[derive(Clone, Debug)]
pub struct Published {
    pub at: BootNs,
    pub status: Status,
    pub snapshot: Snapshot,
}

/// `None` until the first reading.
pub type Latest = watch::Receiver<Option<Arc<Published>>>;

#[derive(Clone, Debug)]
struct Pages {
    started: BootNs,
    latest: Latest,
    own: Own,
}

pub fn router(latest: Latest, own: Own) -> Router {
    Router::new()
        .route("/metrics", get(serve_metrics))
        .route("/status", get(serve_status))
        .route("/healthz", get(serve_health))
        .route("/readyz", get(serve_readiness))
        .with_state(Pages { started: clock::boot(), latest, own })
}

async fn serve_metrics(State(pages): State<Pages>) -> Response {
    let published = pages.latest.borrow().clone();
    let body = metrics::render(published.as_deref().map(|it| &it.snapshot), &pages.own);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], body).into_response()
}

async fn serve_status(State(pages): State<Pages>) -> Response {
    let published = pages.latest.borrow().clone();
    match published {
        Some(published) => axum::Json(published.status.clone()).into_response(),
        None => unavailable(format!("{NO_READING}\n")),
    }
}

/// The loop turns. A missing driver or collector is in `/status`: a restart would not bring it.
async fn serve_health(State(pages): State<Pages>) -> Response {
    let turned = pages.latest.borrow().as_ref().map_or(pages.started, |it| it.at);
    let still = clock::boot().since(turned);
    if still < STILL_NS {
        return "ok\n".into_response();
    }
    unavailable(format!("nothing was read for {} s: restart the agent\n", still / 1_000_000_000))
}

/// What it measures is kept. No driver is ready: that there is none was read.
async fn serve_readiness(State(pages): State<Pages>) -> Response {
    let published = pages.latest.borrow().clone();
    let missing = missing(published.as_deref().map(|it| &it.snapshot.spool));
    if missing.is_empty() {
        return "ready\n".into_response();
    }
    unavailable(format!("not ready: {}\n", missing.join("; ")))
}

/// `None` before the first reading.
fn missing(spool: Option<&SpoolStatus>) -> Vec<String> {
    let Some(spool) = spool else { return vec![NO_READING.to_owned()] };
    if spool.open.is_some() {
        return Vec::new();
    }
    let why = match &spool.state {
        SpoolState::Writing => "it is being opened",
        SpoolState::Full(why) | SpoolState::Failing(why) => why,
    };
    vec![format!("the spool is not open, what is measured is in memory only: {why}")]
}

fn unavailable(why: String) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
}

#[cfg(test)]
mod tests {
    use super::{NO_READING, missing};
    use crate::spool::{OpenSpool, SpoolId, SpoolState, SpoolStatus};

    fn open() -> SpoolStatus {
        let open = OpenSpool {
            spool_id: SpoolId::default(),
            sealed_through: 0,
            acked_through: 0,
            ledger_id: Vec::new(),
            unsent_records: 0,
            used_bytes: 0,
        };
        SpoolStatus { open: Some(open), ..SpoolStatus::default() }
    }

    fn check(spool: Option<&SpoolStatus>, expected: &[&str]) {
        let found = missing(spool);
        assert_eq!(found.len(), expected.len(), "{found:?}");
        assert!(found.iter().zip(expected).all(|(it, part)| it.contains(part)), "{found:?}");
    }

    #[test]
    fn what_is_missing_is_said() {
        check(None, &[NO_READING]);
        check(Some(&open()), &[]);
        check(Some(&SpoolStatus { open: None, ..open() }), &["it is being opened"]);
        let failing = SpoolState::Failing("read-only file system".to_owned());
        check(
            Some(&SpoolStatus { open: None, state: failing.clone(), ..open() }),
            &["read-only file system"],
        );
        // It was opened, and keeps in memory what the disk refuses now: `/status` says so.
        check(Some(&SpoolStatus { state: failing, ..open() }), &[]);
    }
}
