//! What a running agent says of its tracing, and of a driver that it was told to let go.
//!
//! Hooks of a second agent beside it would cost the traced processes twice, and each would take the
//! other's breakpoints for text that somebody has changed.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::health::{Part, State};
use crate::model::readings::Tracing;
use crate::status::Library;

/// An agent that turns answers at once.
const DEADLINE: Duration = Duration::from_secs(2);
/// Far more than the hooks of all libraries take.
const MOST_BYTES: u64 = 16 * 1024 * 1024;

/// The parts of `/status` that doctor needs.
#[derive(Debug, Deserialize)]
pub(super) struct Running {
    parts: Vec<Said>,
    pub(super) libraries: Vec<Library>,
}

#[derive(Debug, Deserialize)]
struct Said {
    name: String,
    state: State,
    message: String,
}

/// `None` where no agent answers at its own address.
pub(super) async fn ask(address: SocketAddr) -> Option<Running> {
    let answer = tokio::time::timeout(DEADLINE, get_status(address)).await.ok()?.ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    serde_json::from_str(body).ok()
}

/// HTTP/1.0: the answer ends with the connection, and is not in chunks.
async fn get_status(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /status HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.take(MOST_BYTES).read_to_string(&mut answer).await?;
    Ok(answer)
}

impl Running {
    pub(super) fn tracing_part(&self) -> Option<Part> {
        let said = self.parts.iter().find(|it| it.name == "tracing")?;
        let message = format!("as the running agent says: {}", said.message);
        Some(Part { name: "tracing", state: said.state, message })
    }

    /// Where the driver was let go on request: whoever opens it now is in the way.
    pub(super) fn released_part(&self) -> Option<Part> {
        let said = self.parts.iter().find(|it| it.name == "nvml")?;
        let message = format!("as the running agent says: {}", said.message);
        let released = said.state == State::Disabled;
        released.then_some(Part { name: "nvml", state: State::Disabled, message })
    }

    /// What findings are made from.
    pub(super) fn tracing(&self) -> Tracing {
        let held_back = self
            .libraries
            .iter()
            .filter_map(|it| it.memory_held_back.as_ref().map(|why| format!("{}: {why}", it.path)));
        Tracing { memory_held_back: held_back.collect(), ..Tracing::default() }
    }
}
