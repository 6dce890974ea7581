//! The end: no new work is promised (`/readyz` says no), what is held is finished, up to a deadline.

use std::future::Future;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::clock::Clock;
use crate::shutdown::Tasks;

/// Ready once SIGTERM or SIGINT comes.
pub(super) fn asked() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Waits for what runs; at the deadline, or at a second signal, it is dropped and leaves its record.
pub(super) async fn drain(tasks: &Tasks, timeout: Duration, clock: &Clock) {
    let began = clock.now();
    tasks.drain(); // before it is said, so that whoever reads it finds it true
    tracing::info!(
        running = tasks.running(),
        timeout_s = timeout.as_secs(),
        "draining"
    );
    let again = async {
        match asked() {
            Ok(again) => again.await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = tasks.finished() => tracing::info!(took_ms = took(clock, began), "drained"),
        () = clock.sleep_until(began + timeout) => {
            tracing::warn!(running = tasks.running(), "the drain took too long; the rest is dropped");
        }
        () = again => tracing::warn!(running = tasks.running(), "asked twice; the rest is dropped"),
    }
}

fn took(clock: &Clock, began: crate::clock::Instant) -> u64 {
    u64::try_from(clock.now().since(began).as_millis()).unwrap_or(u64::MAX)
}
