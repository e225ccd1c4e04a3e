//! The live lane: the newest readings, as soon as there are newer ones.
//!
//! Nothing queues: the stream hands out the value of the moment when the connection has room for
//! it, and what a slow collector did not see is gone. Its end is no harm to the durable lane.

use futures_util::{Stream, StreamExt as _, future};
use proto::telemetry::v1::LiveUpdate;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::Status;
use tracing::{info, warn};

use super::backoff::Backoff;
use super::link::{LinkState, shown};
use super::{FINISH_WITHIN, Lane, stopped};
use crate::clock;

/// Attempts that fail at once, one after the other, before it is said: fewer are a collector that
/// restarts, which the durable lane says already.
const SAID_AFTER: u32 = 3;

/// Sends until the agent stops. `welcomes` wakes it: a collector that welcomed the durable lane is
/// back for this one too.
pub(super) async fn run(mut lane: Lane, mut welcomes: watch::Receiver<LinkState>) {
    let mut backoff = Backoff::new(lane.pace.retry, fastrand::Rng::new());
    let mut failures = Failures::default();
    loop {
        let begun = clock::boot();
        let Some(end) = stream(&mut lane).await else { return };
        if u128::from(clock::boot().since(begun)) >= lane.pace.proven.as_nanos() {
            backoff.reset();
            failures.none();
        }
        failures.note(&end, welcomes.borrow_and_update().connected);
        let connects = welcomes.borrow().counters.connects;
        let came_back = welcomes.wait_for(|it| it.connected && it.counters.connects != connects);
        tokio::select! {
            () = stopped(&mut lane.shutdown) => return,
            () = tokio::time::sleep(backoff.next()) => {}
            Ok(_) = came_back => {}
        }
    }
}

/// One stream. `None` once the agent stops: the end of the stream was ours, and the collector had
/// its chance to answer.
async fn stream(lane: &mut Lane) -> Option<Result<(), Status>> {
    let request = lane.client.live(updates(lane.live.clone(), lane.shutdown.clone()));
    let overdue = async {
        stopped(&mut lane.shutdown).await;
        tokio::time::sleep(FINISH_WITHIN).await;
    };
    let end = tokio::select! {
        end = request => end.map(drop),
        () = overdue => return None,
    };
    (!*lane.shutdown.borrow()).then_some(end)
}

/// The newest value at each time it is asked for; ends when the agent stops.
fn updates(
    live: watch::Receiver<Option<LiveUpdate>>,
    mut shutdown: watch::Receiver<bool>,
) -> impl Stream<Item = LiveUpdate> + Send + 'static {
    WatchStream::new(live)
        .filter_map(future::ready)
        .take_until(Box::pin(async move { stopped(&mut shutdown).await }))
}

/// Says that the live lane does not work, once, where nothing else says it.
#[derive(Debug, Default)]
struct Failures {
    in_a_row: u32,
    said: bool,
}

impl Failures {
    fn none(&mut self) {
        if self.said {
            info!("the collector takes live readings again");
        }
        *self = Self::default();
    }

    fn note(&mut self, end: &Result<(), Status>, connected: bool) {
        self.in_a_row = self.in_a_row.saturating_add(1);
        if connected && self.in_a_row >= SAID_AFTER && !self.said {
            self.said = true;
            let why = match end {
                Ok(()) => "it ends the stream".to_owned(),
                Err(status) => shown(status.message()),
            };
            warn!(
                "the collector takes usage and no live readings ({why}): it shows this node as \
                 silent and offers nothing of it; usage is not affected; retrying"
            );
        }
    }
}
