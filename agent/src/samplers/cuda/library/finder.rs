//! The thread that reads what processes map, and looks for library files there.
//!
//! Reading the mappings of a process, and opening a file that one maps, can block for as long as its
//! owner likes. So it happens in a thread of its own, which is asked and waited for with a deadline;
//! when it does not answer, another takes its place and leaves that process alone, as long as it lives.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::search::{Answer, Question, Search};
use crate::clock;
use crate::config::HookChoice;
use crate::model::ids::ProcessId;
use crate::model::units::BootNs;
use crate::samplers::process::driver::Proc;

/// Threads that do not come back before there are no more.
const MOST_STUCK: usize = 8;
/// How long it is left at that where there is no thread.
const RETRY_NS: u64 = 60_000_000_000;

#[derive(Debug)]
pub(super) struct Finder {
    proc: Proc,
    choice: HookChoice,
    /// How long an answer may take.
    patience: Duration,
    state: State,
    /// Processes that a thread did not come back from.
    avoided: BTreeSet<ProcessId>,
    /// These threads, until they end.
    stuck: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
enum State {
    Idle(Thread),
    Busy {
        thread: Thread,
        since: BootNs,
    },
    /// The kernel gave no thread, or too many have not come back.
    Off {
        since: BootNs,
    },
}

#[derive(Debug)]
struct Thread {
    questions: SyncSender<Question>,
    answers: Receiver<Answer>,
    /// The process that is looked at.
    at: Arc<AtomicU32>,
    handle: JoinHandle<()>,
}

impl Finder {
    /// `patience`: how long an answer may take.
    pub(super) fn new(proc: Proc, choice: HookChoice, patience: Duration) -> Self {
        let state = State::started(&proc, choice, &BTreeSet::new());
        Self { proc, choice, patience, state, avoided: BTreeSet::new(), stuck: Vec::new() }
    }

    /// Whether it can be asked. Where there is no thread, one is tried again after a while.
    pub(super) fn is_idle(&mut self) -> bool {
        if let State::Off { since } = self.state
            && clock::boot().since(since) > RETRY_NS
        {
            self.start();
        }
        matches!(self.state, State::Idle(_))
    }

    pub(super) fn ask(&mut self, question: Question) {
        self.state = match std::mem::replace(&mut self.state, State::off()) {
            State::Idle(thread) => match thread.questions.send(question) {
                Ok(()) => State::Busy { thread, since: clock::boot() },
                Err(_) => State::off(),
            },
            other => other,
        };
    }

    /// What was found, once; `None` when nothing was asked or it is not there within `wait`.
    pub(super) fn answer(&mut self, wait: Duration) -> Option<Answer> {
        let (thread, since) = match std::mem::replace(&mut self.state, State::off()) {
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
            Err(RecvTimeoutError::Timeout)
                if u128::from(clock::boot().since(since)) < self.patience.as_nanos() =>
            {
                self.state = State::Busy { thread, since };
                None
            }
            Err(_) => {
                self.replace(thread);
                None
            }
        }
    }

    fn replace(&mut self, thread: Thread) {
        let tgid = thread.at.load(Ordering::Relaxed);
        self.avoided.extend(self.proc.process_id(tgid));
        tracing::warn!(tgid, "looking for library files in this process does not end");
        self.stuck.push(thread.handle);
        self.start();
    }

    fn start(&mut self) {
        self.stuck.retain(|it| !it.is_finished());
        self.avoided.retain(|it| self.proc.process_id(it.tgid) == Some(*it));
        self.state = if self.stuck.len() < MOST_STUCK {
            State::started(&self.proc, self.choice, &self.avoided)
        } else {
            State::off()
        };
    }

