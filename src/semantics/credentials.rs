//! Proxy credentials in `Proxy-Authorization: Basic` (RFC 9110 section 11.7.2, RFC 7617), and the
//! names of fields that hold credentials.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, header};

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
