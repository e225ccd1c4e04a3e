//! Names of users. The database may be remote and slow, so it is asked on a thread of its own, for
//! one user at a time, and the tick waits a moment only.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use crate::samplers::holders::driver;

/// How long a tick waits for a name. A local database answers in less than one.
const PATIENCE: Duration = Duration::from_millis(50);
/// Names that are kept; beyond it all are asked for again.
const MAX_NAMES: usize = 4_096;

/// What is known of users.
#[derive(Debug, Default)]
pub(crate) struct Users {
    names: BTreeMap<u32, Arc<str>>,
    asker: Option<Asker>,
    /// The user that the thread is asked about.
    asked: Option<u32>,
}

#[derive(Debug)]
struct Asker {
    questions: SyncSender<u32>,
    answers: Receiver<(u32, Option<String>)>,
}

// === impl Users ===

impl Users {
    /// The number where there is no name; `None` while the database has not answered. A number is not
    /// kept, because the name may come later.
    pub(crate) fn name(&mut self, uid: u32) -> Option<Arc<str>> {
        if let Some(name) = self.names.get(&uid) {
            return Some(Arc::clone(name));
        }
        // Only the one who asks waits. Who comes while an answer is late takes what is there.
        let patience = if self.asked.is_some() { Duration::ZERO } else { PATIENCE };
        if self.asked.is_none() {
            self.ask(uid)?;
        }
        let (answered, name) = self.receive(patience)?;
        if let Some(name) = &name {
            self.keep(answered, Arc::clone(name));
        }
        if answered == uid {
            return Some(name.unwrap_or_else(|| uid.to_string().into()));
        }
        // That was for another, and the thread is free now.
        self.name(uid)
    }

    fn ask(&mut self, uid: u32) -> Option<()> {
        if self.asker.is_none() {
            self.asker = Asker::start();
        }
        self.asker.as_ref()?.questions.try_send(uid).ok()?;
        self.asked = Some(uid);
        Some(())
    }

    fn receive(&mut self, patience: Duration) -> Option<(u32, Option<Arc<str>>)> {
        match self.asker.as_ref()?.answers.recv_timeout(patience) {
            Ok((uid, name)) => {
                self.asked = None;
                Some((uid, name.filter(|it| !it.is_empty()).map(Arc::from)))
            }
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                *self = Self { names: std::mem::take(&mut self.names), ..Self::default() };
                None
            }
        }
    }

    fn keep(&mut self, uid: u32, name: Arc<str>) {
        if self.names.len() >= MAX_NAMES {
            self.names.clear();
        }
        self.names.insert(uid, name);
    }
}

// === impl Asker ===

impl Asker {
    /// `None` when no thread can be started: it is tried again with the next question.
    fn start() -> Option<Self> {
        let (questions, asked) = sync_channel(1);
        let (answer, answers) = sync_channel(1);
        let ask = move || {
            for uid in asked {
                if answer.send((uid, driver::user_name(uid))).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("users".to_owned()).spawn(ask).ok()?;
        Some(Self { questions, answers })
    }
}

#[cfg(test)]
mod tests {
    use super::Users;

    /// A busy machine may take longer than a tick waits.
    fn settled(users: &mut Users, uid: u32) -> String {
        let name = std::iter::repeat_with(|| users.name(uid)).flatten().next();
        name.unwrap().as_ref().to_owned()
    }

    #[test]
    fn a_user_is_a_name_or_a_number() {
        let mut users = Users::default();
        for _ in 0..2 {
            assert_eq!(settled(&mut users, 0), "root");
            assert_eq!(settled(&mut users, 4_000_000_000), "4000000000");
        }
        assert_eq!(users.names.len(), 1);
    }

    #[test]
    fn a_late_answer_is_not_taken_for_another_users() {
        let mut users = Users::default();
        // As after a tick that did not wait long enough.
        users.ask(4_000_000_000).unwrap();
        assert_eq!(settled(&mut users, 0), "root");
    }
}
