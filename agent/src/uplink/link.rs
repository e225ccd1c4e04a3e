//! What the agent says about its connection: the state for `/status` and metrics, and one log line
//! per change of it.
//!
//! Texts of a collector are escaped and cut before they are shown, and never interpreted.

use std::fmt;

use tokio::sync::watch;
use tracing::{info, warn};

use super::session::{End, Refusal, Standing};
use crate::clock;
use crate::model::units::BootNs;
use crate::spool::{SpoolState, SpoolStatus};

/// Characters of a foreign text that are shown, at most.
const SHOWN_CHARS: usize = 300;

/// The connection to the collector, as people and metrics see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkState {
    /// The collector welcomed this agent and the stream stands.
    pub connected: bool,
    /// Of the ledger that welcomed last; `None` = none did since the agent started.
    pub ledger_id: Option<Vec<u8>>,
    /// When `connected` last changed.
    pub since: BootNs,
    /// The state in a sentence.
    pub message: String,
    pub counters: Counters,
}

/// Since the agent started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Sessions that were welcomed.
    pub connects: u64,
    /// Batches sent, repeats included.
    pub batches: u64,
    pub records_acked: u64,
    pub resumes: u64,
    pub rejects: u64,
}

/// Usage that no collector has acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) records: u64,
    /// Nothing was lost and the disk takes it; where that is not so, the spool says it itself.
    whole: bool,
}

/// Owns the state. Logs when it changes in kind, not when only a figure does.
#[derive(Debug)]
pub(super) struct Link {
    address: String,
    state: watch::Sender<LinkState>,
    /// The kind of state that was logged last.
    said: Option<Kind>,
    /// A session that was not logged, because the one before failed after its Welcome too: it is
    /// news once it takes a record.
    unproven: Option<Connection>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Connection {
    /// The ledger's id in hex.
    ledger: String,
    standing: Standing,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Connected(Connection),
    Lost,
    Violation(String),
    Refused(i32),
    Spool,
    Renumbered,
}

// === impl LinkState ===

impl LinkState {
    /// Before the first attempt, or for good where no collector is configured; `message` says which.
    #[must_use]
    pub fn unconnected(message: impl Into<String>) -> Self {
        Self {
            connected: false,
            ledger_id: None,
            since: clock::boot(),
            message: message.into(),
            counters: Counters::default(),
        }
    }
}

// === impl Link ===

impl Link {
    pub(super) fn new(address: String, state: watch::Sender<LinkState>) -> Self {
        let message = format!("connecting to {address}");
        state.send_modify(|it| it.message = message);
        Self { address, state, said: None, unproven: None }
    }

    /// A session began; `waiting` records are in the spool.
    pub(super) fn connected(&mut self, ledger_id: &[u8], standing: Standing, waiting: u64) {
        let connection = Connection { ledger: hex::encode(ledger_id), standing };
        let message = format!("connected to {}, ledger {}", self.address, connection.ledger);
        if matches!(self.said, None | Some(Kind::Connected(_) | Kind::Lost)) {
            self.announce(connection, &format!("{message}; {waiting} records to send"));
        } else {
            self.unproven = Some(connection);
        }
        self.state.send_modify(|it| {
            it.connected = true;
            it.ledger_id = Some(ledger_id.to_vec());
            it.since = clock::boot();
            it.message = message;
            it.counters.connects += 1;
        });
    }

    /// The collector committed `records` more.
    pub(super) fn acked(&mut self, records: u64) {
        if let Some(connection) = self.unproven.take() {
            self.announce(connection, &format!("{} takes usage again", self.address));
        }
        self.count(|it| it.records_acked += records);
    }

    /// A session, or the attempt at one, is over.
    pub(super) fn ended(&mut self, end: &End, kept: &Kept) {
        self.unproven = None;
        let message = match self.described(end, kept) {
            Some((kind, message)) => {
                if self.is_news(kind) {
                    warn!("{message}");
                }
                message
            }
            None => format!("the agent stops; {} records wait in the spool", kept.records),
        };
        self.state.send_modify(|it| {
            if std::mem::take(&mut it.connected) {
                it.since = clock::boot();
            }
            it.message = message;
        });
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut Counters)) {
        self.state.send_modify(|it| change(&mut it.counters));
    }

