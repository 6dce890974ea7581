//! Log of the program's own events on standard error, as text on a terminal and as JSON otherwise.
//!
//! Each level has one meaning:
//!
//! - *error*: an operator must act.
//! - *warn*: the program recovered, or a client must act.
//! - *info*: an event in the life of the process.
//! - *debug*: details for development.
//!
//! Messages are constant sentences, and data goes into fields.
//!
//! A thread writes the events, so a reader that has stopped blocks nothing.

use std::io::{IsTerminal as _, Write};
use std::sync::{LazyLock, OnceLock};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use super::LineWriter;

/// Writer of the events, which exists once logging has started.
static EVENTS: OnceLock<LineWriter> = OnceLock::new();
/// Number of lines that were not written. It is global, because logging starts before the metrics.
static DROPPED: LazyLock<Counter> = LazyLock::new(Counter::default);

/// Returns the counter of the canonical lines and events that were not written.
pub(super) fn lines_dropped() -> Counter {
    DROPPED.clone()
}

/// Starts logging at level `info`, or with `filter` in the syntax of `RUST_LOG`. Later calls have
/// no effect.
pub fn set_up(filter: Option<&str>) {
    let filter = filter
        .and_then(|filter| EnvFilter::try_new(filter).ok())
        .unwrap_or_else(|| EnvFilter::new("info,sqlx=error"));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(output())
        .with_target(false);
    let started = if std::io::stderr().is_terminal() {
        subscriber.try_init()
    } else {
        subscriber
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .try_init()
    };
    // A second start in one process, as in tests, keeps the first subscriber.
    drop(started);
}

/// Writes out the remaining events for a bounded time. Later events are lost.
pub fn close_log() {
    if let Some(events) = EVENTS.get() {
        events.close();
    }
}

/// Returns the output of events. Without a thread for it, events are written directly.
fn output() -> BoxMakeWriter {
    if EVENTS.get().is_none()
        && let Ok(events) = LineWriter::start(std::io::stderr(), Duration::ZERO, lines_dropped())
    {
        let _ = EVENTS.set(events);
    }
    match EVENTS.get() {
        Some(events) => BoxMakeWriter::new(|| EventWriter(events)),
        None => BoxMakeWriter::new(std::io::stderr),
    }
}

/// Writer of one event, which the subscriber writes as a whole.
struct EventWriter(&'static LineWriter);

impl Write for EventWriter {
    fn write(&mut self, event: &[u8]) -> std::io::Result<usize> {
        self.0.bytes(event);
        Ok(event.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
