//! Error responses that outpace generates: problem+json (RFC 9457) with `Proxy-Status` (RFC 9209).
//!
//! `Retry-After` is included if the time is known.

use std::time::Duration;

use http::{HeaderValue, Response, header};
use schemars::JsonSchema;
use serde::Serialize;

use super::error::Error;
use super::reason::Reason;
use super::record::Recording;
use super::respond::ResponseBody;
use crate::semantics;

/// Body of an error response (RFC 9457). The `error` object is for API clients, which read their
/// messages from there.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Problem<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    remedy: &'a str,
    reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'a str>,
    exchange: &'a str,
    error: ErrorObject<'a>,
}

/// Error in the form in which SDKs of common APIs look for it.
#[derive(Debug, Serialize, JsonSchema)]
struct ErrorObject<'a> {
    message: &'a str,
    r#type: &'a str,
    code: &'a str,
}

impl Recording {
    /// Ends the exchange with `error` and returns the response for it.
    pub fn refuse(mut self: Box<Self>, error: &Error) -> Response<ResponseBody> {
        self.refused(error);
        let response = response(error, self.target.as_deref(), &self.id.to_string());
        self.end();
        response
    }
}

fn response(error: &Error, target: Option<&str>, exchange: &str) -> Response<ResponseBody> {
    let row = error.reason.row();
    let problem = Problem {
        r#type: format!("urn:outpace:reason:{}", row.token),
        title: row.meaning,
        status: row.status.as_u16(),
        detail: &error.detail,
        remedy: error.remedy.as_deref().unwrap_or(row.remedy),
        reason: row.token,
        target,
        limit: error.limit.as_deref(),
        retry_after: error.retry_after.map(|wait| wait.as_secs_f64()),
        state: error.state,
        exchange,
        error: ErrorObject {
            message: &error.detail,
            r#type: "outpace_error",
            code: row.token,
        },
    };
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    let mut response = Response::new(ResponseBody::full(body));
    *response.status_mut() = row.status;
    let headers = response.headers_mut();
    let kind = HeaderValue::from_static("application/problem+json");
    headers.insert(header::CONTENT_TYPE, kind);
    semantics::forbid_sniffing(headers);
    let cause = format!("{}: {}", row.token, error.detail);
    let proxy_status = semantics::made_by_us(row.proxy_error, &cause);
    headers.insert(semantics::PROXY_STATUS, proxy_status);
    if let Some(wait) = error.retry_after {
        headers.insert(header::RETRY_AFTER, semantics::write_retry_after(wait));
        headers.insert("retry-after-ms", HeaderValue::from(millis(wait)));
    }
    let challenge = HeaderValue::from_static("Basic realm=\"outpace\"");
    match error.reason {
        Reason::ClientUnknown => {
            headers.insert(header::PROXY_AUTHENTICATE, challenge);
        }
        Reason::ClientTokenUnknown => {
            let challenge = HeaderValue::from_static("Outpace-Client-Token");
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        // Bytes that follow a malformed request may not be the next request. HTTP/2 has no such
        // field, so hyper leaves it out there.
        Reason::MalformedRequest => {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        // RFC 9110 section 15.5.6 requires the allowed methods in a 405.
        Reason::MethodNotAllowed | Reason::CallMethod => {
            let others = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
            let named = error.allow.as_deref().cloned();
            let allow = named.unwrap_or_else(|| HeaderValue::from_static(others));
            headers.insert(header::ALLOW, allow);
        }
        _ => {}
    }
    response
}

fn millis(wait: Duration) -> u64 {
    u64::try_from(wait.as_nanos().div_ceil(1_000_000))
        .unwrap_or(u64::MAX)
        .max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_no_is_marked_as_ours_and_says_what_to_do() {
        for &reason in Reason::ALL {
            let error = Error::new(reason, "it \"happened\"").after(Duration::from_millis(1200));
            let response = response(&error, Some("t"), "x-1");
            let status = &response.headers()[semantics::PROXY_STATUS];
            let status = status.to_str().unwrap();
            assert!(status.starts_with("outpace; error=") && status.contains(reason.row().token));
            assert_eq!(response.headers()[header::RETRY_AFTER], "2");
            assert!(reason.row().remedy.ends_with('.') && reason.row().meaning.ends_with('.'));
        }
    }
}
