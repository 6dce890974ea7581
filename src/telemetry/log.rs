//! Events of the program's own life, on standard error: text for a person, JSON for a machine.
//!
//! Levels: *error*, a person must act; *warn*, it recovered or a client must act; *info*, lifecycle;
//! *debug*, development. Messages are constant sentences; data goes into fields.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// Starts logging at `info`, or as `filter` says (the syntax of `RUST_LOG`). Later calls do nothing.
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
    // A second start in one process (tests) keeps the first.
    drop(started);
}
