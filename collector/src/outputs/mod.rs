//! What the collector shows: Prometheus text and the web page. Reads state, changes nothing.

pub mod prometheus;
pub mod usage;
pub mod web;

use std::sync::{Arc, RwLock};

use axum::Router;
use proto::family::Table;

use crate::capacity::board::Board;
use crate::ledger::totals::Totals;
use crate::metrics::{self, Metrics};
use crate::state::StateHandle;

/// Where the outputs read. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sources {
    pub state: StateHandle,
    pub board: Board,
    pub totals: Arc<RwLock<Totals>>,
    /// Of this process.
    pub metrics: Metrics,
    /// The port that agents connect to, as it was really bound.
    pub grpc_port: u16,
}

/// Everything on the HTTP port: `/`, `/metrics`, `/healthz`, `/api/v1/…`.
pub fn router(sources: Sources) -> Router {
    web::router(sources)
}

/// Every family that only a collector serves.
#[must_use]
pub fn tables() -> Vec<Table> {
    [prometheus::tables(), vec![metrics::table()]].concat()
}
