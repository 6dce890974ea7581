//! The `Upgrade` field (RFC 9110 section 7.8): the protocol switches that may pass, and the check
//! of the 101 response.

use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};

/// A protocol to which a client asks to switch. The request for it is forwarded to the origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgrade {
    /// Value of `Upgrade` as the client wrote it.
    pub protocol: HeaderValue,
}

/// Returns the protocol switch that a request asks for, or `None` if it must not pass. `h2c` is
/// dropped (RFC 9113 section 3.1). A switch in a request with a body is dropped too, because bytes
/// after the head would be ambiguous.
pub fn requested_upgrade(
    method: &Method,
    version: Version,
    headers: &HeaderMap,
) -> Option<Upgrade> {
    if version != Version::HTTP_11 || method == Method::CONNECT {
        return None;
    }
    let mut lines = headers.get_all(header::UPGRADE).iter();
    let protocol = lines.next()?;
    let announced = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .any(|line| {
            line.split(',')
                .any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
        });
    let has_body = headers.contains_key(header::TRANSFER_ENCODING)
        || headers
            .get(header::CONTENT_LENGTH)
            .is_some_and(|length| length != "0");
    let alone = lines.next().is_none() && !protocol.as_bytes().contains(&b',');
    let name = protocol.as_bytes().trim_ascii();
    let http = name.eq_ignore_ascii_case(b"h2c") || name.to_ascii_lowercase().starts_with(b"http/");
    (announced && alone && !has_body && !http && !name.is_empty()).then(|| Upgrade {
        protocol: protocol.clone(),
    })
}

/// Returns true if a 101 response grants the requested protocol. Otherwise no byte may be relayed,
/// because the bytes that follow would belong to the next HTTP message.
pub fn switched(asked: Option<&Upgrade>, status: StatusCode, headers: &HeaderMap) -> bool {
    let granted = headers.get(header::UPGRADE);
    status == StatusCode::SWITCHING_PROTOCOLS
        && asked.zip(granted).is_some_and(|(asked, granted)| {
            let (asked, granted) = (asked.protocol.as_bytes(), granted.as_bytes());
            asked
                .trim_ascii()
                .eq_ignore_ascii_case(granted.trim_ascii())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(version: Version, lines: &[(&'static str, &str)]) -> Option<Upgrade> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        requested_upgrade(&Method::GET, version, &headers)
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
        for lines in [
            &[("upgrade", "websocket")][..],
            &[("connection", "upgrade"), ("upgrade", "h2c")],
            &[("connection", "upgrade"), ("upgrade", "HTTP/3.0")],
            &[("connection", "upgrade"), ("upgrade", "a, b")],
            &[
                ("connection", "upgrade"),
                ("upgrade", "a"),
                ("upgrade", "b"),
            ],
            &[
                ("connection", "upgrade"),
                ("upgrade", "websocket"),
                ("content-length", "3"),
            ],
        ] {
            assert_eq!(asked(Version::HTTP_11, lines), None, "{lines:?}");
        }
    }

    #[test]
    fn only_the_protocol_that_was_asked_for_is_switched_to() {
        let asked = Upgrade {
            protocol: HeaderValue::from_static("websocket"),
        };
        let mut headers = HeaderMap::new();
        let status = StatusCode::SWITCHING_PROTOCOLS;
        assert!(!switched(Some(&asked), status, &headers));
        headers.insert(header::UPGRADE, HeaderValue::from_static("WebSocket"));
        assert!(switched(Some(&asked), status, &headers));
        assert!(!switched(Some(&asked), StatusCode::OK, &headers));
        assert!(!switched(None, status, &headers));
    }
}
