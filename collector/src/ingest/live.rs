//! The live lane of one agent: every update goes to `state`, where it replaces the one before.

use std::sync::atomic::Ordering;

use proto::telemetry::v1::{LiveSummary, LiveUpdate};
use tokio::time::timeout;
use tonic::{Status, Streaming};

use crate::clock;
use crate::ingest::lanes::{Lane, Place};
use crate::ingest::{FIRST_MESSAGE_WITHIN, Shared, decode};
use crate::model::ids::NodeKey;
use crate::state::Event;

/// Until the agent ends the stream, or another stream of the node replaces it.
pub(super) async fn run(
    shared: &Shared,
    mut updates: Streaming<LiveUpdate>,
) -> Result<LiveSummary, Status> {
    let open = shared.metrics.streams.with_label_values(&["live"]);
    open.inc();
    let end = follow(shared, &mut updates).await;
    open.dec();
    end
}

async fn follow(
    shared: &Shared,
    updates: &mut Streaming<LiveUpdate>,
) -> Result<LiveSummary, Status> {
    let first = timeout(FIRST_MESSAGE_WITHIN, updates.message())
        .await
        .map_err(|_late| Status::deadline_exceeded("there was no update within 10 s"))??;
    let Some(first) = first else { return Ok(LiveSummary { updates: 0 }) };
    let node = node(shared, &first)?;
    let rank = shared.live_streams.fetch_add(1, Ordering::Relaxed);
    let mut place = shared.lanes.enter(node, Lane::Live, rank);
    let end = forward(shared, updates, &mut place, first).await;
    if shared.lanes.leave(&place) {
        shared.state.send(Event::Gone { node: place.node().clone() }).await;
    }
    end
}

async fn forward(
    shared: &Shared,
    updates: &mut Streaming<LiveUpdate>,
    place: &mut Place,
    first: LiveUpdate,
) -> Result<LiveSummary, Status> {
    let mut update = first;
    let mut count = 0;
    loop {
        count += 1;
        shared.metrics.live_updates.inc();
        let node = place.node().clone();
        let (update_now, received_ns) = (Box::new(decode::live(update)), clock::boot_ns());
        shared.state.send(Event::Live { node, update: update_now, received_ns }).await;
        let next = tokio::select! {
            biased;
            () = place.superseded() => {
                return Err(Status::aborted("another live stream of this node began later"));
            }
            next = updates.message() => next?,
        };
        let Some(next) = next else { return Ok(LiveSummary { updates: count }) };
        if node_of(shared, &next).as_ref() != Ok(place.node()) {
            shared.metrics.malformed_updates.inc();
            return Err(Status::invalid_argument("the node changed within a live stream"));
        }
        update = next;
    }
}

fn node(shared: &Shared, update: &LiveUpdate) -> Result<NodeKey, Status> {
    node_of(shared, update).map_err(|malformed| {
        shared.metrics.malformed_updates.inc();
        Status::invalid_argument(format!("{malformed}; nothing of the update was used"))
    })
}

fn node_of(shared: &Shared, update: &LiveUpdate) -> Result<NodeKey, decode::Malformed> {
    decode::node(update.node.as_ref().unwrap_or(&Default::default()), &shared.cluster)
}
