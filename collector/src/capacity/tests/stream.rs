//! The stream: whatever happens in whatever order, a subscriber ends with what is offered.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::FutureExt;
use proptest::prelude::{Just, Strategy, prop, prop_oneof, proptest};
use proto::capacity::v1 as pb;
use proto::capacity::v1::watch_response::Message;
use proto::telemetry::v1::Class;

use super::{IDLE, POLICY};
use crate::capacity::board::Board;
use crate::capacity::offers::{Filter, Offers};
use crate::capacity::stream::{SUBSCRIBERS, Service, Subscriber};
use crate::clock;
use crate::state::fixtures::{LIMITS, SECOND, collector_ns, gone, gpu, live, tick};
use crate::state::fleet::{Change, Fleet};
use crate::state::start;

/// A scheduler that folds what it reads, at its own speed.
struct Scheduler {
    stream: Subscriber,
    filter: Filter,
    position: Option<pb::Position>,
    offers: BTreeMap<String, pb::Offer>,
    heartbeats: u32,
}

impl Scheduler {
    fn connect(service: &Service, classes: &[Class]) -> Self {
        let mut it = Self {
            stream: Self::open(service, classes, None),
            filter: Filter::of(classes.iter().copied()),
            position: None,
            offers: BTreeMap::new(),
            heartbeats: 0,
        };
        it.read(1);
        it
    }

    fn open(service: &Service, classes: &[Class], resume: Option<pb::Position>) -> Subscriber {
        let classes = classes.iter().map(|it| i32::from(*it)).collect();
        service.subscribe(&request(resume, classes)).expect("there is a place")
    }

    fn reconnect(&mut self, service: &Service, classes: &[Class]) {
        self.stream = Self::open(service, classes, self.position.clone());
    }

    /// At most `messages`; stops where it would have to wait.
    fn read(&mut self, messages: usize) {
        for _ in 0..messages {
            let Some(response) = self.stream.next().now_or_never() else {
                return;
            };
            self.fold(response.expect("the stream goes on").expect("no error"));
        }
    }

    async fn fold_next(&mut self) {
        let response = self.stream.next().await;
        self.fold(response.expect("the stream goes on").expect("no error"));
    }

    fn fold(&mut self, response: pb::WatchResponse) {
        let position = response.position.expect("every message has a position");
        match response.message.expect("every message says something") {
            Message::SnapshotBegin(_) => self.offers.clear(),
            Message::SnapshotEnd(_) => {}
            Message::Offer(it) => {
                assert!(self.filter.wants(it.class()), "an offer that was not asked for");
                self.offers.insert(it.id.clone(), it);
            }
            Message::Withdrawn(it) => {
                self.offers.remove(&it.id);
            }
            Message::Heartbeat(it) => {
                self.heartbeats += 1;
                assert_eq!(usize::try_from(it.offers).unwrap(), self.offers.len());
            }
        }
        self.position = Some(position);
    }

    fn holds(&self) -> BTreeMap<String, u64> {
        self.offers.values().map(|it| (it.id.clone(), it.version)).collect()
    }
}

/// By an owner that is not late.
fn apply(board: &Board, changes: &[Change]) {
    board.apply(changes, clock::boot_ns());
}

fn open(board: &Board, filter: Filter) -> BTreeMap<String, u64> {
    let offers = board.read().open();
    let wanted = offers.iter().filter(|it| filter.wants(it.observed().class()));
    wanted.map(|it| (it.observed().id().to_string(), it.version)).collect()
}

#[derive(Clone, Debug)]
enum Action {
    Says { node: usize, classes: Vec<Class> },
    Leaves(usize),
    Silence,
    Reads { scheduler: usize, messages: usize },
    Reconnects(usize),
}

fn steps() -> impl Strategy<Value = Vec<Action>> {
    let class = prop_oneof![
        Just(Class::Free),
        Just(Class::MemoryHeld),
        Just(Class::Stalled),
        Just(Class::Active),
        Just(Class::Unknown),
    ];
    let step = prop_oneof![
        6 => (0..3_usize, prop::collection::vec(class, 0..5))
            .prop_map(|(node, classes)| Action::Says { node, classes }),
        1 => (0..3_usize).prop_map(Action::Leaves),
        1 => Just(Action::Silence),
        6 => (0..3_usize, 0..6_usize)
            .prop_map(|(scheduler, messages)| Action::Reads { scheduler, messages }),
        1 => (0..3_usize).prop_map(Action::Reconnects),
    ];
    prop::collection::vec(step, 0..120)
}

const WANTED: [&[Class]; 3] = [&[], &[Class::Free], &[Class::MemoryHeld, Class::Stalled]];

