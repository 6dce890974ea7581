//! Drain at the end of the process. `/readyz` fails, no new work starts, and running work may
//! finish until a deadline.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::clock::{Clock, Instant};
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

/// Way in which a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainEnd {
    /// All tasks have ended.
    Drained,
    /// Tasks remain, which the caller drops.
    Aborted,
}

/// Drain that has ended, before its last log line.
#[derive(Debug)]
pub(super) struct EndedDrain {
    end: DrainEnd,
    clock: Clock,
    began: Instant,
}

impl EndedDrain {
    /// Logs that everything has ended, after which the process exits at once.
    pub(super) fn log(self) -> DrainEnd {
        if self.end == DrainEnd::Drained {
            let took = self.clock.now().since(self.began).as_millis();
            let took_ms = u64::try_from(took).unwrap_or(u64::MAX);
            tracing::info!(took_ms, "drained");
        }
        self.end
    }
}

/// Waits until all tasks have ended. The wait ends early at the deadline or at a second signal, and
/// the caller then drops the remaining tasks.
pub(super) async fn drain(tasks: &Tasks, timeout: Duration, clock: &Clock) -> EndedDrain {
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
    let end = tokio::select! {
        () = tasks.finished() => DrainEnd::Drained,
        () = clock.sleep_until(began + timeout) => {
            tracing::warn!(running = tasks.running(), "drain timed out; aborting the remaining tasks");
            DrainEnd::Aborted
        }
        () = again => {
            tracing::warn!(running = tasks.running(), "second signal received; aborting the remaining tasks");
            DrainEnd::Aborted
        }
    };
    let clock = clock.clone();
    EndedDrain { end, clock, began }
}
