//! Drain at the end of the process. `/readyz` fails, no new work starts, and running work may
//! finish until a deadline.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::clock::Clock;
use crate::shutdown::Tasks;

/// Handlers of SIGTERM and SIGINT, the signals that end the process.
#[derive(Debug)]
pub(super) struct ShutdownSignal {
    terminate: Signal,
    interrupt: Signal,
}

impl ShutdownSignal {
    /// Installs the handlers. SIGTERM and SIGINT then request a drain instead of ending the
    /// process.
    pub(super) fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next SIGTERM or SIGINT.
    pub(super) async fn come(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Waits until all tasks have ended. The wait ends early at the deadline or at a second signal, and
/// the caller then drops the remaining tasks.
pub(super) async fn drain(tasks: &Tasks, timeout: Duration, clock: &Clock) {
    let began = clock.now();
    tasks.drain(); // before the log line, so that its readers find the drain begun
    let (running, timeout_s) = (tasks.running(), timeout.as_secs());
    tracing::info!(running, timeout_s, "draining");
    let again = async {
        match ShutdownSignal::listen() {
            Ok(mut again) => again.come().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = tasks.finished() => tracing::info!(took_ms = took(clock, began), "drained"),
        () = clock.sleep_until(began + timeout) => {
            tracing::warn!(running = tasks.running(), "drain timed out; aborting the remaining tasks");
        }
        () = again => tracing::warn!(running = tasks.running(), "second signal received; aborting the remaining tasks"),
    }
}

fn took(clock: &Clock, began: crate::clock::Instant) -> u64 {
    u64::try_from(clock.now().since(began).as_millis()).unwrap_or(u64::MAX)
}
