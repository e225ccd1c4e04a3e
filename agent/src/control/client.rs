//! Asks a running agent.

use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::{Answer, Command, MOST_BYTES};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("no agent listens at {0}")]
    Nobody(String),
    #[error("cannot talk to the agent at {path}: {source}")]
    Talk { path: String, source: std::io::Error },
    #[error("the agent at {path} did not answer within {} s", .deadline.as_secs())]
    Silent { path: String, deadline: Duration },
}

impl AskError {
    /// Whether this user may not ask.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        use std::io::ErrorKind::PermissionDenied;
        matches!(self, Self::Talk { source, .. } if source.kind() == PermissionDenied)
    }
}

pub async fn ask(path: &Path, command: &Command, deadline: Duration) -> Result<Answer, AskError> {
    let name = || path.display().to_string();
    match tokio::time::timeout(deadline, talk(path, command)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) if is_nobody(&source) => Err(AskError::Nobody(name())),
        Ok(Err(source)) => Err(AskError::Talk { path: name(), source }),
        Err(_elapsed) => Err(AskError::Silent { path: name(), deadline }),
    }
}

/// A file that a dead agent left refuses the connection.
fn is_nobody(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    matches!(error.kind(), NotFound | ConnectionRefused)
}

async fn talk(path: &Path, command: &Command) -> std::io::Result<Answer> {
    let stream = UnixStream::connect(path).await?;
    let (read, mut write) = stream.into_split();
    let mut line = serde_json::to_vec(command)?;
    line.push(b'\n');
    let written = write.write_all(&line).await;
    let mut answer = String::new();
    let heard = BufReader::new(read).take(MOST_BYTES).read_line(&mut answer).await;
    // Who may not ask is refused before the question was read.
    if answer.is_empty() {
        written?;
        heard?;
    }
    Ok(serde_json::from_str(&answer)?)
}
