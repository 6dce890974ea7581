//! The `Upgrade` field (RFC 9110 section 7.8): the protocol switches that may pass, and the check
//! of the 101 response.

use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};

use super::fields::elements;

/// Returns the protocol to which a request asks to switch, as the client wrote it, or `None` if the
/// switch must not pass. `h2c` is dropped (RFC 9113 section 3.1). A switch in a request with a body
/// is dropped too, because bytes after the head would be ambiguous.
pub fn requested_upgrade(
    method: &Method,
    version: Version,
    headers: &HeaderMap,
) -> Option<HeaderValue> {
    if version != Version::HTTP_11 || method == Method::CONNECT {
        return None;
    }
    let mut lines = headers.get_all(header::UPGRADE).iter();
    let protocol = lines.next()?;
    let announced =
        elements(headers, header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    let has_body = headers.contains_key(header::TRANSFER_ENCODING)
        || headers
            .get(header::CONTENT_LENGTH)
            .is_some_and(|length| length != "0");
    let alone = lines.next().is_none() && !protocol.as_bytes().contains(&b',');
    let name = protocol.as_bytes().trim_ascii();
    let http = name.eq_ignore_ascii_case(b"h2c") || name.to_ascii_lowercase().starts_with(b"http/");
    (announced && alone && !has_body && !http && !name.is_empty()).then(|| protocol.clone())
}

/// Returns true if a 101 response grants the requested protocol. Otherwise no byte may be relayed,
/// because the bytes that follow would belong to the next HTTP message.
pub fn switched(asked: Option<&HeaderValue>, status: StatusCode, headers: &HeaderMap) -> bool {
    let granted = headers.get(header::UPGRADE);
    status == StatusCode::SWITCHING_PROTOCOLS
        && asked.zip(granted).is_some_and(|(asked, granted)| {
            let granted = granted.as_bytes().trim_ascii();
            asked.as_bytes().trim_ascii().eq_ignore_ascii_case(granted)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(version: Version, lines: &[(&'static str, &str)]) -> Option<HeaderValue> {
        requested_upgrade(&Method::GET, version, &crate::semantics::map(lines))
    }

    #[test]
    fn a_websocket_is_asked_of_the_origin() {
        let lines = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
        ];
        assert!(asked(Version::HTTP_11, &lines).is_some());
        assert!(asked(Version::HTTP_10, &lines).is_none());
    }

    #[test]
    fn doubtful_switches_are_dropped() {
        let announced = ("connection", "upgrade");
        let websocket = ("upgrade", "websocket");
        for lines in [
            &[websocket][..],
            &[announced, ("upgrade", "h2c")],
            &[announced, ("upgrade", "HTTP/3.0")],
            &[announced, ("upgrade", "a, b")],
            &[announced, ("upgrade", "a"), ("upgrade", "b")],
            &[announced, websocket, ("content-length", "3")],
        ] {
            assert_eq!(asked(Version::HTTP_11, lines), None, "{lines:?}");
        }
    }

    #[test]
    fn only_the_protocol_that_was_asked_for_is_switched_to() {
        let asked = HeaderValue::from_static("websocket");
        let mut headers = HeaderMap::new();
        let status = StatusCode::SWITCHING_PROTOCOLS;
        assert!(!switched(Some(&asked), status, &headers));
        headers.insert(header::UPGRADE, HeaderValue::from_static("WebSocket"));
        assert!(switched(Some(&asked), status, &headers));
        assert!(!switched(Some(&asked), StatusCode::OK, &headers));
        assert!(!switched(None, status, &headers));
    }
}
