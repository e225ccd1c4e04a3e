//! The agent's own HTTP port: `/metrics`, `/status`, `/healthz`. Read only.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::watch;

use crate::metrics::{self, Snapshot, own::Own};
use crate::status::Status;

/// What the loop publishes after each reading. Cheap to share; rendered only when asked for.
#[derive(Clone, Debug)]
pub struct Published {
    pub status: Status,
    pub snapshot: Snapshot,
}

/// `None` until the first reading.
pub type Latest = watch::Receiver<Option<Arc<Published>>>;

#[derive(Clone, Debug)]
struct Pages {
    latest: Latest,
    own: Own,
}

pub fn router(latest: Latest, own: Own) -> Router {
    Router::new()
        .route("/metrics", get(serve_metrics))
        .route("/status", get(serve_status))
        .route("/healthz", get(serve_health))
        .with_state(Pages { latest, own })
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
        None => not_yet(),
    }
}

/// Healthy means that the loop turns. A missing driver or collector is in `/status`: restarting the
/// agent would not bring it.
async fn serve_health(State(pages): State<Pages>) -> Response {
    if pages.latest.borrow().is_some() { "ok\n".into_response() } else { not_yet() }
}

fn not_yet() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "no reading yet, ask again in a second\n").into_response()
}
