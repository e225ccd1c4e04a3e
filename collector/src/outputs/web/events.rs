//! `/api/v1/events`: what the page shows, again and again.
//!
//! Each client gets the newest picture when its connection takes it: one that reads slowly gets fewer
//! pictures, and none is queued for it.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::{Stream, stream};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};

use super::view::{self, Selection};
use super::{Asked, Sources};
use crate::capacity::board::Sign;
use crate::clock;

/// Pages that are open at a time. Past it, a new one is refused with a text.
const CLIENTS: usize = 64;
/// Between two pictures when no offer changes: ages and readings move on.
const PERIOD: Duration = Duration::from_secs(1);
/// Between two pictures at least, however much changes.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Clone, Debug)]
struct Live {
    sources: Sources,
    places: Arc<Semaphore>,
}

/// One open page.
struct Client {
    sources: Sources,
    selection: Selection,
    sign: watch::Receiver<Sign>,
    period: Interval,
    /// Held for as long as the page is open.
    _place: OwnedSemaphorePermit,
}

#[derive(Serialize)]
struct Picture<'a> {
    /// The port that agents connect to.
    grpc_port: u16,
    fleet: view::Fleet<'a>,
    offers: view::Offers<'a>,
}

pub(super) fn router(sources: Sources) -> Router {
    let live = Live { sources, places: Arc::new(Semaphore::new(CLIENTS)) };
    Router::new().route("/api/v1/events", get(events)).with_state(live)
}

async fn events(State(live): State<Live>, asked: Query<Asked>) -> Response {
    let Ok(place) = Arc::clone(&live.places).try_acquire_owned() else {
        let text = format!("{CLIENTS} pages are open already; close one and reload\n");
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    };
    Sse::new(pictures(Client::new(live.sources, asked.into(), place))).into_response()
}

fn pictures(client: Client) -> Pin<Box<dyn Stream<Item = Result<Event, Infallible>> + Send>> {
    Box::pin(stream::unfold(client, |mut it| async move {
        let event = it.next().await?;
        Some((Ok(event), it))
    }))
}

// === impl Client ===

impl Client {
    fn new(sources: Sources, selection: Selection, place: OwnedSemaphorePermit) -> Self {
        let mut period = interval(PERIOD);
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { sign: sources.board.watch(), sources, selection, period, _place: place }
    }

    /// `None` when the collector is stopping.
    async fn next(&mut self) -> Option<Event> {
        tokio::select! {
            _ = self.period.tick() => {}
            // The sender lives as long as the board, so this ends with news only.
            _ = self.sign.changed() => sleep(PAUSE).await,
        }
        if self.sign.borrow_and_update().closed {
            return None;
        }
        let fleet = self.sources.state.fleet().await.ok()?;
        let (policy, revision, mut open) = {
            let offers = self.sources.board.read();
            (offers.policy(), offers.revision(), offers.open())
        };
        let now_ns = clock::boot_ns();
        let position = (self.sources.board.generation(), revision);
        let picture = Picture {
            grpc_port: self.sources.grpc_port,
            fleet: view::fleet(&fleet, policy, &self.selection, now_ns),
            offers: view::offers(position, &mut open, &self.selection, now_ns),
        };
        Event::default().event("picture").json_data(picture).ok()
    }
}
