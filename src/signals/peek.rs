//! Beginning of a refusal's body, as far as it holds a signal.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode, header};
use serde_json::Value;

use super::LimitUnit;
use crate::bounds::ASIDE_BYTES;
use crate::content::{Codings, decode_whole};
use crate::policy::SignalRules;
use crate::semantics::wait_in;

/// Content of a body that was read for its signals.
#[derive(Debug, Clone, PartialEq)]
pub struct Peek(PeekContent);

#[derive(Debug, Clone, PartialEq)]
enum PeekContent {
    Json(Value),
    Xml(Box<str>),
}

/// Codes of an origin that refused a request before it processed it.
const NOT_PROCESSED: [&str; 5] = [
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "TooManyRequestsException",
];

impl Peek {
    /// Returns true if the body of this response may hold a signal. The body is then JSON, or the
    /// XML of a 503, and its content codings are known.
    pub fn is_wanted(status: StatusCode, headers: &HeaderMap, rules: &SignalRules) -> bool {
        let general = matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        );
        (general || rules.need_body(status))
            && (is_json(headers) || status == StatusCode::SERVICE_UNAVAILABLE && is_xml(headers))
            && Codings::of(headers).is_some()
    }

    /// Reads a whole body of at most [`ASIDE_BYTES`], coded or not. Returns `None` if it is longer
    /// once it is decoded, or not what its head says.
    pub fn parse(headers: &HeaderMap, body: &[u8]) -> Option<Self> {
        let body = decode_whole(&Codings::of(headers)?, body, ASIDE_BYTES)?;
        let body = &*body;
        if is_json(headers) {
            let json = serde_json::from_slice(body).ok()?;
            return Some(Self(PeekContent::Json(json)));
        }
        let text = is_xml(headers).then(|| std::str::from_utf8(body).ok())??;
        Some(Self(PeekContent::Xml(text.into())))
    }

    pub(super) const fn json(&self) -> Option<&Value> {
        match &self.0 {
            PeekContent::Json(json) => Some(json),
            PeekContent::Xml(_) => None,
        }
    }

    fn text(&self, pointer: &str) -> Option<&str> {
        self.json()?.pointer(pointer)?.as_str()
    }

    /// Returns true if the code of the body says that a quota is spent.
    pub(super) fn is_quota(&self) -> bool {
        ["/error/code", "/error/type"]
            .iter()
            .any(|pointer| self.text(pointer) == Some("insufficient_quota"))
    }

    /// Returns true if the body says that every limit of the credential is meant.
    pub(super) fn is_global(&self) -> bool {
        let global = self.json().and_then(|json| json.pointer("/global"));
        global.and_then(Value::as_bool).unwrap_or(false)
    }

    /// Returns true if the message names a secondary limit, as GitHub does.
    pub(super) fn is_secondary(&self) -> bool {
        let text = self
            .text("/message")
            .or_else(|| self.text("/errors/0/message"));
        text.is_some_and(|text| text.contains("secondary rate limit"))
    }

    /// Returns the unit of the limit that the body names, as OpenAI does.
    pub(super) fn unit(&self) -> Option<LimitUnit> {
        match self.text("/error/type")? {
            "requests" => Some(LimitUnit::Requests),
            "tokens" => Some(LimitUnit::Tokens),
            _ => None,
        }
    }

    /// Returns true if the code of the body says that the origin did not process the request.
    pub(super) fn is_not_processed(&self) -> bool {
        match &self.0 {
            PeekContent::Json(_) => ["/__type", "/code", "/Code", "/error/code"]
                .iter()
                .filter_map(|pointer| self.text(pointer))
                .any(is_not_processed),
            PeekContent::Xml(text) => {
                let code = text.split_once("<Code>");
                let code = code.and_then(|(_, rest)| rest.split_once("</Code>"));
                code.is_some_and(|(code, _)| is_not_processed(code))
            }
        }
    }

    /// Returns the longest time for which the body asks clients to wait.
    pub(super) fn wait(&self, origin_now: SystemTime) -> Option<Duration> {
        let seconds = self.json()?.pointer("/retry_after").and_then(scalar);
        let seconds = seconds.and_then(|text| wait_in(&text, 1.0, origin_now));
        [seconds, self.retry_info(origin_now), self.wait_in_text()]
            .into_iter()
            .flatten()
            .max()
    }

    /// Returns the `retryDelay` of a `RetryInfo`, which Google's APIs send.
    fn retry_info(&self, origin_now: SystemTime) -> Option<Duration> {
        let details = self.json()?.pointer("/error/details")?.as_array()?;
        let delays = details.iter().filter_map(|detail| {
            let kind = detail.get("@type")?.as_str()?;
            let delay = detail.get("retryDelay")?.as_str()?;
            kind.ends_with("google.rpc.RetryInfo").then_some(delay)
        });
        delays
            .filter_map(|delay| wait_in(delay, 1.0, origin_now))
            .max()
    }

    /// Returns the wait in a message such as `Please try again in 41.724s.`
    fn wait_in_text(&self) -> Option<Duration> {
        let (_, rest) = self.text("/error/message")?.split_once("try again in ")?;
        let word = rest.split_whitespace().next()?;
        let word = word.trim_end_matches(['.', ',']);
        // A number without a unit may be anything.
        let has_unit = word.ends_with(|c: char| c.is_ascii_alphabetic());
        wait_in(has_unit.then_some(word)?, 1.0, SystemTime::UNIX_EPOCH)
    }
}

/// Returns true if this code says that the origin did not process the request. AWS may add a
/// namespace before it and a URL behind it.
pub(super) fn is_not_processed(code: &str) -> bool {
    let code = code.rsplit('#').next().unwrap_or(code);
    let code = code.split(':').next().unwrap_or(code);
    NOT_PROCESSED.contains(&code.trim())
}

/// Returns a JSON number or string as text.
pub(super) fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn content_type(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(text.split(';').next().unwrap_or(text).trim())
}

fn is_json(headers: &HeaderMap) -> bool {
    content_type(headers).is_some_and(|kind| {
        let kind = kind.to_ascii_lowercase();
        kind.ends_with("/json") || kind.ends_with("+json")
    })
}

fn is_xml(headers: &HeaderMap) -> bool {
    content_type(headers).is_some_and(|kind| {
        let kind = kind.to_ascii_lowercase();
        kind.ends_with("/xml") || kind.ends_with("+xml")
    })
}
