//! Connections to the gRPC port: how many, and whether they speak HTTP/2 at all.
//!
//! Whatever else a peer sends, or a peer that sends nothing, is closed before any of it is parsed; it
//! is counted, and logged once per peer and while.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};
use prometheus::IntGauge;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tonic::transport::server::{Connected, TcpConnectInfo, TcpIncoming};

use crate::clock;
use crate::ingest::limiter::Limiter;
use crate::metrics;

/// What every HTTP/2 client sends first.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A peer that has not sent it by then is closed.
const PREFACE_WITHIN: Duration = Duration::from_secs(10);
/// Notices dead peers that HTTP/2 pings do not reach.
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);
/// Pause after a failed accept: the process may be out of files, and connections end.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// What the connections share.
#[derive(Debug)]
struct Door {
    places: Arc<Semaphore>,
    metrics: metrics::Ingest,
    heard: Limiter<IpAddr>,
}

/// A connection that counts, and that must begin as HTTP/2 does.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    peer: Option<SocketAddr>,
    door: Arc<Door>,
    /// Bytes of the preface that were seen.
    seen: usize,
    /// Runs until the whole preface was seen.
    deadline: Option<Pin<Box<Sleep>>>,
    _open: Open,
}

/// Counts as open until it is dropped.
#[derive(Debug)]
struct Open {
    gauge: IntGauge,
    _place: OwnedSemaphorePermit,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

/// Connections for the server, for ever: a failed accept is logged and tried again.
pub fn incoming(
    listener: TcpListener,
    max_connections: usize,
    metrics: metrics::Ingest,
) -> impl Stream<Item = io::Result<Connection>> {
    let tcp =
        TcpIncoming::from(listener).with_nodelay(Some(true)).with_keepalive(Some(TCP_KEEPALIVE));
    let places = Arc::new(Semaphore::new(max_connections));
    let door = Arc::new(Door { places, metrics, heard: Limiter::default() });
    stream::unfold((tcp, door), |(mut tcp, door)| async move {
        loop {
            match tcp.next().await? {
                Ok(stream) => {
                    if let Some(connection) = Door::admit(&door, stream) {
                        return Some((Ok(connection), (tcp, door)));
                    }
                }
                Err(error) => {
                    tracing::warn!("a connection to the gRPC port was not accepted: {error}");
                    sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    })
}

// === impl Door ===

impl Door {
    fn admit(door: &Arc<Self>, stream: TcpStream) -> Option<Connection> {
        let peer = stream.peer_addr().ok();
        let Ok(place) = Arc::clone(&door.places).try_acquire_owned() else {
            door.refuse("limit", peer, "there are limits.max_connections already");
            return None;
        };
        let gauge = door.metrics.connections.clone();
        gauge.inc();
        Some(Connection {
            stream,
            peer,
            door: Arc::clone(door),
            seen: 0,
            deadline: Some(Box::pin(sleep(PREFACE_WITHIN))),
            _open: Open { gauge, _place: place },
        })
    }

    fn refuse(&self, reason: &str, peer: Option<SocketAddr>, text: &str) {
        self.metrics.refused_connections.with_label_values(&[reason]).inc();
        let Some(peer) = peer else { return };
        if self.heard.allows(peer.ip(), clock::boot_ns()) {
            tracing::warn!(
                "a connection of {peer} to the gRPC port was closed: {text}. Nothing of it was used and \
                 nothing else was affected"
            );
        }
    }
}

// === impl Connection ===

impl Connection {
    /// The next bytes of the peer, while the preface is not complete.
    fn check(&mut self, bytes: &[u8]) -> io::Result<()> {
        let expected = &PREFACE[self.seen..];
        let length = expected.len().min(bytes.len());
        if bytes[..length] != expected[..length] {
            let text = format!(
                "it does not speak gRPC ({}); agents and the client connect here, browsers and \
                 Prometheus to http.listen",
                looks_like(bytes)
            );
            self.door.refuse("not_grpc", self.peer, &text);
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not HTTP/2"));
        }
        self.seen += length;
        if self.seen == PREFACE.len() {
            self.deadline = None;
        }
        Ok(())
    }

    fn too_late(&self) -> io::Error {
        self.door.refuse("timeout", self.peer, "it said nothing for 10 s");
        io::Error::new(io::ErrorKind::TimedOut, "no HTTP/2 preface")
    }
}

/// What a peer's first bytes are, for people.
fn looks_like(bytes: &[u8]) -> String {
    match bytes {
        [0x16, 0x03, ..] => "it began a TLS handshake".to_owned(),
        _ => format!("it began with \"{}\"", bytes[..bytes.len().min(16)].escape_ascii()),
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(deadline) = &mut this.deadline
            && deadline.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(this.too_late()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
        if this.deadline.is_some() {
            let checked = this.check(&buffer.filled()[before..]);
            if checked.is_err() {
                buffer.set_filled(before);
            }
            return Poll::Ready(checked);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use super::{PREFACE, incoming, looks_like};
    use crate::metrics::Metrics;
    use futures_util::StreamExt as _;
    use std::pin::pin;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    /// What the server reads after a peer has sent `bytes` in two parts, and how often it refused.
    async fn check(bytes: &[u8]) -> (Result<Vec<u8>, String>, u64) {
        let metrics = Metrics::default().ingest;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut incoming = pin!(incoming(listener, 1, metrics.clone()));
        let mut connection = incoming.next().await.unwrap().unwrap();
        let (first, second) = bytes.split_at(bytes.len() / 2);
        peer.write_all(first).await.unwrap();
        peer.flush().await.unwrap();
        tokio::task::yield_now().await;
        peer.write_all(second).await.unwrap();
        drop(peer);
        let mut read = Vec::new();
        let end = connection.read_to_end(&mut read).await.map_err(|it| it.to_string());
        (end.map(|_| read), metrics.refused_connections.with_label_values(&["not_grpc"]).get())
    }

    #[tokio::test]
    async fn only_http2_gets_through() {
        let whole = [PREFACE.as_slice(), b"frames"].concat();
        assert_eq!(check(&whole).await, (Ok(whole.clone()), 0));
        let refused = (Err("not HTTP/2".to_owned()), 1);
        assert_eq!(check(b"GET / HTTP/1.1\r\n\r\n").await, refused);
        assert_eq!(check(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX").await, refused);
        assert_eq!(check(&[0; 64]).await, refused);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_peer_is_closed() {
        let metrics = Metrics::default().ingest;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut incoming = pin!(incoming(listener, 1, metrics.clone()));
        let mut connection = incoming.next().await.unwrap().unwrap();
        let error = connection.read(&mut [0; 8]).await.expect_err("it is closed");
        assert_eq!(error.to_string(), "no HTTP/2 preface");
        assert_eq!(metrics.connections.get(), 1);
        drop(connection);
        assert_eq!(metrics.connections.get(), 0);
    }

    #[test]
    fn first_bytes_are_said_for_people() {
        assert_eq!(looks_like(&[0x16, 0x03, 0x01]), "it began a TLS handshake");
        assert_eq!(looks_like(b"\x00\nGET"), "it began with \"\\x00\\nGET\"");
    }
}
