//! `Proxy-Status` (RFC 9209): who made this response, and why.

use http::{HeaderName, HeaderValue, StatusCode};

/// The field's name.
pub const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// The value for a response that outpace made: an RFC 9209 error type and our reason.
pub fn made_by_us(error: &str, reason: &str) -> HeaderValue {
    let details: String = reason
        .chars()
        .filter(|c| (' '..='~').contains(c) && *c != '"' && *c != '\\')
        .collect();
    HeaderValue::try_from(format!("outpace; error={error}; details=\"{details}\""))
        .unwrap_or(HeaderValue::from_static("outpace"))
}

/// The value for a refusal of the origin's that is passed on.
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
