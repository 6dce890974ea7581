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
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::events::JsonEvents;
use super::{LineWriter, otel};
use crate::bounds::LOG_LEVELS_TEXT;

/// Writer of the events, which exists once logging has started.
static EVENTS: OnceLock<LineWriter> = OnceLock::new();
/// Number of lines that were not written. It is global, because logging starts before the metrics.
static DROPPED: LazyLock<Counter> = LazyLock::new(Counter::default);

/// Returns the counter of the canonical lines and events that were not written.
pub(super) fn lines_dropped() -> Counter {
    DROPPED.clone()
}

/// Levels of the events without `OUTPACE_LOG`.
const DEFAULT: &str = "info,sqlx=error";

/// Starts logging at level `info`, or with the levels of `OUTPACE_LOG`. Later calls have no effect.
///
/// # Errors
/// Returns a sentence about the part of `levels` that is invalid.
pub fn set_up(levels: Option<&str>) -> Result<(), String> {
    let levels = levels.map(str::trim).filter(|levels| !levels.is_empty());
    let filter = filter(levels.unwrap_or(DEFAULT))?;
    let layer = tracing_subscriber::fmt::layer().with_writer(output());
    let started = if std::io::stderr().is_terminal() {
        let layer = layer.with_target(false).with_filter(filter);
        tracing_subscriber::registry().with(layer).try_init()
    } else {
        let layer = layer.event_format(JsonEvents).with_filter(filter);
        tracing_subscriber::registry().with(layer).try_init()
    };
    // A second start in one process, as in tests, keeps the first subscriber.
    drop(started);
    Ok(())
}

/// Checks the text of `OUTPACE_LOG` without starting to log.
///
/// # Errors
/// Returns a sentence about the part that is invalid.
pub fn check_levels(levels: &str) -> Result<(), String> {
    let levels = levels.trim();
    match levels.is_empty() {
        true => Ok(()),
        false => filter(levels).map(drop),
    }
}

/// Selects the form of the lines on both outputs: OTLP records, or the native form.
pub fn select_otel(otel: bool) {
    otel::select(otel);
}

/// Reads levels such as `debug` or `info,h2=debug`. A level without a module is that of outpace. The
/// libraries then log at `info` at most.
fn filter(levels: &str) -> Result<Targets, String> {
    let mut filter = Targets::new();
    for part in levels.split(',') {
        let (module, level) = match part.split_once('=') {
            Some((module, level)) => (Some(module), level),
            None => (None, part),
        };
        let is_module = module.is_none_or(|module| {
            let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"_:".contains(&byte);
            !module.is_empty() && module.bytes().all(is_part)
        });
        let known = LEVELS.iter().any(|known| known.eq_ignore_ascii_case(level));
        let level = level.parse::<LevelFilter>().ok().filter(|_| known);
        let Some(level) = level.filter(|_| is_module && levels.len() <= LOG_LEVELS_TEXT) else {
            let part: String = part.chars().take(80).collect();
            return Err(format!(
                "OUTPACE_LOG is invalid: `{part}` is neither a level ({}) nor MODULE=LEVEL, or the text is longer than {LOG_LEVELS_TEXT} bytes; write it as \"debug\" or \"info,outpace::ledger=debug\"",
                LEVELS.join(", ")
            ));
        };
        filter = match module {
            Some(module) => filter.with_target(module, level),
            None => filter
                .with_default(level.min(LevelFilter::INFO))
                .with_target("outpace", level),
        };
    }
    Ok(filter)
}

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

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

#[cfg(test)]
mod tests {
    use super::*;

    /// Reaches the bound `LOG_LEVELS_TEXT`.
    #[test]
    fn levels_are_levels_or_modules_with_a_level() {
        let longest = format!("info,{}", "a=debug,".repeat(126));
        let longest = format!("{longest}b=info");
        for levels in [
            "info",
            "DEBUG",
            "info,sqlx=error",
            "outpace::ledger=trace,off",
            &longest,
        ] {
            assert!(filter(levels).is_ok(), "{levels}");
        }
        let long = format!("{longest},{longest}");
        for levels in [
            "bogus",
            "bogus[[[",
            "info,",
            "=debug",
            "a=b",
            "a=debug=x",
            "5",
            "a b=info",
            &long,
        ] {
            let told = filter(levels).unwrap_err();
            assert!(told.starts_with("OUTPACE_LOG is invalid: `"), "{told}");
        }
    }
}
