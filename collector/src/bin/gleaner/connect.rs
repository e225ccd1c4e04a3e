//! The way to the collector, and what is said when it is not there.

use std::error::Error;
use std::io;
use std::time::Duration;

use proto::capacity::v1::capacity_client::CapacityClient;
use proto::usage::v1::usage_client::UsageClient;
use tonic::transport::{Channel, Endpoint};

/// A fleet of ten thousand nodes fits.
const MESSAGE_BYTES: usize = 256 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A collector that does not even answer a ping for this long is gone.
const PING: Duration = Duration::from_secs(5);

/// Why the client gave up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("--collector is {got}, expected http://HOST:PORT of its gRPC port")]
    Address { got: String },
    #[error(
        "no collector answers at {address} ({cause}). Start one with `gleaner-collector`, or name \
         another with --collector"
    )]
    Unreachable { address: String, cause: String },
    #[error("the collector at {address} refused: {message}")]
    Refused { address: String, message: String },
    #[error("--{option} is {got}, expected {expected}")]
    Option { option: &'static str, got: String, expected: &'static str },
    #[error(
        "the output is not a terminal; `gleaner top --once` prints the fleet once, --json for programs"
    )]
    NoTerminal,
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

impl ClientError {
    /// Only what happened, for one who says the rest.
    pub(crate) fn cause(&self) -> String {
        match self {
            Self::Unreachable { cause, .. } => cause.clone(),
            Self::Refused { message, .. } => message.clone(),
            other => other.to_string(),
        }
    }
}

/// Where the collector is. Connects when asked to.
#[derive(Clone, Debug)]
pub(crate) struct Collector {
    pub(crate) address: String,
    endpoint: Endpoint,
}

// === impl Collector ===

impl Collector {
    pub(crate) fn new(address: &str) -> Result<Self, ClientError> {
        let wrong = || ClientError::Address { got: address.to_owned() };
        let endpoint = Endpoint::from_shared(address.to_owned()).map_err(|_not_a_uri| wrong())?;
        let uri = endpoint.uri();
        if uri.scheme_str() != Some("http") || uri.host().is_none() || uri.port().is_none() {
            return Err(wrong());
        }
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .keep_alive_while_idle(true);
        Ok(Self { address: address.to_owned(), endpoint })
    }

    pub(crate) async fn capacity(&self) -> Result<CapacityClient<Channel>, ClientError> {
        let client = CapacityClient::new(self.channel().await?);
        Ok(client.max_decoding_message_size(MESSAGE_BYTES))
    }

    pub(crate) async fn usage(&self) -> Result<UsageClient<Channel>, ClientError> {
        let client = UsageClient::new(self.channel().await?);
        Ok(client.max_decoding_message_size(MESSAGE_BYTES))
    }

    /// What a failed call means. A broken connection is told apart from a refusal.
    pub(crate) fn failed(&self, status: &tonic::Status) -> ClientError {
        let address = self.address.clone();
        match status.source() {
            Some(source) => ClientError::Unreachable { address, cause: root_cause(source) },
            None => {
                let message = match status.message() {
                    "" => status.code().description(),
                    message => message,
                };
                ClientError::Refused { address, message: message.to_owned() }
            }
        }
    }

    async fn channel(&self) -> Result<Channel, ClientError> {
        self.endpoint.connect().await.map_err(|error| ClientError::Unreachable {
            address: self.address.clone(),
            cause: root_cause(&error),
        })
    }
}

/// The layers above it say `transport error` and no more.
fn root_cause(mut error: &(dyn Error + 'static)) -> String {
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::{ClientError, Collector};

    fn check(address: &str) {
        let error = Collector::new(address).expect_err("it is refused");
        assert_eq!(
            error.to_string(),
            format!("--collector is {address}, expected http://HOST:PORT of its gRPC port")
        );
    }

    #[tokio::test]
    async fn an_address_that_cannot_be_one_is_named() {
        check("localhost");
        check("127.0.0.1:9801");
        check("https://127.0.0.1:9801");
        check("http://127.0.0.1");
        Collector::new("http://[::1]:9801").unwrap();
    }

    #[tokio::test]
    async fn a_collector_that_is_not_there_is_named_with_what_to_do() {
        let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", unused.local_addr().unwrap());
        drop(unused);
        let error = Collector::new(&address).unwrap().capacity().await.unwrap_err();
        assert!(matches!(error, ClientError::Unreachable { .. }));
        let text = error.to_string();
        assert!(text.starts_with(&format!("no collector answers at {address} (")), "{text}");
        assert!(text.contains("refused"), "{text}");
    }
}
