//! The HTTP port: scrape, health, JSON and the page.
//!
//! Everything is read from the fleet's owner, the table of offers and the ledger's totals when it is
//! asked for; nothing here keeps anything.

mod assets;
mod events;
#[cfg(test)]
mod tests;
mod view;

use std::sync::PoisonError;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use proto::exposition::Text;
use serde::Deserialize;

use super::{Sources, prometheus};
use crate::clock;
use view::Selection;

/// Nodes on the page where it does not say how many.
const NODES_SHOWN: usize = 50;
/// Nodes and offers that one answer to the page holds at most.
const ROWS_MOST: usize = 500;
/// Bytes of a search that are looked at.
const WORDS_BYTES: usize = 100;

/// What the page asks for.
#[derive(Clone, Debug, Default, Deserialize)]
struct Asked {
    /// Part of a node's, GPU's, model's, class's or tenant's name.
    #[serde(default)]
    q: String,
    nodes: Option<usize>,
}

pub(super) fn router(sources: Sources) -> Router {
    let live = events::router(sources.clone());
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/api/v1/fleet", get(fleet))
        .route("/api/v1/offers", get(offers))
        .with_state(sources)
        .merge(live)
        .merge(assets::router())
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
    let body = text.into_body() + &sources.metrics.encode();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], body).into_response()
}

/// Ready when the fleet's owner answers.
async fn healthz(State(sources): State<Sources>) -> Response {
    match sources.state.fleet().await {
        Ok(_) => "ok\n".into_response(),
        Err(_) => stopping(),
    }
}

async fn fleet(State(sources): State<Sources>) -> Response {
    let Ok(fleet) = sources.state.fleet().await else { return stopping() };
    let policy = sources.board.read().policy();
    json(&view::fleet(&fleet, policy, &Selection::ALL, clock::boot_ns()))
}

async fn offers(State(sources): State<Sources>) -> Response {
    let (revision, mut open) = {
        let offers = sources.board.read();
        (offers.revision(), offers.open())
    };
    let position = (sources.board.generation(), revision);
    json(&view::offers(position, &mut open, &Selection::ALL, clock::boot_ns()))
}

// === impl Asked ===

impl From<Query<Asked>> for Selection {
    fn from(Query(asked): Query<Asked>) -> Self {
        let mut words = asked.q.trim().to_lowercase();
        words.truncate(words.floor_char_boundary(WORDS_BYTES));
        let nodes = asked.nodes.unwrap_or(NODES_SHOWN).min(ROWS_MOST);
        Self { words, nodes, offers: ROWS_MOST }
    }
}

fn json(value: &impl serde::Serialize) -> Response {
    let body = serde_json::to_vec(value).expect("plain values and text keys become JSON");
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (headers, body).into_response()
}

fn stopping() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "the collector is stopping\n").into_response()
}
