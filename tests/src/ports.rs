//! Ports of the loopback interface that nobody uses.

use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, TcpListener};

/// Below those that the kernel gives to clients: one of ours could be taken before the daemon has it.
const FIRST: u16 = 16_384;
const COUNT: u16 = 16_384;

/// A port that was free a moment ago. A daemon that must come back on its port needs to know it
/// beforehand.
pub fn free() -> u16 {
    let random = || {
        let low = RandomState::new().hash_one(()) % u64::from(COUNT);
        FIRST + u16::try_from(low).expect("it is less than the count")
    };
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    std::iter::repeat_with(random).take(1_000).find(is_free).expect("loopback has free ports")
}
