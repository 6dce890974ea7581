//! Harness of the black-box tests: the program, an origin that stamps arrivals, a client, Postgres
//! and disk faults.

pub(crate) mod buffers;
mod client;
pub(crate) mod doors;
mod faults;
mod origin;
mod ports;
mod postgres;
mod program;
pub(crate) mod scripted;
mod sockets;

pub(crate) use client::{Client, Proto, raw};
pub(crate) use faults::Faults;
pub(crate) use origin::{Identity, Origin, Reply, bytes_body, reply};
pub(crate) use ports::free_port;
pub(crate) use postgres::Postgres;
pub(crate) use program::{Program, faketime, program, refused_start};
pub(crate) use sockets::HeldSockets;

use std::time::Duration;

/// Returns the highest number of instants in any half-open window of length `width`.
pub(crate) fn worst_window(instants: &[Duration], width: Duration) -> usize {
    let mut sorted = instants.to_vec();
    sorted.sort();
    let mut from = 0;
    let mut worst = 0;
    for (to, at) in sorted.iter().enumerate() {
        while *at - sorted[from] >= width {
            from += 1;
        }
        worst = worst.max(to + 1 - from);
    }
    worst
}

/// Time to wait for an event before a test fails. The value is generous because test machines are
/// busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for `event` and panics with `what` in the message if [`PATIENCE`] passes first.
pub(crate) async fn soon<T>(what: &str, event: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, event)
        .await
        .unwrap_or_else(|_| panic!("timed out ({PATIENCE:?}) waiting for {what}"))
}
