//! What the stream's messages mean to somebody who keeps reading. Pure.

use std::collections::BTreeMap;

use proto::capacity::v1::watch_response::Message;
use proto::capacity::v1::{Offer, Position, WatchResponse, snapshot_begin, withdrawn};

/// One thing to say.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Told {
    /// A snapshot begins; what was held is forgotten.
    Snapshot {
        address: String,
        resync: bool,
    },
    /// The snapshot was whole.
    SnapshotWas {
        offers: u32,
    },
    /// Connected again; only what was missed follows.
    Resumed {
        address: String,
    },
    Offered(Box<Offer>),
    /// An offer that is held has a new version.
    Changed(Box<Offer>),
    Withdrawn {
        id: String,
        reason: withdrawn::Reason,
        was: Option<Box<Offer>>,
    },
    /// `again` = the first one after a resumed connection.
    Heartbeat {
        offers: u32,
        held: usize,
        again: bool,
    },
    /// Nothing that is held is valid until there is a connection again.
    Lost {
        address: String,
        cause: String,
        held: usize,
    },
}

/// A reader's memory.
#[derive(Debug)]
pub(super) struct Watcher {
    address: String,
    position: Option<Position>,
    held: BTreeMap<String, Offer>,
    /// A connection was made and has said nothing yet.
    expects_first: bool,
    /// The loss of the connection was told.
    lost: bool,
    /// Resumed, and it was not said yet that everything holds again.
    resuming: bool,
    messages: u64,
}

// === impl Watcher ===

impl Watcher {
    pub(super) fn new(address: &str) -> Self {
        Self {
            address: address.to_owned(),
            position: None,
            held: BTreeMap::new(),
            expects_first: false,
            lost: false,
            resuming: false,
            messages: 0,
        }
    }

    /// Where to resume; `None` before the first message.
    pub(super) fn position(&self) -> Option<&Position> {
        self.position.as_ref()
    }

    /// How many messages came so far.
    pub(super) fn messages(&self) -> u64 {
        self.messages
    }

    pub(super) fn connected(&mut self) {
        self.expects_first = true;
    }

    /// Told once per loss, however often connecting fails after it.
    pub(super) fn lost(&mut self, cause: &str) -> Vec<Told> {
        if std::mem::replace(&mut self.lost, true) {
            return Vec::new();
        }
        let (address, cause) = (self.address.clone(), cause.to_owned());
        vec![Told::Lost { address, cause, held: self.held.len() }]
    }

    pub(super) fn message(&mut self, response: WatchResponse) -> Vec<Told> {
        let mut told = Vec::new();
        let Some(message) = response.message else { return told };
        self.messages += 1;
        self.lost = false;
        let first = std::mem::take(&mut self.expects_first);
        if first && !matches!(message, Message::SnapshotBegin(_)) {
            self.resuming = true;
            told.push(Told::Resumed { address: self.address.clone() });
        }
        told.push(self.fold(message));
        self.position = response.position.or(self.position.take());
        told
    }

    fn fold(&mut self, message: Message) -> Told {
        match message {
            Message::SnapshotBegin(it) => {
                self.held.clear();
                self.resuming = false;
                let resync = it.reason() == snapshot_begin::Reason::Resync;
                Told::Snapshot { address: self.address.clone(), resync }
            }
            Message::SnapshotEnd(it) => Told::SnapshotWas { offers: it.offers },
            Message::Offer(it) => {
                let known = self.held.insert(it.id.clone(), it.clone()).is_some();
                if known { Told::Changed(Box::new(it)) } else { Told::Offered(Box::new(it)) }
            }
            Message::Withdrawn(it) => {
                let was = self.held.remove(&it.id).map(Box::new);
                Told::Withdrawn { reason: it.reason(), id: it.id, was }
            }
            Message::Heartbeat(it) => {
                let again = std::mem::take(&mut self.resuming);
                Told::Heartbeat { offers: it.offers, held: self.held.len(), again }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Told, Watcher};
    use proto::capacity::v1::watch_response::Message;
    use proto::capacity::v1::{
        Heartbeat, Offer, Position, SnapshotBegin, SnapshotEnd, WatchResponse, Withdrawn,
        snapshot_begin::Reason, withdrawn,
    };

    fn response(revision: u64, message: Message) -> WatchResponse {
        let position = Position { generation: "g".to_owned(), revision };
        WatchResponse { position: Some(position), message: Some(message) }
    }

    fn offer(id: &str) -> Offer {
        Offer { id: id.to_owned(), ..Offer::default() }
    }

    fn begin(reason: Reason) -> Message {
        Message::SnapshotBegin(SnapshotBegin { reason: reason.into() })
    }

    fn after_snapshot() -> Watcher {
        let mut watcher = Watcher::new("there");
        watcher.connected();
        for (revision, message) in [
            (0, begin(Reason::Requested)),
            (1, Message::Offer(offer("a"))),
            (1, Message::SnapshotEnd(SnapshotEnd { offers: 1 })),
        ] {
            watcher.message(response(revision, message));
        }
        watcher
    }

    #[test]
    fn an_offer_is_new_then_changed_then_gone() {
        let mut watcher = after_snapshot();
        let changed = watcher.message(response(2, Message::Offer(offer("a"))));
        assert_eq!(changed, [Told::Changed(Box::new(offer("a")))]);
        let reason = withdrawn::Reason::Busy;
        let gone = Withdrawn { id: "a".to_owned(), reason: reason.into() };
        let gone = watcher.message(response(3, Message::Withdrawn(gone)));
        let was = Some(Box::new(offer("a")));
        assert_eq!(gone, [Told::Withdrawn { id: "a".to_owned(), reason, was }]);
        let beat = watcher.message(response(3, Message::Heartbeat(Heartbeat { offers: 0 })));
        assert_eq!(beat, [Told::Heartbeat { offers: 0, held: 0, again: false }]);
    }

    #[test]
    fn a_loss_is_told_once_and_the_position_is_kept() {
        let mut watcher = after_snapshot();
        let address = "there".to_owned();
        let lost = Told::Lost { address, cause: "cut".to_owned(), held: 1 };
        assert_eq!(watcher.lost("cut"), [lost]);
        assert_eq!(watcher.lost("refused"), []);
        assert_eq!(watcher.position().map(|it| it.revision), Some(1));
        watcher.connected();
        let back = watcher.message(response(2, Message::Offer(offer("b"))));
        let resumed = Told::Resumed { address: "there".to_owned() };
        assert_eq!(back, [resumed, Told::Offered(Box::new(offer("b")))]);
        let mut beat = || watcher.message(response(2, Message::Heartbeat(Heartbeat { offers: 2 })));
        assert_eq!(beat(), [Told::Heartbeat { offers: 2, held: 2, again: true }]);
        assert_eq!(beat(), [Told::Heartbeat { offers: 2, held: 2, again: false }]);
    }

    #[test]
    fn another_generation_starts_over() {
        let mut watcher = after_snapshot();
        watcher.connected();
        let told = watcher.message(response(0, begin(Reason::Resync)));
        assert_eq!(told, [Told::Snapshot { address: "there".to_owned(), resync: true }]);
        let beat = watcher.message(response(0, Message::Heartbeat(Heartbeat { offers: 0 })));
        assert_eq!(beat, [Told::Heartbeat { offers: 0, held: 0, again: false }]);
    }
}
