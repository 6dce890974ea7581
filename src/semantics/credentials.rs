//! Proxy credentials in `Proxy-Authorization: Basic` (RFC 9110 section 11.7.2, RFC 7617), and the
//! names of fields that hold credentials.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Returns the name and the token that a client sends from its proxy URL. Returns `None` for
/// another scheme or an unreadable value.
pub fn proxy_credentials(headers: &HeaderMap) -> Option<(String, String)> {
    let value = headers.get(header::PROXY_AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = value.trim().split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (name, token) = decoded.split_once(':')?;
    Some((name.to_owned(), token.to_owned()))
}

/// Returns the bearer token of a request (RFC 6750 section 2.1). The name of the scheme is
/// case-insensitive (RFC 9110 section 11.1).
pub fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let is_bearer = scheme.eq_ignore_ascii_case("Bearer");
    is_bearer.then(|| token.trim())
}

/// Returns true if the name of a header field indicates that its value is a credential.
pub fn is_credential(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let parts = ["authorization", "cookie", "key", "token", "secret"];
    name != "idempotency-key" && parts.iter().any(|part| name.contains(part))
}

/// Returns the credential by which an origin tells clients apart: `Authorization`, or else the first
/// field whose name indicates one. Fields for which `replaced` returns true do not reach the origin.
/// Cookies and fields with a new value in each request do not count.
pub fn own_credential(
    headers: &HeaderMap,
    replaced: impl Fn(&HeaderName) -> bool,
) -> Option<&HeaderValue> {
    if let Some(value) = headers.get(header::AUTHORIZATION)
        && !replaced(&header::AUTHORIZATION)
    {
        return Some(value);
    }
    let parts = ["authorization", "key", "token", "secret"];
    let others = [
        "idempotency-key",
        "proxy-authorization",
        "outpace-client-token",
    ];
    let mut named = headers.iter().filter(|(name, _)| {
        let text = name.as_str();
        parts.iter().any(|part| text.contains(part))
            && !others.contains(&text)
            && !["sec-", "x-csrf", "x-xsrf", "csrf"]
                .iter()
                .any(|prefix| text.starts_with(prefix))
            && !replaced(name)
    });
    named.next().map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_of_a_bearer_token_is_case_insensitive() {
        for (value, token) in [
            ("Bearer a:b", Some("a:b")),
            ("bearer a:b", Some("a:b")),
            ("BEARER   a:b ", Some("a:b")),
            ("Bearer", None),
            ("Basic a:b", None),
            ("Bearera:b", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            assert_eq!(bearer_token(&headers), token, "{value}");
        }
    }

    #[test]
    fn basic_credentials_are_read_and_nothing_else() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::PROXY_AUTHORIZATION, value.parse().unwrap());
            proxy_credentials(&headers)
        };
        assert_eq!(
            read("Basic YXBwOnNlOmNyZXQ="),
            Some(("app".into(), "se:cret".into()))
        );
        assert_eq!(read("basic YXBwOg=="), Some(("app".into(), String::new())));
        assert_eq!(read("Bearer abc"), None);
        assert_eq!(read("Basic !!!"), None);
    }

    #[test]
    fn a_client_s_own_credential_is_the_one_that_reaches_the_origin() {
        for (lines, replaced, found) in [
            (
                &[("authorization", "a"), ("x-api-key", "k")][..],
                "",
                Some("a"),
            ),
            (
                &[("authorization", "a"), ("x-api-key", "k")],
                "authorization",
                Some("k"),
            ),
            (&[("x-api-key", "k")], "", Some("k")),
            (&[("api-key", "k")], "api-key", None),
            (&[("cookie", "c"), ("sec-websocket-key", "w")], "", None),
            (&[("x-csrf-token", "t"), ("idempotency-key", "i")], "", None),
            (
                &[("outpace-client-token", "o"), ("proxy-authorization", "p")],
                "",
                None,
            ),
        ] {
            let headers = crate::semantics::map(lines);
            let own = own_credential(&headers, |name| name.as_str() == replaced);
            assert_eq!(
                own.map(HeaderValue::as_bytes),
                found.map(str::as_bytes),
                "{lines:?}"
            );
        }
    }

    #[test]
    fn names_of_credentials_are_recognised() {
        for name in [
            "Authorization",
            "x-authorization",
            "cookie",
            "x-apikey",
            "api_key",
            "X-Api-Key",
            "x-auth-token",
            "client-secret",
            "x-amz-security-token",
        ] {
            assert!(is_credential(name), "{name}");
        }
        for name in ["idempotency-key", "Idempotency-Key", "accept", "x-shop"] {
            assert!(!is_credential(name), "{name}");
        }
    }
}
