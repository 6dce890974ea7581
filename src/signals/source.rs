//! The field of a response that names the wait, in the words of the origin.

use std::time::Duration;

use http::{HeaderName, header};

use super::demand::in_place;
use super::{Demand, Peek, ResponseView};
use crate::policy::{SignalRules, WaitPlace, WaitSource};
use crate::semantics::longest_wait;

/// Name for a wait that is in the body.
const BODY: &str = "body";

/// Returns the name and the value of the field with the longest wait. A wait in a body has the name
/// `body`, without a value. Without any wait it is the field with the reset that the demand follows.
pub(super) fn source(
    response: &ResponseView<'_>,
    rules: &SignalRules,
    demand: Demand,
) -> Option<(String, String)> {
    demand.not_before?;
    let (by_field, by_body) = (by_field(response, rules), by_body(response, rules));
    let name = match by_field {
        Some((wait, name)) if by_body.is_none_or(|other| other <= wait) => Some(name),
        None if by_body.is_none() => by_reset(response, demand),
        _ => None,
    };
    let Some(name) = name else {
        return Some((BODY.to_owned(), String::new()));
    };
    let value = response.headers.get(&name)?;
    let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
    Some((name.as_str().to_owned(), value))
}

/// Returns the longest wait of a field, with the field's name.
fn by_field(response: &ResponseView<'_>, rules: &SignalRules) -> Option<(Duration, HeaderName)> {
    let configured = rules.wait.iter().filter_map(|place| match &place.source {
        WaitSource::Header(name) => Some((name.clone(), if place.millis { 1e-3 } else { 1.0 })),
        WaitSource::Json(_) => None,
    });
    let general = [
        (header::RETRY_AFTER, 1.0),
        (HeaderName::from_static("retry-after-ms"), 1e-3),
        (HeaderName::from_static("x-ms-retry-after-ms"), 1e-3),
    ];
    let waits = configured.chain(general).filter_map(|(name, unit)| {
        let wait = longest_wait(response.headers, &name, unit, response.wall)?;
        Some((wait, name))
    });
    waits.max_by_key(|(wait, _)| *wait)
}

/// Returns the longest wait in the body.
fn by_body(response: &ResponseView<'_>, rules: &SignalRules) -> Option<Duration> {
    let in_json = |place: &&WaitPlace| matches!(place.source, WaitSource::Json(_));
    let configured = rules.wait.iter().filter(in_json);
    let configured = configured.filter_map(|place| in_place(response, place));
    let wait = |peek: &Peek| peek.wait(response.origin_now());
    configured.chain(response.peek.and_then(wait)).max()
}

/// Returns the name of the field whose reset is nearest to the demand's instant, or else of a field
/// about limits in general.
fn by_reset(response: &ResponseView<'_>, demand: Demand) -> Option<HeaderName> {
    let asked = demand.not_before?.since(response.now);
    let named = |part: &'static str| {
        let names = response.headers.keys();
        names.filter(move |name| name.as_str().contains(part))
    };
    let distance = |name: &&HeaderName| {
        let wait = longest_wait(response.headers, name, 1.0, response.wall);
        wait.map_or(Duration::MAX, |wait| wait.abs_diff(asked))
    };
    let reset = named("reset").min_by_key(distance);
    reset
        .or_else(|| named("ratelimit").find(|name| !name.as_str().contains("policy")))
        .cloned()
}
