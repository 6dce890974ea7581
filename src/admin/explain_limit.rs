//! Part of an explanation about one limit: its numbers with their units, its key, its conditions and
//! its cost.

use serde_json::{Value, json};

use crate::ledger::spec_of;
use crate::policy::{Bound, Condition, KeySecret, Limit, RequestView};
use crate::schedule::Spec;
use crate::semantics::is_credential;

/// Characters of a value that an explanation shows.
const SHOWN: usize = 128;

/// Describes how the limit counts under the bound in force: the time of one unit, and how it is
/// rounded.
pub(super) fn pace(bound: Bound) -> Value {
    let spec = spec_of(bound);
    let pace = match spec {
        Spec::Token {
            interval,
            tolerance,
            ..
        } => {
            let burst = tolerance / interval.max(1) + 1;
            format!(
                "one unit per {}, rounded up to a whole nanosecond; at most {burst} at once",
                time(interval)
            )
        }
        Spec::Sliding { n, window } => {
            format!("at most {n} units in any {}", time(window))
        }
        Spec::Fixed { n, window, guard } => format!(
            "at most {n} units per calendar window of {}; none in the first and last {} of it",
            time(window),
            time(guard)
        ),
        Spec::Permits { n } => {
            return json!({ "text": format!("{n} permits, each until its response has ended") });
        }
    };
    json!({ "text": pace, "interval_ns": spec.interval() })
}

/// Formats nanoseconds as seconds or milliseconds.
fn time(nanos: i64) -> String {
    match nanos {
        1_000_000_000.. => format!("{} s", nanos as f64 / 1e9),
        _ => format!("{} ms", nanos as f64 / 1e6),
    }
}

/// Describes the parts of the key, with a digest in place of a value that may be secret.
pub(super) fn key(limit: &Limit, asked: &RequestView<'_>, secret: &KeySecret) -> Value {
    let Some(key) = &limit.key else {
        return Value::Null;
    };
    let parts = key.parts(asked, secret).into_iter().map(|part| {
        let (value, digest) = match (part.is_present, part.is_digest) {
            (false, _) => (None, None),
            (true, false) => (Some(part.text), None),
            (true, true) => (None, Some(part.text)),
        };
        json!({
            "source": part.source,
            "value": value.as_deref(),
            "digest": digest.as_deref(),
        })
    });
    parts.collect()
}

/// Describes the conditions, with the values that the request has for them.
pub(super) fn conditions(limit: &Limit, asked: &RequestView<'_>) -> Value {
    let Some(matcher) = &limit.matcher else {
        return Value::Null;
    };
    let one = |condition: Condition<'_>| {
        let hidden = condition.name().is_some_and(is_credential);
        let read = condition.read(asked).into_iter().map(|value| match hidden {
            true => "(not shown)".to_owned(),
            false => value.chars().take(SHOWN).collect(),
        });
        let of_body = matches!(condition, Condition::Json(..));
        let unread = of_body && asked.json.is_some_and(|json| !json.is_read());
        json!({
            "rule": condition.shown(is_credential),
            "read": read.collect::<Vec<String>>(),
            "matches": condition.matches(asked),
            "note": unread.then_some("the body cannot be read to its end as JSON, so every pattern matches"),
        })
    };
    matcher.conditions().map(one).collect()
}

/// Describes the cost of the request: the number that was read, or the default, and the result of
/// rounding.
pub(super) fn cost(limit: &Limit, asked: &RequestView<'_>, charged: i64) -> Value {
    let Some(cost) = &limit.cost else {
        return Value::Null;
    };
    let (from, number) = match cost.read(asked) {
        Some((source, number)) => (source.to_string(), number),
        None => ("default".to_owned(), cost.default),
    };
    json!({
        "from": from,
        "read": number,
        "charged": charged,
        "max": cost.max,
        "rounding": "up, by at most a sixteenth, and to at most `max`",
    })
}

/// Formats the parts of an explanation as lines for people.
pub fn sentences(limit: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let list = |name: &str| limit[name].as_array().cloned().unwrap_or_default();
    let pace = text(&limit["pace"]["text"]);
    let pinned = || text(&limit["pinned"]).map(|pin| format!("pinned to {pin}"));
    let applies = match limit["applies"].as_bool() {
        Some(true) => "applies",
        _ => "does not apply",
    };
    let mut lines = vec![format!(
        "{} {applies}: {}; {}",
        text(&limit["name"]).unwrap_or_default(),
        text(&limit["amount"]).unwrap_or_default(),
        pace.or_else(pinned).unwrap_or_default()
    )];
    for condition in list("match") {
        let read = condition["read"].as_array().cloned().unwrap_or_default();
        let read: Vec<String> = read.iter().map(ToString::to_string).collect();
        let read = match read.is_empty() {
            true => "nothing".to_owned(),
            false => read.join(", "),
        };
        let verdict = match condition["matches"].as_bool() {
            Some(true) => "matches",
            _ => "does not match",
        };
        let rule = text(&condition["rule"]).unwrap_or_default();
        let note = text(&condition["note"]).map(|note| format!("; {note}"));
        let note = note.unwrap_or_default();
        lines.push(format!("  match {rule}: read {read}, {verdict}{note}"));
    }
    for part in list("key_parts") {
        let value = match (text(&part["value"]), text(&part["digest"])) {
            (Some(value), _) => value,
            (None, Some(digest)) => format!("digest {digest}"),
            (None, None) => "no value".to_owned(),
        };
        let source = text(&part["source"]).unwrap_or_default();
        lines.push(format!("  key {source}: {value}"));
    }
    if let Some(from) = text(&limit["cost_read"]["from"]) {
        let cost = &limit["cost_read"];
        let (read, charged) = (&cost["read"], &cost["charged"]);
        lines.push(format!("  cost: {read} from {from}, charged as {charged}"));
    }
    if let Some(settle) = text(&limit["settled_by"]) {
        lines.push(format!("  cost settled by {settle}"));
    }
    lines
}
