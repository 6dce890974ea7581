//! Form of the program's own events: one JSON object per line, with the members of a canonical line.

use std::fmt;

use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::otel;

/// Format of an event as a JSON object with `time`, `level`, `message` and the event's fields.
#[derive(Debug)]
pub(super) struct JsonEvents;

impl<S, N> FormatEvent<S, N> for JsonEvents
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut members = EventMembers::default();
        members.add("time", &now().into());
        members.add("level", &level(*event.metadata().level()).into());
        event.record(&mut members);
        let line = format!("{{{}}}", members.0);
        match otel::is_selected() {
            true => writeln!(writer, "{}", otel::record(&line, "outpace.events")),
            false => writeln!(writer, "{line}"),
        }
    }
}

/// Length of a time stamp up to its milliseconds, without the zone.
const MILLISECONDS: usize = "2026-01-02T03:04:05.006".len();

/// Returns the present time as the canonical line has it.
fn now() -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut text));
    // The text has microseconds.
    match text.split_at_checked(MILLISECONDS) {
        Some((millis, _)) => format!("{millis}Z"),
        None => text,
    }
}

const fn level(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

/// EventMembers of a JSON object, without its braces.
#[derive(Debug, Default)]
struct EventMembers(String);

impl EventMembers {
    fn add(&mut self, name: &str, value: &Value) {
        if !self.0.is_empty() {
            self.0.push(',');
        }
        let name = Value::from(name);
        self.0.push_str(&format!("{name}:{value}"));
    }
}

impl Visit for EventMembers {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field.name(), &value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field.name(), &value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field.name(), &value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field.name(), &value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field.name(), &value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field.name(), &format!("{value:?}").into());
    }
}
