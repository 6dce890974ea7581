//! The field of a response that names the wait, in the words of the origin.

use http::{HeaderName, header};

use super::{Demand, ResponseView};
use crate::policy::{SignalRules, WaitSource};
use crate::semantics::longest_wait;

/// Name for a wait that is in the body.
const BODY: &str = "body";

/// Returns the name and the value of the field with the longest wait. A wait in a body has the name
/// `body`, without a value.
pub(super) fn source(
    response: &ResponseView<'_>,
    rules: &SignalRules,
    demand: Demand,
) -> Option<(String, String)> {
    demand.not_before?;
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
    let by_wait = waits.max_by_key(|(wait, _)| *wait).map(|(_, name)| name);
    let resets = response.headers.keys();
    let mut resets = resets.filter(|name| name.as_str().contains("reset"));
    let Some(name) = by_wait.or_else(|| resets.next().cloned()) else {
        return Some((BODY.to_owned(), String::new()));
    };
    let value = response.headers.get(&name)?;
    let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
    Some((name.as_str().to_owned(), value))
}
