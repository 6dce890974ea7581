//! What a story needs: an origin that stamps arrivals, the program, a client.

pub(crate) mod buffers;
mod client;
mod faults;
mod origin;
mod ports;
mod postgres;
mod program;

pub(crate) use client::{Client, Proto, raw};
pub(crate) use faults::Faults;
pub(crate) use origin::{Origin, Reply, bytes_body, reply};
pub(crate) use ports::free_port;
pub(crate) use postgres::Postgres;
pub(crate) use program::{Program, faketime, program};

use std::time::Duration;

/// The most instants in any window of `width` (half-open).
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

/// How long an event may take before a test gives up; generous, since machines are busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Fails a test whose event never comes.
pub(crate) async fn soon<T>(what: &str, event: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, event)
        .await
        .unwrap_or_else(|_| panic!("{what} did not happen within {PATIENCE:?}"))
}
