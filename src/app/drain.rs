//! The end: no new work is promised (`/readyz` says no), what is held is finished, up to a deadline.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::clock::Clock;
use crate::shutdown::Tasks;

/// The signals that end us.
#[derive(Debug)]
pub(super) struct ShutdownSignal {
    terminate: Signal,
    interrupt: Signal,
}

impl ShutdownSignal {
    /// From now on SIGTERM and SIGINT ask for a drain instead of ending the process.
    pub(super) fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Ready once one comes.
    pub(super) async fn come(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
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
        match ShutdownSignal::listen() {
            Ok(mut again) => again.come().await,
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
