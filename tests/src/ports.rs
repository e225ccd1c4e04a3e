//! Ports of the loopback interface that nobody uses.

use std::net::{Ipv4Addr, TcpListener};

/// A port that was free a moment ago. The kernel gives each caller another one for a while, and a
/// daemon that must come back on its port needs to know it beforehand.
pub fn free() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has free ports");
    listener.local_addr().expect("a bound socket has an address").port()
}
