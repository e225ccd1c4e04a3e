//! A scheduler: subscribes to the idle stream and folds it as the contract in `capacity.proto` asks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use proto::capacity::v1::capacity_client::CapacityClient;
use proto::capacity::v1::watch_response::Message;
use proto::capacity::v1::withdrawn::Reason;
use proto::capacity::v1::{Offer, Position, WatchRequest, WatchResponse};
use tokio::sync::oneshot;
use tonic::transport::Endpoint;

use crate::wait::{check, eventually, now};

/// Between two attempts to reach the collector.
const RETRY: Duration = Duration::from_millis(50);

/// Stops when dropped.
#[derive(Debug)]
pub struct Scheduler {
    seen: Arc<Mutex<Seen>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// One thing that the stream said.
#[derive(Clone, Debug)]
pub struct Heard {
    pub at: Instant,
    pub message: Message,
}

#[derive(Debug, Default)]
struct Seen {
    /// With the moment until which it holds.
    offers: BTreeMap<String, (Offer, Instant)>,
    position: Option<Position>,
    /// Set by the end of a snapshot, and by a heartbeat that counts as we do.
    whole: bool,
    heard: Vec<Heard>,
    /// A heartbeat counted otherwise than this subscriber.
    miscounted: Option<String>,
}

impl Scheduler {
    pub fn subscribe(address: String) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (stop, stopped) = oneshot::channel();
        let shared = Arc::clone(&seen);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("the kernel offers epoll").block_on(async {
                tokio::select! {
                    () = follow(&address, &shared) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { seen, stop: Some(stop), thread: Some(thread) }
    }

    /// The open offers that still hold, by device UUID.
    #[track_caller]
    pub fn offers(&self) -> BTreeMap<String, Offer> {
        let seen = self.seen();
        assert_eq!(seen.miscounted, None, "after a heartbeat it holds exactly the open offers");
        let now = now();
        let valid = seen.offers.values().filter(|(_, until)| *until > now);
        valid.map(|(offer, _)| (gpu_uuid(offer).to_owned(), offer.clone())).collect()
    }

    /// Everything that was said, in order.
    pub fn heard(&self) -> Vec<Heard> {
        self.seen().heard.clone()
    }

    /// Why offers of this device were withdrawn, in order.
    pub fn withdrawals(&self, gpu_uuid: &str) -> Vec<Reason> {
        let seen = self.seen();
        let of_device = seen.heard.iter().filter_map(|it| match &it.message {
            Message::Withdrawn(it) if it.id.contains(gpu_uuid) => Some(it.reason()),
            _ => None,
        });
        of_device.collect()
    }

    #[track_caller]
    pub fn until_offered(&self, deadline: Duration, gpu_uuid: &str) -> Offer {
        eventually(deadline, &format!("{gpu_uuid} is offered"), || {
            self.offers().remove(gpu_uuid).ok_or_else(|| self.describe())
        })
    }

    #[track_caller]
    pub fn until_not_offered(&self, deadline: Duration, gpu_uuid: &str) {
        eventually(deadline, &format!("{gpu_uuid} is no longer offered"), || {
            check(!self.offers().contains_key(gpu_uuid), || self.describe())
        });
    }

    /// Waits until a snapshot has been received whole.
    #[track_caller]
    pub fn until_whole(&self, deadline: Duration) {
        eventually(deadline, "the snapshot is whole", || {
            check(self.seen().whole, || "it is not".to_owned())
        });
    }

    fn describe(&self) -> String {
        let offers = self.offers();
        let offers: Vec<String> =
            offers.iter().map(|(uuid, it)| format!("{uuid} {:?}", it.class())).collect();
        format!("offered are [{}]", offers.join(", "))
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("nothing panics while it is held")
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the subscriber does not panic");
        }
    }
}

impl Seen {
    fn hear(&mut self, response: WatchResponse) {
        if response.position.is_some() {
            self.position = response.position;
        }
        let Some(message) = response.message else { return };
        let at = now();
        match &message {
            Message::SnapshotBegin(_) => {
                self.offers.clear();
                self.whole = false;
            }
            Message::SnapshotEnd(end) => self.count(end.offers, "a snapshot's end"),
            Message::Offer(offer) => {
                let until = at + validity(offer);
                self.offers.insert(offer.id.clone(), (offer.clone(), until));
            }
            Message::Withdrawn(withdrawn) => {
                self.offers.remove(&withdrawn.id);
            }
            Message::Heartbeat(heartbeat) => {
                self.count(heartbeat.offers, "a heartbeat");
                for (offer, until) in self.offers.values_mut() {
                    *until = at + validity(offer);
                }
            }
        }
        self.heard.push(Heard { at, message });
    }

    fn count(&mut self, theirs: u32, who: &str) {
        let ours = self.offers.len();
        self.whole = true;
        if usize::try_from(theirs) != Ok(ours) {
            self.miscounted = Some(format!("{who} counts {theirs} offers, the subscriber {ours}"));
        }
    }
}

/// Follows the stream for ever, and resumes it where it broke.
async fn follow(address: &str, seen: &Mutex<Seen>) {
    loop {
        let endpoint = Endpoint::from_shared(address.to_owned()).expect("it is an address");
        if let Ok(channel) = endpoint.connect().await {
            let mut client = CapacityClient::new(channel);
            let resume = seen.lock().expect("nothing panics while it is held").position.clone();
            let request = WatchRequest { resume, classes: Vec::new() };
            if let Ok(stream) = client.watch(request).await {
                let mut stream = stream.into_inner();
                while let Ok(Some(response)) = stream.message().await {
                    seen.lock().expect("nothing panics while it is held").hear(response);
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn validity(offer: &Offer) -> Duration {
    Duration::from_millis(offer.valid_for_ms.into())
}

fn gpu_uuid(offer: &Offer) -> &str {
    &offer.instance.as_ref().expect("an offer names its instance").gpu_uuid
}

#[cfg(test)]
mod tests {
    use super::Seen;
    use proto::capacity::v1::watch_response::Message;
    use proto::capacity::v1::{
        Heartbeat, Offer, SnapshotBegin, SnapshotEnd, WatchResponse, Withdrawn,
    };

    fn hear(seen: &mut Seen, message: Message) {
        seen.hear(WatchResponse { position: None, message: Some(message) });
    }

    fn offer(id: &str) -> Message {
        Message::Offer(Offer { id: id.to_owned(), valid_for_ms: 1_000, ..Offer::default() })
    }

    #[test]
    fn a_snapshot_replaces_and_changes_add_up() {
        let mut seen = Seen::default();
        hear(&mut seen, offer("stale"));
        hear(&mut seen, Message::SnapshotBegin(SnapshotBegin::default()));
        hear(&mut seen, offer("a"));
        hear(&mut seen, Message::SnapshotEnd(SnapshotEnd { offers: 1 }));
        hear(&mut seen, offer("b"));
        hear(&mut seen, Message::Withdrawn(Withdrawn { id: "a".to_owned(), reason: 0 }));
        hear(&mut seen, Message::Heartbeat(Heartbeat { offers: 1 }));
        assert_eq!(seen.offers.keys().collect::<Vec<_>>(), ["b"]);
        assert_eq!(seen.miscounted, None);
        hear(&mut seen, Message::Heartbeat(Heartbeat { offers: 7 }));
        assert!(seen.miscounted.is_some());
    }
}