    /// Why files may be missing.
    pub(super) fn complaint(&self) -> Option<String> {
        let lives = |it: &&ProcessId| self.proc.process_id(it.tgid) == Some(**it);
        let avoided = self.avoided.iter().filter(lives).map(|it| it.tgid.to_string());
        let avoided = avoided.collect::<Vec<_>>().join(", ");
        match (&self.state, avoided.is_empty()) {
            (State::Off { .. }, true) => Some(
                "copies of the driver library are not looked for: the kernel gives no thread for it; \
                 it is asked again every minute"
                    .to_owned(),
            ),
            (State::Off { .. }, false) => Some(format!(
                "copies of the driver library are not looked for, and what new processes map is not \
                 known: looking at the processes {avoided} does not end; end one of them"
            )),
            (_, false) => Some(format!(
                "looking for copies of the driver library in the processes {avoided} did not end: \
                 they are left out"
            )),
            (_, true) => None,
        }
    }
}

impl State {
    fn off() -> Self {
        Self::Off { since: clock::boot() }
    }

    fn started(proc: &Proc, choice: HookChoice, avoided: &BTreeSet<ProcessId>) -> Self {
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
            Ok(handle) => Self::Idle(Thread { questions, answers: answered, at, handle }),
            Err(error) => {
                tracing::warn!("library files are not looked for: {error}");
                Self::off()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;
    use std::time::Duration;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::{Answer, Finder, Question};
    use crate::config::{AttachAt, HookChoice};
    use crate::model::ids::ProcessId;
    use crate::samplers::process::decode::FileId;
    use crate::samplers::process::driver::Proc;

    const LIBRARY: FileId = FileId { major: 8, minor: 1, inode: 131 };
    const MAPS: &str = "55d0c0000000-55d0c0001000 r-xp 00000000 08:01 131 /x/libcuda.so.1\n";

    fn live(root: &Path, process: ProcessId) {
        let ProcessId { tgid, start_ticks } = process;
        let folder = root.join(tgid.to_string());
        std::fs::create_dir_all(&folder).unwrap();
        let stat = format!("{tgid} (x) S 1 7 7 0 -1 4 9 0 0 0 1 2 0 0 20 0 1 0 {start_ticks} 3 4");
        std::fs::write(folder.join("stat"), stat).unwrap();
        if !folder.join("maps").exists() {
            std::fs::write(folder.join("maps"), MAPS).unwrap();
        }
    }

    /// Asks, and waits for as long as the finder lets anybody wait; then it can be asked again.
    fn ask(finder: &mut Finder, processes: &[ProcessId]) -> Option<Answer> {
        assert!(finder.is_idle());
        finder.ask(Question { mappings: processes.to_vec(), ..Question::default() });
        loop {
            let answer = finder.answer(Duration::from_millis(10));
            if answer.is_some() || finder.is_idle() {
                return answer;
            }
        }
    }

    #[test]
    fn a_process_that_blocks_is_left_alone_and_a_later_one_of_its_pid_is_not() {
        let root = tempfile::tempdir().unwrap();
        let [stuck, other, successor] =
            [(77, 5), (78, 6), (77, 9)].map(|(tgid, start_ticks)| ProcessId { tgid, start_ticks });
        let pipe = root.path().join("77/maps");
        std::fs::create_dir(root.path().join("77")).unwrap();
        mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        live(root.path(), stuck);
        live(root.path(), other);
        let choice = HookChoice::new(AttachAt::Cheapest, &[]);
        let patience = Duration::from_millis(50);
        let mut finder = Finder::new(Proc::new(root.path()), choice, patience);
        let library = Some(BTreeSet::from([LIBRARY]));

        assert!(ask(&mut finder, &[stuck]).is_none(), "nobody can read that");
        assert!(finder.complaint().is_some_and(|it| it.contains("77")));
        let mapped = ask(&mut finder, &[stuck, other]).unwrap().mapped;
        assert_eq!(mapped, [(stuck, None), (other, library.clone())]);

        // Lets the thread go that waits there.
        drop(std::fs::File::options().write(true).open(&pipe).unwrap());
        std::fs::remove_file(&pipe).unwrap();
        live(root.path(), successor);
        let mapped = ask(&mut finder, &[stuck, successor]).unwrap().mapped;
        assert_eq!(mapped, [(stuck, None), (successor, library)]);
        assert_eq!(finder.complaint(), None);
    }
}
