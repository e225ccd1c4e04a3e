//! The live lane: the newest readings, as soon as there are newer ones.
//!
//! Nothing queues: the stream hands out the value of the moment when the connection has room for
//! it, and what a slow collector did not see is gone. Its end is no harm to the durable lane.

use std::pin::pin;

use futures_util::{Stream, StreamExt as _, future};
use proto::telemetry::v1::LiveUpdate;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_stream::wrappers::WatchStream;
use tonic::Status;
use tracing::{info, warn};

use super::backoff::Backoff;
use super::link::{LinkState, shown};
use super::{FINISH_WITHIN, Lane, stopped};

/// Streams that end within one session of the durable lane before it is said: fewer are a collector
/// that goes away, which the durable lane says.
const SAID_AFTER: u32 = 3;

/// Sends until the agent stops. `welcomes` wakes it: a collector that welcomed the durable lane is
/// back for this one too.
pub(super) async fn run(mut lane: Lane, mut welcomes: watch::Receiver<LinkState>) {
    let mut backoff = Backoff::new(lane.pace.retry, fastrand::Rng::new());
    let mut failures = Failures::default();
    // A collector ends a stream that says nothing.
    tokio::select! {
        () = stopped(&mut lane.shutdown) => return,
        first = lane.live.wait_for(Option::is_some) => drop(first),
    }
    loop {
        let proven = || {
            backoff.reset();
            failures.none();
        };
        let Some(end) = attempt(&mut lane, proven).await else { return };
        let link = welcomes.borrow_and_update().clone();
        failures.note(&end, &link);
        let connects = link.counters.connects;
        let came_back = welcomes.wait_for(|it| it.connected && it.counters.connects != connects);
        tokio::select! {
            () = stopped(&mut lane.shutdown) => return,
            () = tokio::time::sleep(backoff.next()) => {}
            Ok(_) = came_back => {}
        }
    }
}

/// One stream, and a word when it has stood for long enough.
async fn attempt(lane: &mut Lane, proven: impl FnOnce()) -> Option<Result<(), Status>> {
    let after = lane.pace.proven;
    let mut stream = pin!(stream(lane));
    if let Ok(end) = timeout(after, &mut stream).await {
        return end;
    }
    proven();
    stream.await
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
    /// The session of the durable lane in which they happened.
    session: u64,
    count: u32,
    said: bool,
}

impl Failures {
    fn none(&mut self) {
        if self.said {
            info!("the collector takes live readings again");
        }
        *self = Self::default();
    }

    fn note(&mut self, end: &Result<(), Status>, link: &LinkState) {
        if !link.connected || link.counters.connects != self.session {
            self.session = link.counters.connects;
            self.count = 0;
        }
        self.count = self.count.saturating_add(1);
        if link.connected && self.count >= SAID_AFTER && !self.said {
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

#[cfg(test)]
mod tests {
    use super::{Failures, LinkState};

    /// Whether it is said after one more stream that ended in this session.
    fn said(failures: &mut Failures, connected: bool, connects: u64) -> bool {
        let mut link = LinkState::unconnected("");
        link.connected = connected;
        link.counters.connects = connects;
        failures.note(&Ok(()), &link);
        failures.said
    }

    #[test]
    fn only_a_live_lane_that_fails_alone_is_said() {
        let mut failures = Failures::default();
        let mut attempts = |connected, connects, count: u32| {
            (0..count).any(|_| said(&mut failures, connected, connects))
        };
        assert!(!attempts(false, 0, 9), "no collector at all");
        assert!(!attempts(true, 1, 1), "it went away");
        assert!(!attempts(true, 2, 2), "and again");
        assert!(!attempts(false, 2, 5));
        assert!(attempts(true, 3, 3));
    }
}
