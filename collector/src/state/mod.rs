//! What every node said last, and for how long.
//!
//! `fleet` and `node` are pure: events in, changes out. The task here owns them, takes events and
//! requests through one bounded channel, and hands changes on. Nothing else holds the fleet, so there is
//! no lock. What is kept for good is the ledger's business, not this module's.

pub mod bounds;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod fleet;
pub mod node;

use std::sync::Arc;

use proto::telemetry::v1::LiveUpdate;
use tokio::sync::{mpsc, oneshot};

use crate::model::ids::NodeKey;
use fleet::{Change, Fleet, FleetSnapshot, Limits};

/// Events that wait for the owner; a sender waits when it is full, which slows its stream down.
const QUEUE: usize = 1024;

/// Everything that can happen to the fleet. Times are the collector's CLOCK_BOOTTIME nanoseconds.
#[derive(Debug)]
pub enum Event {
    /// The newest readings of a node; they replace the earlier ones whole.
    Live { node: NodeKey, update: Box<LiveUpdate>, received_ns: u64 },
    /// The node's newest live stream has ended. Not to be sent for a stream that another one of the
    /// same node has replaced.
    Gone { node: NodeKey },
    /// About once per second; silence is noticed here.
    Tick { now_ns: u64 },
}

/// The owner task has ended, which it does only when the collector stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the collector is stopping")]
pub struct Stopped;

/// The way to the owner task. Cheap to clone; the task ends with its last handle.
#[derive(Clone, Debug)]
pub struct StateHandle {
    requests: mpsc::Sender<Request>,
}

/// The task that owns the fleet; `run` it.
#[derive(Debug)]
pub struct Owner {
    fleet: Fleet,
    requests: mpsc::Receiver<Request>,
}

#[derive(Debug)]
enum Request {
    Event(Event),
    Fleet(oneshot::Sender<Arc<FleetSnapshot>>),
}

/// An empty fleet: the handle for everybody, the owner for the task.
#[must_use]
pub fn start(limits: Limits) -> (StateHandle, Owner) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    (StateHandle { requests: sender }, Owner { fleet: Fleet::new(limits), requests: receiver })
}

// === impl StateHandle ===

impl StateHandle {
    /// Waits while the owner is behind. After the owner's end there is nobody left to tell, and the
    /// event is dropped.
    pub async fn send(&self, event: Event) {
        if self.requests.send(Request::Event(event)).await.is_err() {
            tracing::debug!("an event came after the fleet's owner had stopped");
        }
    }

    /// The fleet after every event that was sent before.
    pub async fn fleet(&self) -> Result<Arc<FleetSnapshot>, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Fleet(reply)).await.map_err(|_closed| Stopped)?;
        answer.await.map_err(|_closed| Stopped)
    }
}

// === impl Owner ===

impl Owner {
    /// Until every handle is dropped. `after_event` runs here, in order, with what changed and the time
    /// of the newest tick (0 before the first), and must not block.
    pub async fn run(mut self, mut after_event: impl FnMut(&[Change], u64)) {
        while let Some(request) = self.requests.recv().await {
            match request {
                Request::Event(event) => {
                    let changes = self.fleet.apply(event);
                    after_event(&changes, self.fleet.ticked_ns());
                }
                Request::Fleet(reply) => {
                    if reply.send(self.fleet.snapshot()).is_err() {
                        tracing::debug!("a reader of the fleet left before its answer");
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fixtures::{LIMITS, live};
    use super::{Stopped, start};

    #[tokio::test]
    async fn a_reader_sees_what_was_sent_before() {
        let (state, owner) = start(LIMITS);
        let task = async {
            let mut changes = 0;
            owner.run(|batch, _| changes += batch.len()).await;
            changes
        };
        let client = async move {
            state.send(live("a", 1, Vec::new())).await;
            state.send(live("b", 1, Vec::new())).await;
            state.fleet().await.unwrap().nodes.len()
        };
        assert_eq!(tokio::join!(task, client), (2, 2));
    }

    #[tokio::test]
    async fn without_an_owner_there_is_no_fleet() {
        let (state, owner) = start(LIMITS);
        drop(owner);
        state.send(live("a", 1, Vec::new())).await;
        assert_eq!(state.fleet().await.unwrap_err(), Stopped);
    }
}
