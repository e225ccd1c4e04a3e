//! The thread that looks for library files.
//!
//! Reading the mappings of a process, and opening a file that one maps, can block for as long as its
//! owner likes. So it happens in a thread of its own, which is asked and waited for with a deadline;
//! when it does not answer, another takes its place and leaves that process alone.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use super::search::{Answer, Question, Search};
use crate::clock;
use crate::config::HookChoice;
use crate::model::units::BootNs;
use crate::samplers::process::driver::Proc;

/// How long a thread may take. A round takes milliseconds.
const STUCK_NS: u64 = 10_000_000_000;
/// Threads that are given up before the search is.
const MOST_STUCK: usize = 8;

#[derive(Debug)]
pub(super) struct Finder {
    proc: Proc,
    choice: HookChoice,
    state: State,
    /// Processes that a thread did not come back from.
    avoided: BTreeSet<u32>,
    stuck: usize,
}

#[derive(Debug)]
enum State {
    Idle(Thread),
    Busy {
        thread: Thread,
        since: BootNs,
    },
    /// The kernel gives no thread, or too many did not come back.
    Off,
}

#[derive(Debug)]
struct Thread {
    questions: SyncSender<Question>,
    answers: Receiver<Answer>,
    /// The process that is looked at.
    at: Arc<AtomicU32>,
}

impl Finder {
    pub(super) fn new(proc: Proc, choice: HookChoice) -> Self {
        let state = State::started(&proc, choice, &BTreeSet::new());
        Self { proc, choice, state, avoided: BTreeSet::new(), stuck: 0 }
    }

    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle(_))
    }

    pub(super) fn ask(&mut self, question: Question) {
        self.state = match std::mem::replace(&mut self.state, State::Off) {
            State::Idle(thread) => match thread.questions.send(question) {
                Ok(()) => State::Busy { thread, since: clock::boot() },
                Err(_) => State::Off,
            },
            other => other,
        };
    }

    /// What was found, once; `None` when nothing was asked or it is not there within `wait`.
    pub(super) fn answer(&mut self, wait: Duration) -> Option<Answer> {
        let (thread, since) = match std::mem::replace(&mut self.state, State::Off) {
            State::Busy { thread, since } => (thread, since),
            other => {
                self.state = other;
                return None;
            }
        };
        match thread.answers.recv_timeout(wait) {
            Ok(answer) => {
                self.state = State::Idle(thread);
                Some(answer)
            }
            Err(RecvTimeoutError::Timeout) if clock::boot().since(since) < STUCK_NS => {
                self.state = State::Busy { thread, since };
                None
            }
            Err(_) => {
                self.replace(&thread);
                None
            }
        }
    }

    fn replace(&mut self, thread: &Thread) {
        let tgid = thread.at.load(Ordering::Relaxed);
        self.stuck += 1;
        self.avoided.insert(tgid);
        tracing::warn!(tgid, "looking for library files in this process does not end");
        if self.stuck < MOST_STUCK {
            self.state = State::started(&self.proc, self.choice, &self.avoided);
        }
    }

    /// Why files may be missing.
    pub(super) fn complaint(&self) -> Option<String> {
        let avoided: Vec<String> = self.avoided.iter().map(u32::to_string).collect();
        let avoided = avoided.join(", ");
        match (&self.state, self.avoided.is_empty()) {
            (State::Off, _) => Some(format!(
                "copies of the driver library are no longer looked for: looking at the processes \
                 {avoided} did not end; restart the agent to try again"
            )),
            (_, false) => Some(format!(
                "looking for copies of the driver library in the processes {avoided} did not end: \
                 they are left out"
            )),
            _ => None,
        }
    }
}

impl State {
    fn started(proc: &Proc, choice: HookChoice, avoided: &BTreeSet<u32>) -> Self {
        let (questions, asked) = sync_channel::<Question>(1);
        let (answers, answered) = sync_channel(1);
        let at = Arc::new(AtomicU32::new(0));
        let mut search = Search::new(proc.clone(), choice, Arc::clone(&at), avoided.clone());
        let body = move || {
            for question in asked {
                if answers.send(search.answer(question)).is_err() {
                    return;
                }
            }
        };
        match std::thread::Builder::new().name("libraries".to_owned()).spawn(body) {
            Ok(_) => Self::Idle(Thread { questions, answers: answered, at }),
            Err(error) => {
                tracing::warn!("library files are not looked for: {error}");
                Self::Off
            }
        }
    }
}
