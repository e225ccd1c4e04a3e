//! Loopback ports: the defaults where they are free.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::Context;

/// `wanted` if nobody listens there, else one that the kernel picks.
pub(crate) fn free(wanted: u16) -> anyhow::Result<u16> {
    let bind = |port: u16| TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let listener = bind(wanted).or_else(|_| bind(0)).context("no port is free on 127.0.0.1")?;
    let address = listener.local_addr().context("a listener without an address")?;
    Ok(address.port())
}

#[cfg(test)]
mod tests {
    use super::free;
    use std::net::TcpListener;

    #[test]
    fn a_taken_port_is_avoided() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        assert_ne!(free(port).unwrap(), port);
        drop(taken);
        assert_eq!(free(port).unwrap(), port);
    }
}