fn check_interleaving(steps: &[Action], withdrawals: usize) {
    let board = Board::of(Offers::new(POLICY, withdrawals));
    apply(&board, &[]);
    let (state, _owner) = start(LIMITS);
    let service = Service::new(state, board.clone(), IDLE);
    let mut fleet = Fleet::new(LIMITS);
    let mut at_s = 1_000;
    let mut schedulers: Vec<_> = WANTED.iter().map(|it| Scheduler::connect(&service, it)).collect();
    for step in steps {
        at_s += 1;
        match step {
            Action::Says { node, classes } => {
                let devices = classes.iter().enumerate();
                let devices =
                    devices.map(|(it, class)| gpu(&format!("GPU-{it}"), *class, 0)).collect();
                apply(&board, &fleet.apply(live(&node.to_string(), at_s, devices)));
            }
            Action::Leaves(node) => apply(&board, &fleet.apply(gone(&node.to_string()))),
            Action::Silence => {
                at_s += 20;
                apply(&board, &fleet.apply(tick(at_s)));
            }
            Action::Reads { scheduler, messages } => schedulers[*scheduler].read(*messages),
            Action::Reconnects(it) => schedulers[*it].reconnect(&service, WANTED[*it]),
        }
    }
    let open_now = board.read().open();
    let devices: BTreeSet<_> = open_now.iter().map(|it| &it.observed().device.gpu_uuid).collect();
    assert_eq!(devices.len(), open_now.len(), "no device is offered twice");
    for scheduler in &mut schedulers {
        scheduler.read(usize::MAX);
        assert_eq!(scheduler.holds(), open(&board, scheduler.filter));
        assert!(scheduler.heartbeats > 0, "it was told that it holds everything");
    }
}

proptest! {
    #[test]
    fn a_subscriber_of_any_speed_ends_with_the_table(steps in steps(), withdrawals in 0..20_usize) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime needs no privilege");
        let _entered = runtime.enter();
        check_interleaving(&steps, withdrawals);
    }
}

fn market_service() -> (Service, Board) {
    let board = Board::of(Offers::new(POLICY, 10));
    apply(&board, &[]);
    (Service::new(start(LIMITS).0, board.clone(), IDLE), board)
}

fn request(resume: Option<pb::Position>, classes: Vec<i32>) -> pb::WatchRequest {
    pb::WatchRequest { resume, classes }
}

fn check_first(resume: Option<pb::Position>, expected: pb::snapshot_begin::Reason) {
    let (service, _board) = market_service();
    let mut stream = Scheduler::open(&service, &[], resume);
    let first = stream.next().now_or_never().flatten().and_then(Result::ok);
    let begin = pb::SnapshotBegin { reason: expected.into() };
    assert_eq!(first.and_then(|it| it.message), Some(Message::SnapshotBegin(begin)));
}

#[tokio::test]
async fn a_position_from_elsewhere_leads_to_a_snapshot() {
    use pb::snapshot_begin::Reason::{Requested, Resync};
    check_first(None, Requested);
    check_first(Some(pb::Position { generation: "another".to_owned(), revision: 0 }), Resync);
}

#[tokio::test]
async fn ages_are_those_of_the_moment_of_sending() {
    let (service, board) = market_service();
    apply(&board, &Fleet::new(LIMITS).apply(live("n", 200, vec![gpu("GPU-1", Class::Free, 50)])));
    let mut scheduler = Scheduler::connect(&service, &[]);
    scheduler.read(usize::MAX);
    let offer = &scheduler.offers["n/GPU-1"];
    assert_eq!((offer.valid_for_ms, offer.dwell_ms), (30_000, 0));
    let now_ms = clock::boot_ns() / 1_000_000;
    let expected = now_ms.saturating_sub(collector_ns(200) / 1_000_000) + 150_000;
    assert!(offer.idle_age_ms.abs_diff(expected) < 5_000, "{offer:?}");
}

#[tokio::test(start_paused = true)]
async fn a_quiet_stream_is_kept_alive_and_wakes_up_at_once() {
    let (service, board) = market_service();
    let mut scheduler = Scheduler::connect(&service, &[]);
    scheduler.read(usize::MAX);
    assert_eq!(scheduler.heartbeats, 1, "the snapshot was empty, and that is known");
    scheduler.fold_next().await;
    assert_eq!(scheduler.heartbeats, 2);
    apply(&board, &Fleet::new(LIMITS).apply(live("n", 200, vec![gpu("GPU-1", Class::Free, 0)])));
    let before = tokio::time::Instant::now();
    scheduler.fold_next().await;
    assert_eq!((scheduler.holds().len(), before.elapsed()), (1, Duration::ZERO));
}

#[tokio::test]
async fn places_are_limited_and_given_back() {
    let (service, _board) = market_service();
    let watch = request(None, Vec::new());
    let mut all: Vec<_> = (0..SUBSCRIBERS).map_while(|_| service.subscribe(&watch)).collect();
    assert_eq!(all.len(), SUBSCRIBERS);
    assert!(service.subscribe(&watch).is_none());
    all.pop();
    assert!(service.subscribe(&watch).is_some());
}

#[tokio::test]
async fn a_closing_board_ends_its_streams() {
    let (service, board) = market_service();
    let mut stream = Scheduler::open(&service, &[], None);
    board.close();
    let error = stream.next().await.expect("a last word").expect_err("that says why");
    assert_eq!(error.code(), tonic::Code::Unavailable);
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn nothing_is_said_while_silence_goes_unnoticed() {
    let (service, board) = market_service();
    let free = live("n", 200, vec![gpu("GPU-1", Class::Free, 0)]);
    board.apply(&Fleet::new(LIMITS).apply(free), clock::boot_ns().saturating_sub(4 * SECOND));
    let mut scheduler = Scheduler::connect(&service, &[]);
    scheduler.read(usize::MAX);
    assert_eq!((scheduler.position.clone(), scheduler.heartbeats), (None, 0));
    apply(&board, &[]);
    scheduler.fold_next().await;
    scheduler.read(usize::MAX);
    assert_eq!((scheduler.holds().len(), scheduler.heartbeats), (1, 1));
}
