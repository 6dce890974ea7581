//! Consequence of a response for its request: its kind, and the earliest instant of a retry.

use std::time::Duration;

use http::{HeaderName, StatusCode, header};

use super::peek::{is_not_processed, scalar};
use super::{Demand, Dimension, Peek, ResponseView, SignalKind, exhausted_until};
use crate::clock::Instant;
use crate::policy::{SignalRule, SignalRules, WaitPlace, WaitSource};
use crate::semantics::{date, longest_wait, retry_after, wait_in};

/// Status of an origin that is overloaded and did not process the request. No RFC defines it.
const OVERLOADED: u16 = 529;
/// Field in which AWS names the code of an error.
const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");
/// Field with the amount that is left of a limit.
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");

/// Decides the consequence of a response with these limits.
pub(super) fn demand(
    response: &ResponseView<'_>,
    rules: &SignalRules,
    dimensions: &[Dimension],
) -> Demand {
    let kind = kind(response, rules);
    if kind == SignalKind::None && response.status.as_u16() < 400 {
        return Demand::default();
    }
    let asked = asked(response, rules, kind).map(|wait| response.now + wait);
    let by_reset = || match kind {
        SignalKind::Limited => reset(dimensions),
        _ => None,
    };
    Demand {
        kind,
        not_before: asked.or_else(by_reset),
        unprocessed: is_unprocessed(response, kind),
    }
}

/// Decides the kind. The target's rules precede the general ones.
fn kind(response: &ResponseView<'_>, rules: &SignalRules) -> SignalKind {
    let ResponseView {
        status, headers, ..
    } = *response;
    let json = response.peek.and_then(Peek::json);
    let lists = [
        (&rules.quota, SignalKind::QuotaExhausted),
        (&rules.lock, SignalKind::Lock),
        (&rules.limited, SignalKind::Limited),
        (&rules.overloaded, SignalKind::Overloaded),
    ];
    let matches = |rule: &SignalRule| rule.matches(status, headers, json);
    let configured = lists.iter().find(|(list, _)| list.iter().any(matches));
    if let Some((_, kind)) = configured {
        return *kind;
    }
    match status {
        StatusCode::TOO_MANY_REQUESTS => match response.peek.is_some_and(Peek::is_quota) {
            true => SignalKind::QuotaExhausted,
            false => SignalKind::Limited,
        },
        StatusCode::FORBIDDEN => {
            let remaining = headers.get(REMAINING);
            match remaining.is_some_and(|value| value.as_bytes().trim_ascii() == b"0") {
                true => SignalKind::Limited,
                false => SignalKind::None,
            }
        }
        StatusCode::SERVICE_UNAVAILABLE => SignalKind::Overloaded,
        status if status.as_u16() == OVERLOADED => SignalKind::Overloaded,
        _ => SignalKind::None,
    }
}

/// Returns the longest time for which the response asks clients to wait, in any place.
fn asked(response: &ResponseView<'_>, rules: &SignalRules, kind: SignalKind) -> Option<Duration> {
    let headers = response.headers;
    let by_field = retry_after(headers, response.wall);
    let by_rules = rules
        .wait
        .iter()
        .filter_map(|place| in_place(response, place));
    let peek = response.peek.filter(|_| kind != SignalKind::None);
    let by_body = peek.and_then(|peek| peek.wait(response.origin_now()));
    by_rules.chain(by_field).chain(by_body).max()
}

/// Returns the wait in a place that the target's rules name.
pub(super) fn in_place(response: &ResponseView<'_>, place: &WaitPlace) -> Option<Duration> {
    let unit = if place.millis { 1e-3 } else { 1.0 };
    match &place.source {
        WaitSource::Header(name) => longest_wait(response.headers, name, unit, response.wall),
        WaitSource::Json(path) => {
            let found = path.find(response.peek?.json()?);
            let texts = found.filter_map(scalar);
            let origin_now = response.origin_now();
            texts
                .filter_map(|text| wait_in(&text, unit, origin_now))
                .max()
        }
    }
}

/// Returns the instant at which the limits that refused the request are full again. Without a limit
/// of which nothing is left, those with an unknown rest count.
fn reset(dimensions: &[Dimension]) -> Option<Instant> {
    let unknown = dimensions.iter().filter(|limit| limit.remaining.is_none());
    let unknown = unknown.filter_map(|limit| limit.reset).max();
    exhausted_until(dimensions).or(unknown)
}

/// Returns true if the origin certainly did not process the request.
fn is_unprocessed(response: &ResponseView<'_>, kind: SignalKind) -> bool {
    match kind {
        SignalKind::None => false,
        SignalKind::Limited | SignalKind::QuotaExhausted | SignalKind::Lock => true,
        SignalKind::Overloaded => {
            let code = response.headers.get(ERROR_TYPE);
            let code = code.and_then(|code| code.to_str().ok());
            response.status.as_u16() == OVERLOADED
                || code.is_some_and(is_not_processed)
                || response.peek.is_some_and(Peek::is_not_processed)
        }
    }
}

impl ResponseView<'_> {
    /// Returns the origin's time by its `Date`, or the time of the arrival if that is missing.
    pub(super) fn origin_now(&self) -> std::time::SystemTime {
        let text = self.headers.get(header::DATE);
        let text = text.and_then(|value| value.to_str().ok());
        text.and_then(|text| date(text.trim())).unwrap_or(self.wall)
    }
}
