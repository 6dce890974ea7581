//! The `Proxy-Status` field (RFC 9209), which names the proxy that handled a response, and the
//! cause.

use http::{HeaderName, HeaderValue, StatusCode};

/// Response field with the proxy and the cause (RFC 9209 section 2).
pub const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// Returns the value for a response that outpace made. It carries an RFC 9209 error type and the
/// reason. Characters that a quoted string cannot hold are dropped.
pub fn made_by_us(error: &str, reason: &str) -> HeaderValue {
    let details: String = reason
        .chars()
        .filter(|c| (' '..='~').contains(c) && *c != '"' && *c != '\\')
        .collect();
    HeaderValue::try_from(format!("outpace; error={error}; details=\"{details}\""))
        .unwrap_or(HeaderValue::from_static("outpace"))
}

/// Returns the value for an origin's refusal that is passed on, with the status received.
pub fn received(status: StatusCode) -> HeaderValue {
    HeaderValue::try_from(format!("outpace; received-status={}", status.as_u16()))
        .unwrap_or(HeaderValue::from_static("outpace"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_is_a_structured_field() {
        assert_eq!(
            made_by_us("dns_error", "no \"such\" host\u{e9}\n"),
            "outpace; error=dns_error; details=\"no such host\""
        );
        assert_eq!(
            received(StatusCode::TOO_MANY_REQUESTS),
            "outpace; received-status=429"
        );
    }
}
