//! Listens on the socket and passes what is asked to the agent's loop.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::{Answer, Command, MOST_BYTES};

/// Connections at one time; others wait.
const MOST_CONNECTIONS: usize = 8;
/// How long somebody may take to say what they want.
const PATIENCE: Duration = Duration::from_secs(2);

/// A question, and where its answer goes.
#[derive(Debug)]
pub struct Asked {
    pub command: Command,
    pub reply: oneshot::Sender<Answer>,
}

/// The socket. Its file goes when it is dropped.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Socket {
    /// Takes the place of a dead agent's socket. Somebody who listens has been asked before.
    pub fn bind(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
        let inode = std::fs::metadata(path)?.ino();
        Ok(Self { listener, path: path.to_owned(), inode })
    }

    /// Passes on what is asked until `questions` is closed; then those who have asked get their
    /// answer, and nobody else.
    pub async fn serve(self, questions: mpsc::Sender<Asked>) {
        let mut connections = JoinSet::new();
        loop {
            let room = connections.len() < MOST_CONNECTIONS;
            tokio::select! {
                () = questions.closed() => break,
                accepted = self.listener.accept(), if room => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(answer(stream, questions.clone()));
                    }
                    Err(error) => tracing::warn!("the admin socket failed once: {error}"),
                },
                Some(_) = connections.join_next() => {}
            }
        }
        drop(self);
        while connections.join_next().await.is_some() {}
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // A successor may have put its own there.
        if std::fs::metadata(&self.path).is_ok_and(|it| it.ino() == self.inode) {
            drop(std::fs::remove_file(&self.path));
        }
    }
}

async fn answer(mut stream: UnixStream, questions: mpsc::Sender<Asked>) {
    let answer = match tokio::time::timeout(PATIENCE, question(&mut stream)).await {
        Ok(Ok(command)) => pass_on(command, &questions).await,
        Ok(Err(why)) => Answer::Refused(why),
        Err(_elapsed) => Answer::Refused("nothing was asked".to_owned()),
    };
    let mut line = serde_json::to_vec(&answer).expect("an answer is plain data");
    line.push(b'\n');
    if let Err(error) = stream.write_all(&line).await {
        tracing::debug!("who asked over the admin socket did not wait for the answer: {error}");
    }
}

async fn question(stream: &mut UnixStream) -> Result<Command, String> {
    let peer =
        stream.peer_cred().map_err(|it| format!("the kernel does not say who asks: {it}"))?;
    let own = nix::unistd::geteuid().as_raw();
    if peer.uid() != 0 && peer.uid() != own {
        return Err(format!("user {} may not ask this: only root and user {own} may", peer.uid()));
    }
    let mut line = String::new();
    let mut reader = BufReader::new(stream).take(MOST_BYTES);
    reader.read_line(&mut line).await.map_err(|it| it.to_string())?;
    serde_json::from_str(&line)
        .map_err(|it| format!("this agent does not know what is asked: {it}"))
}

async fn pass_on(command: Command, questions: &mpsc::Sender<Asked>) -> Answer {
    let (reply, answer) = oneshot::channel();
    let gone = || Answer::Refused("the agent is stopping, or hands over to another one".to_owned());
    if questions.send(Asked { command, reply }).await.is_err() {
        return gone();
    }
    answer.await.unwrap_or_else(|_dropped| gone())
}
