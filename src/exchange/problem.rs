//! Error responses that outpace generates: problem+json (RFC 9457) with `Proxy-Status` (RFC 9209).
//!
//! `Retry-After` is included if the time is known.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Response, header};
use serde::Serialize;

use super::reason::Reason;
use super::respond::ResponseBody;
use crate::spool::{SealError, StoreError};
use crate::{origin, semantics};

/// Error that outpace reports instead of a response, with the details of this case.
#[derive(Debug, Clone)]
pub struct Error {
    /// Reason, which selects the status code, the log level and the general texts.
    pub reason: Reason,
    /// Cause in this case as text, including its numbers with units.
    pub detail: String,
    /// Name of the limit that held the request, or `None` if no limit did.
    pub limit: Option<Arc<str>>,
    /// Time after which a retry may succeed, or `None` if it is unknown.
    pub retry_after: Option<Duration>,
}

impl Error {
    /// Creates an error with a detail, without a limit and without a retry time.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
            limit: None,
            retry_after: None,
        }
    }

    /// Returns the error with `wait` as the time after which a retry may succeed.
    #[must_use]
    pub const fn after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }
}

impl From<semantics::Malformed> for Error {
    fn from(problem: semantics::Malformed) -> Self {
        Self::new(Reason::MalformedRequest, problem.to_string())
    }
}

impl From<origin::OriginError> for Error {
    fn from(error: origin::OriginError) -> Self {
        let reason = match &error {
            origin::OriginError::Unresolved { .. } => Reason::OriginUnresolved,
            origin::OriginError::Prohibited { .. } => Reason::AddressProhibited,
            origin::OriginError::Ourselves(_) => Reason::LoopDetected,
            origin::OriginError::Refused(_) => Reason::OriginRefused,
            origin::OriginError::ConnectTimeout => Reason::OriginConnectTimeout,
            origin::OriginError::Certificate(_) => Reason::OriginCertificate,
            origin::OriginError::Tls(_) => Reason::OriginTls,
            origin::OriginError::ParentProxy(_) => Reason::ParentProxy,
            origin::OriginError::Broken(_) => Reason::OriginBroke,
        };
        Self::new(reason, error.to_string())
    }
}

/// Time in `Retry-After` if the spool is full.
const FULL_WAIT: Duration = Duration::from_secs(30);

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let reason = match &error {
            StoreError::Unknown(_) => Reason::NotFound,
            StoreError::NameTaken(_) | StoreError::Conflict(_) => Reason::Conflict,
            StoreError::KeyReused => Reason::KeyReused,
            StoreError::Full { .. } => Reason::SpoolFull,
            StoreError::Damaged(_) | StoreError::Away(_) => Reason::SpoolUnavailable,
        };
        let told = Self::new(reason, error.to_string());
        match reason {
            Reason::SpoolFull => told.after(FULL_WAIT),
            _ => told,
        }
    }
}

impl From<SealError> for Error {
    fn from(error: SealError) -> Self {
        Self::new(Reason::NotSpoolable, error.to_string())
    }
}

/// Body of an error response (RFC 9457). The `error` object is for API clients, which read their
/// messages from there.
#[derive(Debug, Serialize)]
struct Problem<'a> {
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
    exchange: &'a str,
    error: ErrorObject<'a>,
}

#[derive(Debug, Serialize)]
struct ErrorObject<'a> {
    message: &'a str,
    r#type: &'a str,
    code: &'a str,
}

/// Builds the response for an error. `exchange` is the id of the exchange in the log.
pub fn response(error: &Error, target: Option<&str>, exchange: &str) -> Response<ResponseBody> {
    let row = error.reason.row();
    let problem = Problem {
        r#type: format!("urn:outpace:reason:{}", row.token),
        title: row.meaning,
        status: row.status.as_u16(),
        detail: &error.detail,
        remedy: row.remedy,
        reason: row.token,
        target,
        limit: error.limit.as_deref(),
        retry_after: error.retry_after.map(|wait| wait.as_secs_f64()),
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
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    headers.insert(
        semantics::PROXY_STATUS,
        semantics::made_by_us(row.proxy_error, &format!("{}: {}", row.token, error.detail)),
    );
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
            headers.insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Outpace-Client-Token"),
            );
        }
        // RFC 9110 section 15.5.6 requires the allowed methods in a 405.
        Reason::MethodNotAllowed => {
            let others = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
            headers.insert(header::ALLOW, HeaderValue::from_static(others));
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
        for reason in Reason::ALL {
            let error = Error::new(reason, "it \"happened\"").after(Duration::from_millis(1200));
            let response = response(&error, Some("t"), "x-1");
            let status = response.headers()[&semantics::PROXY_STATUS]
                .to_str()
                .unwrap();
            assert!(status.starts_with("outpace; error=") && status.contains(reason.row().token));
            assert_eq!(response.headers()[header::RETRY_AFTER], "2");
            assert!(reason.row().remedy.ends_with('.') && reason.row().meaning.ends_with('.'));
        }
    }
}
