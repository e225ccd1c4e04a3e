//! The HTTP port: scrape, health, JSON and the page.
//!
//! Everything is read from the fleet's owner, the table of offers and the ledger's totals when it is
//! asked for; nothing here keeps anything.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use proto::exposition::Text;
use std::sync::PoisonError;

use super::{Sources, prometheus};
use crate::clock;

pub(super) fn router(sources: Sources) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .with_state(sources)
}

async fn metrics(State(sources): State<Sources>) -> Response {
    let Ok(fleet) = sources.state.fleet().await else { return stopping() };
    let mut text = Text::default();
    prometheus::write_fleet(&mut text, &fleet, clock::boot_ns());
    let open = sources.board.read().open_by_class().clone();
    prometheus::write_offers(&mut text, &open);
    let totals = sources.totals.read().unwrap_or_else(PoisonError::into_inner);
    prometheus::write_totals(&mut text, &totals);
    drop(totals);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text.into_body())
        .into_response()
}

/// Ready when the fleet's owner answers.
async fn healthz(State(sources): State<Sources>) -> Response {
    match sources.state.fleet().await {
        Ok(_) => "ok\n".into_response(),
        Err(_) => stopping(),
    }
}

fn stopping() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "the collector is stopping\n").into_response()
}