    fn announce(&mut self, connection: Connection, message: &str) {
        let remark = connection.remark();
        if self.is_news(Kind::Connected(connection)) {
            info!("{message}");
            if let Some(remark) = remark {
                warn!("{remark}");
            }
        }
    }

    fn is_news(&mut self, kind: Kind) -> bool {
        let known = self.said.as_ref() == Some(&kind);
        self.said = Some(kind);
        !known
    }

    /// `None` for an end that was wanted.
    fn described(&self, end: &End, kept: &Kept) -> Option<(Kind, String)> {
        let address = &self.address;
        Some(match end {
            End::Finished => return None,
            End::Lost(why) => {
                let what = if self.state.borrow().connected { "lost" } else { "no" };
                let why = shown(why);
                (Kind::Lost, format!("{what} collector at {address} ({why}): {kept}; retrying"))
            }
            End::Violation(why) => (
                Kind::Violation(why.clone()),
                format!(
                    "what answers at {address} does not keep to the protocol: {}; {kept}; \
                     check that agent and collector are of one release; retrying",
                    shown(why)
                ),
            ),
            End::Rejected(it) => {
                (Kind::Refused(it.code.into()), format!("{address} {}; {kept}", refused(it)))
            }
            End::Spool(why) => (
                Kind::Spool,
                format!("delivery starts again, because of the spool: {}", shown(why)),
            ),
            End::Renumber { why, .. } => (
                Kind::Renumbered,
                format!(
                    "the spool begins a new sequence, because {}; its {} records are sent under new \
                     numbers",
                    shown(why),
                    kept.records
                ),
            ),
        })
    }
}

// === impl Kept ===

impl Kept {
    pub(super) fn of(spool: &SpoolStatus) -> Self {
        let stored = spool.open.as_ref().map_or(0, |it| it.unsent_records);
        Self {
            records: stored + spool.held_records,
            whole: spool.lost_records == 0 && spool.state == SpoolState::Writing,
        }
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "usage is kept in the spool ({} records)", self.records)?;
        if self.whole { f.write_str(", nothing is lost") } else { Ok(()) }
    }
}

fn refused(refusal: &Refusal) -> String {
    format!(
        "refuses usage ({}): {}; {}",
        refusal.code.as_str_name().to_ascii_lowercase(),
        shown(&refusal.reason),
        shown(&refusal.what_to_do)
    )
}

// === impl Connection ===

impl Connection {
    /// What is remarkable about the ledger.
    fn remark(&self) -> Option<String> {
        let ledger = &self.ledger;
        Some(match self.standing {
            Standing::Whole => return None,
            Standing::New { cursor, acknowledged } => format!(
                "ledger {ledger} is not the one that acknowledged through {acknowledged}: it has \
                 through {cursor}; what the spool still has after that is sent"
            ),
            Standing::Regressed { cursor, acknowledged } => format!(
                "ledger {ledger} ends at {cursor} and had acknowledged {acknowledged}: it was \
                 restored from an older copy or its storage was damaged; what the spool still has \
                 after {cursor} is sent again"
            ),
            Standing::Ahead { cursor, sealed } => format!(
                "ledger {ledger} has records of this spool through {cursor}, the spool ends at \
                 {sealed}: the spool was restored from an older copy; it goes on under a new name"
            ),
        })
    }
}

