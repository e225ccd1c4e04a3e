//! One plain GET from loopback.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, ensure};

const LIMIT: Duration = Duration::from_secs(5);

/// The body of an answer with status 200.
pub(crate) fn get(port: u16, path: &str) -> anyhow::Result<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let context = || format!("http://{address}{path}");
    let mut stream = TcpStream::connect_timeout(&address, LIMIT).with_context(context)?;
    stream.set_read_timeout(Some(LIMIT)).with_context(context)?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).with_context(context)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(context)?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(context)?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    ensure!(status == "200", "{} answered {status}: {}", context(), body.trim());
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    use super::get;
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    fn check(answer: &'static str, expected: Result<&str, &str>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 256];
            let length = stream.read(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        let got = get(port, "/metrics").map_err(|it| it.to_string());
        assert!(server.join().unwrap().starts_with("GET /metrics HTTP/1.0\r\n"));
        match expected {
            Ok(body) => assert_eq!(got.unwrap(), body),
            Err(part) => assert!(got.unwrap_err().contains(part)),
        }
    }

    #[test]
    fn a_body_or_a_reason() {
        check("HTTP/1.0 200 OK\r\nX: y\r\n\r\na 1\n", Ok("a 1\n"));
        check("HTTP/1.0 503 No\r\n\r\nlater\n", Err("answered 503: later"));
    }
}
