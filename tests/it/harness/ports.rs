//! Free TCP ports for the programs that a test starts.

use std::hash::{BuildHasher as _, RandomState};
use std::net::TcpListener;

/// Lowest port to draw. The range ends below the ports that the system uses for outgoing
/// connections.
const FIRST: u16 = 10_000;

/// Returns a TCP port without a listener, outside the range for outgoing connections. No outgoing
/// connection can therefore take the port before the program listens on it.
pub(crate) fn free_port() -> u16 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let range = range.unwrap_or_default();
    let outgoing = range
        .split_whitespace()
        .next()
        .and_then(|low| low.parse().ok());
    let last = outgoing
        .filter(|low| *low > FIRST + 1000)
        .unwrap_or(32_768_u16);
    loop {
        let drawn = RandomState::new().hash_one(()) % u64::from(last - FIRST);
        let port = FIRST + u16::try_from(drawn).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
