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

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// Starts logging at level `info`, or with `filter` in the syntax of `RUST_LOG`. Later calls have
/// no effect.
pub fn set_up(filter: Option<&str>) {
    let filter = filter
        .and_then(|filter| EnvFilter::try_new(filter).ok())
        .unwrap_or_else(|| EnvFilter::new("info,sqlx=error"));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
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
