//! Which stream of a node is its newest, on each lane.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use crate::model::ids::NodeKey;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Lane {
    Durable,
    Live,
}

/// Shared by all streams. One short lock when a stream begins or ends; never per message.
#[derive(Clone, Debug, Default)]
pub(super) struct Lanes(Arc<Mutex<HashMap<(NodeKey, Lane), Newest>>>);

#[derive(Debug)]
struct Newest {
    rank: u64,
    /// Dropped when a later stream takes over.
    _notice: oneshot::Sender<()>,
}

/// A stream's place. Resolves when a later stream of the node takes over.
#[derive(Debug)]
pub(super) struct Place {
    key: (NodeKey, Lane),
    rank: u64,
    notice: oneshot::Receiver<()>,
}

impl Lanes {
    /// The stream of the highest `rank` is the newest: the epoch on the durable lane, a count on the
    /// live one.
    pub(super) fn enter(&self, node: NodeKey, lane: Lane, rank: u64) -> Place {
        let (notice, receiver) = oneshot::channel();
        let mut lanes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (node, lane);
        if lanes.get(&key).is_none_or(|it| it.rank < rank) {
            lanes.insert(key.clone(), Newest { rank, _notice: notice });
        }
        Place { key, rank, notice: receiver }
    }

    /// Whether the stream was the newest of its node.
    pub(super) fn leave(&self, place: &Place) -> bool {
        let mut lanes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = lanes.get(&place.key).is_some_and(|it| it.rank == place.rank);
        if newest {
            lanes.remove(&place.key);
        }
        newest
    }
}

impl Place {
    pub(super) fn node(&self) -> &NodeKey {
        &self.key.0
    }

    pub(super) async fn superseded(&mut self) {
        // Nobody sends: the channel closes when a later stream takes the place.
        if (&mut self.notice).await.is_ok() {
            tracing::debug!("a place on a lane was given up by a message");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Lane, Lanes};
    use crate::model::ids::NodeKey;

    fn node(name: &str) -> NodeKey {
        NodeKey { cluster: "c".to_owned(), node: name.to_owned() }
    }

    #[tokio::test]
    async fn a_later_stream_takes_over() {
        let lanes = Lanes::default();
        let mut first = lanes.enter(node("a"), Lane::Durable, 1);
        let live = lanes.enter(node("a"), Lane::Live, 7);
        let second = lanes.enter(node("a"), Lane::Durable, 2);
        first.superseded().await;
        assert!(!lanes.leave(&first));
        assert!(lanes.leave(&second));
        assert!(lanes.leave(&live));
        assert!(!lanes.leave(&live));
    }

    #[tokio::test]
    async fn an_earlier_stream_that_comes_late_is_superseded_at_once() {
        let lanes = Lanes::default();
        let newest = lanes.enter(node("a"), Lane::Durable, 2);
        let mut late = lanes.enter(node("a"), Lane::Durable, 1);
        late.superseded().await;
        assert!(!lanes.leave(&late));
        assert!(lanes.leave(&newest));
    }
}
