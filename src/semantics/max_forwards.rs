//! The `Max-Forwards` field (RFC 9110 section 7.6.2), which bounds the number of proxies that pass an
//! OPTIONS request on. TRACE, the other method with this field, is never passed on.

use http::Method;
use http::header::{self, HeaderMap, HeaderValue};

/// Returns true if a request must be answered here, because it may not be passed on further.
pub fn is_last_hop(method: &Method, headers: &HeaderMap) -> bool {
    remaining(method, headers) == Some(0)
}

/// Decrements the field of a request that is passed on.
pub fn count_hop(method: &Method, headers: &mut HeaderMap) {
    if let Some(count) = remaining(method, headers) {
        let count = HeaderValue::from(count.saturating_sub(1));
        headers.insert(header::MAX_FORWARDS, count);
    }
}

/// Returns the number of further hops, or `None` without a valid field. A number beyond 64 bits
/// counts as the largest one.
fn remaining(method: &Method, headers: &HeaderMap) -> Option<u64> {
    let value = headers.get(header::MAX_FORWARDS);
    let digits = value
        .filter(|_| *method == Method::OPTIONS)?
        .to_str()
        .ok()?;
    let is_number = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    is_number.then(|| digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hop_is_counted_and_the_last_one_is_recognised() {
        for (method, value, is_last, left) in [
            ("OPTIONS", "0", true, "0"),
            ("OPTIONS", "000", true, "0"),
            ("OPTIONS", "1", false, "0"),
            ("OPTIONS", "10", false, "9"),
            (
                "OPTIONS",
                "99999999999999999999",
                false,
                "18446744073709551614",
            ),
            ("OPTIONS", "-1", false, "-1"),
            ("OPTIONS", "x", false, "x"),
            ("GET", "0", false, "0"),
        ] {
            let method: Method = method.parse().unwrap();
            let mut headers = crate::semantics::map(&[("max-forwards", value)]);
            assert_eq!(is_last_hop(&method, &headers), is_last, "{method} {value}");
            count_hop(&method, &mut headers);
            assert_eq!(headers[header::MAX_FORWARDS], left, "{method} {value}");
        }
        assert!(!is_last_hop(&Method::OPTIONS, &HeaderMap::new()));
    }
}
