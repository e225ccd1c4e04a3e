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
use crate::model::units::BootNs;

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
                "cannot listen at {path}: {error}; `gleaner-agent trace`, `gleaner-agent nvml` and \
                   a hand-over to a successor do not work (admin.socket)"
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
            Command::Release { seconds } => self.release(Duration::from_secs(seconds)).await,
            Command::Take if self.sources.nvml.take() => {
                info!("NVML is opened again by hand");
                self.read("command").await;
                Answer::Done("NVML is asked again".to_owned())
            }
            Command::Take => Answer::Refused("NVML is not released".to_owned()),
        };
        // Whoever asked may be gone.
        drop(asked.reply.send(answer));
        None
    }

    /// What was counted until then is kept.
    async fn pause(&mut self, length: Duration) -> Answer {
        let Some(until) = end_of(length) else {
            return Answer::Refused("a pause is at least 1 s and at most 24 h".to_owned());
        };
        self.read("command").await;
        let reason =
            format!("paused until {} by `gleaner-agent trace pause`", clock::utc_in(length));
        info!("tracing is {reason}");
        self.sources.cuda.pause(until, reason.clone());
        self.read("command").await;
        Answer::Done(format!("tracing is {reason}"))
    }

    /// What was used until then is kept.
    async fn release(&mut self, length: Duration) -> Answer {
        let Some(until) = end_of(length) else {
            return Answer::Refused("a release is at least 1 s and at most 24 h".to_owned());
        };
        self.read("command").await;
        let terms =
            format!("released until {} by `gleaner-agent nvml release`", clock::utc_in(length));
        let free = self.sources.nvml.release(clock::boot(), until, terms).await;
        self.read("command").await;
        let seen = self.pipeline.observation();
        let text = seen.map_or("", |it| it.readings.nvml.state.text()).to_owned();
        if free { Answer::Done(text) } else { Answer::Unfinished(text) }
    }
}

/// `None` = out of bounds.
fn end_of(length: Duration) -> Option<BootNs> {
    let within = !length.is_zero() && length <= LONGEST_PAUSE;
    within.then(|| clock::boot() + u64::try_from(length.as_nanos()).unwrap_or(u64::MAX))
}
