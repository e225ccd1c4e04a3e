//! What people on this node ask over the admin socket.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::succession::Successor;
use super::{Agent, Ending};
use crate::clock;
use crate::config::Config;
use crate::control::server::{Asked, Socket};
use crate::control::{Answer, Command, LONGEST_PAUSE};

/// Questions that wait for the loop.
const QUESTIONS: usize = 8;

/// Without a socket the agent does all but take commands.
pub(super) fn listen(config: &Config) -> (JoinSet<()>, mpsc::Receiver<Asked>) {
    let (sender, questions) = mpsc::channel(QUESTIONS);
    let mut control = JoinSet::new();
    match Socket::bind(&config.admin_socket) {
        Ok(socket) => {
            control.spawn(socket.serve(sender));
        }
        Err(error) => {
            let path = config.admin_socket.display();
            warn!(
                "cannot listen at {path}: {error}; `gleaner-agent trace` and a hand-over to a \
                   successor do not work (admin.socket)"
            );
        }
    }
    (control, questions)
}

impl Agent {
    /// What somebody on this node asks for. `Some` = a successor waits.
    pub(super) async fn answer(&mut self, asked: Asked) -> Option<Ending> {
        let answer = match asked.command {
            Command::Handover { abi, version } => {
                let reply = asked.reply;
                return Some(Ending::Successor(Successor { abi, version, reply }));
            }
            Command::Pause { seconds } => self.pause(Duration::from_secs(seconds)).await,
            Command::Resume if self.sources.cuda.resume() => {
                info!("tracing was resumed by hand");
                self.read("command").await;
                Answer::Done("tracing goes on".to_owned())
            }
            Command::Resume => Answer::Refused("tracing is not paused".to_owned()),
        };
        // Whoever asked may be gone.
        drop(asked.reply.send(answer));
        None
    }

    /// What was counted until then is kept.
    async fn pause(&mut self, length: Duration) -> Answer {
        if length.is_zero() || length > LONGEST_PAUSE {
            return Answer::Refused("a pause is at least 1 s and at most 24 h".to_owned());
        }
        self.read("command").await;
        let until = clock::boot() + u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
        let reason =
            format!("paused until {} by `gleaner-agent trace pause`", clock::utc_in(length));
        info!("tracing is {reason}");
        self.sources.cuda.pause(until, reason.clone());
        self.read("command").await;
        Answer::Done(format!("tracing is {reason}"))
    }
}
