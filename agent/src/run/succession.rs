//! One agent after another on the same node: the old one gives up everything but its hooks, and the
//! new one goes on with them.

use std::time::Duration;

use tokio::sync::oneshot;
use tracing::{info, warn};

use super::{Agent, CLOSE, LAST_READING, RunError};
use crate::clock;
use crate::config::Config;
use crate::control::client::{AskError, ask};
use crate::control::{Answer, Command};

/// How long an agent that is asked to hand over may take. It reads once more, writes to its disk and
/// closes: more means that it hangs.
const HANDOVER: Duration = Duration::from_secs(5);

/// How long the uplink may take to end its session when a successor waits.
const HANG_UP: Duration = Duration::from_millis(200);

/// Asks the agent that runs here, if there is one, to hand over.
pub(super) async fn succeed(config: &Config) -> Result<(), RunError> {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let command = Command::Handover { abi: agent_ebpf::ABI, version };
    match ask(&config.admin_socket, &command, HANDOVER).await {
        Ok(Answer::Done(text)) => info!("took over from a running agent: {text}"),
        Ok(Answer::Refused(why) | Answer::Unfinished(why)) => {
            return Err(RunError::Predecessor(why));
        }
        Err(AskError::Nobody(_)) => {}
        Err(silent @ AskError::Silent { .. }) => {
            return Err(RunError::Predecessor(silent.to_string()));
        }
        // If it uses the same spool or port, that will tell.
        Err(error @ AskError::Talk { .. }) => warn!("{error}"),
    }
    Ok(())
}

impl Agent {
    /// Gives up everything that a successor needs: the spool, the port, and the hooks, which go on
    /// counting where they are pinned and mean the same to it. Answers when all of it is free.
    pub(super) async fn hand_over(mut self, successor: Successor) {
        info!("an agent of version {} takes over", successor.version);
        if tokio::time::timeout(LAST_READING, self.read("stop")).await.is_err() {
            warn!("a source did not answer: what it saw since its last reading is unobserved");
        }
        let records = self.pipeline.finish(clock::boot());
        self.keep(records);
        let kept = if successor.abi == agent_ebpf::ABI {
            self.sources.leave()
        } else {
            self.sources.stop();
            false
        };
        // Nobody else may ask from here on.
        drop(self.questions);
        self.stopping.send_replace(true);
        drop(tokio::time::timeout(HANG_UP, self.uplink.join_next()).await);
        self.uplink.shutdown().await;
        self.http.shutdown().await;
        let written = self.spool.close(CLOSE).await;
        let hooks =
            if kept { "hooks and counts stay as they are" } else { "all hooks are detached" };
        let records =
            if written { "all records are in the spool" } else { "the spool could not be written" };
        let text = format!("{hooks}, {records}");
        info!("handed over: {text}; waiting for SIGTERM");
        drop(successor.reply.send(Answer::Done(text)));
        while self.control.join_next().await.is_some() {}
    }
}

/// An agent that waits to take over.
pub(super) struct Successor {
    pub(super) abi: u32,
    pub(super) version: String,
    pub(super) reply: oneshot::Sender<Answer>,
}