/// One line, printable, of bounded length.
pub(super) fn shown(text: &str) -> String {
    let mut characters = text.chars();
    let mut line = String::new();
    for it in characters.by_ref().take(SHOWN_CHARS) {
        if it.is_control() {
            line.extend(it.escape_default());
        } else {
            line.push(it);
        }
    }
    if characters.next().is_some() {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::{any, proptest};
    use proto::telemetry::v1::reject::Code;
    use tokio::sync::watch;

    use super::{Kept, Kind, Link, LinkState, SHOWN_CHARS, shown};
    use crate::spool::{SpoolId, SpoolState, SpoolStatus};
    use crate::uplink::session::{End, Refusal, Standing};

    proptest! {
        #[test]
        fn foreign_texts_stay_on_one_short_line(text in any::<String>()) {
            let line = shown(&text);
            assert!(!line.chars().any(char::is_control));
            // The longest escape of one character is `\u{10ffff}`.
            assert!(line.chars().count() <= 10 * SHOWN_CHARS + 1);
        }
    }

    fn kept(records: u64) -> Kept {
        Kept::of(&SpoolStatus { held_records: records, ..SpoolStatus::default() })
    }

    fn message(state: &watch::Receiver<LinkState>) -> String {
        state.borrow().message.clone()
    }

    #[test]
    fn the_state_says_what_happened_and_what_was_not_harmed() {
        let (sender, state) = watch::channel(LinkState::unconnected(""));
        let mut link = Link::new("http://c:1".to_owned(), sender);
        assert_eq!(message(&state), "connecting to http://c:1");

        link.ended(&End::Lost("refused\nby peer".to_owned()), &kept(7));
        assert_eq!(
            message(&state),
            "no collector at http://c:1 (refused\\nby peer): usage is kept in the spool \
             (7 records), nothing is lost; retrying"
        );

        link.connected(&[0xab, 1], Standing::Whole, 7);
        assert!(state.borrow().connected);
        assert_eq!(message(&state), "connected to http://c:1, ledger ab01");

        link.ended(
            &End::Rejected(Refusal {
                code: Code::StorageFull,
                reason: "no space".to_owned(),
                what_to_do: "grow the volume".to_owned(),
                retry_after: Duration::ZERO,
            }),
            &kept(9),
        );
        assert!(!state.borrow().connected);
        assert_eq!(
            message(&state),
            "http://c:1 refuses usage (storage_full): no space; grow the volume; usage is kept in \
             the spool (9 records), nothing is lost"
        );
    }

    #[test]
    fn nothing_is_promised_that_the_spool_does_not_keep() {
        assert_eq!(kept(2).to_string(), "usage is kept in the spool (2 records), nothing is lost");
        let lossy = SpoolStatus { lost_records: 1, ..SpoolStatus::default() };
        assert_eq!(Kept::of(&lossy).to_string(), "usage is kept in the spool (0 records)");
        let full = SpoolStatus { state: SpoolState::Full(String::new()), ..SpoolStatus::default() };
        assert_eq!(Kept::of(&full).to_string(), "usage is kept in the spool (0 records)");
    }

    #[test]
    fn a_session_after_a_refusal_is_news_once_it_takes_a_record() {
        let (sender, _state) = watch::channel(LinkState::unconnected(""));
        let mut link = Link::new("http://c:1".to_owned(), sender);
        let said = |link: &Link| matches!(link.said, Some(Kind::Connected(_)));
        link.connected(&[1], Standing::Whole, 0);
        assert!(said(&link));
        link.ended(&End::Violation("odd".to_owned()), &kept(0));
        link.connected(&[1], Standing::Whole, 0);
        assert!(!said(&link));
        link.acked(1);
        assert!(said(&link));
    }

    #[test]
    fn a_state_is_news_once() {
        let (sender, _state) = watch::channel(LinkState::unconnected(""));
        let mut link = Link::new("http://c:1".to_owned(), sender);
        let lost = |why: &str| End::Lost(why.to_owned());
        let mut news = |end: &End| {
            let (kind, _) = link.described(end, &kept(0)).expect("not finished");
            link.is_news(kind)
        };
        assert!(news(&lost("refused")));
        assert!(!news(&lost("timed out")));
        assert!(news(&End::Renumber {
            spool_id: SpoolId::default(),
            after: 0,
            why: "x".to_owned()
        }));
        assert!(news(&lost("refused")));
    }
}
