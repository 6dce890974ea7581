//! Fields for a single hop, and outpace's own fields (RFC 9110 section 7.6.1).
//!
//! One pass over a message finds the fields that matter here. Only those are examined further,
//! because most messages have few of them.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::proxy_status::remove_our_status;

/// Response field with the seconds for which the request was held. Every origin response that is
/// delivered for a target carries it.
pub const OUTPACE_WAITED: HeaderName = HeaderName::from_static("outpace-waited");
/// Response field with the number of times that the request was sent.
pub const OUTPACE_ATTEMPTS: HeaderName = HeaderName::from_static("outpace-attempts");
/// Request field with the name and token of a client on a route or the API, written `NAME:TOKEN`.
/// outpace removes the field.
pub const CLIENT_TOKEN: HeaderName = HeaderName::from_static("outpace-client-token");
/// Value `trailers` of `TE`, the only transfer coding preference that is forwarded (RFC 9110
/// section 10.1.4).
pub const REQUEST_TRAILERS: HeaderValue = HeaderValue::from_static("trailers");

const OURS: &str = "outpace-";
const HTTP2_SETTINGS: &str = "http2-settings";

/// The set of fields in a message that need treatment. One pass over all fields is cheaper than one
/// look-up per field, because most messages have few of them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct HeaderFlags(u16);

impl HeaderFlags {
    /// Flag of the `Connection` field (RFC 9110 section 7.6.1).
    pub const CONNECTION: Self = Self(1);
    /// Flag of any other field that is for a single hop.
    pub const HOP_BY_HOP: Self = Self(1 << 1);
    /// Flag of any field with the prefix `outpace-`.
    pub const OURS: Self = Self(1 << 2);
    /// Flag of `Content-Length` or `Transfer-Encoding` (RFC 9112 section 6).
    pub const FRAMING: Self = Self(1 << 3);
    /// Flag of the `Upgrade` field (RFC 9110 section 7.8).
    pub const UPGRADE: Self = Self(1 << 4);
    /// Flag of the `TE` field (RFC 9110 section 10.1.4).
    pub const TE: Self = Self(1 << 5);
    /// Flag of the `Expect` field (RFC 9110 section 10.1.1).
    pub const EXPECT: Self = Self(1 << 6);
    /// Flag of the `Via` field (RFC 9110 section 7.6.3).
    pub const VIA: Self = Self(1 << 7);
    /// Flag of the `Prefer` field (RFC 7240 section 2).
    pub const PREFER: Self = Self(1 << 8);
    /// Flag of the `Cookie` field (RFC 6265 section 5.4).
    pub const COOKIE: Self = Self(1 << 9);
    /// Flag of the `traceparent` field (W3C Trace Context).
    pub const TRACE: Self = Self(1 << 10);

    /// Collects the flags of all fields in one pass.
    pub fn of(headers: &HeaderMap) -> Self {
        let fields = headers.keys().map(|name| Self::field(name.as_str()));
        fields.fold(Self::default(), |all, field| all.and(field))
    }

    fn field(name: &str) -> Self {
        match name {
            "connection" => Self::CONNECTION,
            "content-length" => Self::FRAMING,
            "transfer-encoding" => Self::HOP_BY_HOP.and(Self::FRAMING),
            "upgrade" => Self::HOP_BY_HOP.and(Self::UPGRADE),
            "te" => Self::HOP_BY_HOP.and(Self::TE),
            "expect" => Self::HOP_BY_HOP.and(Self::EXPECT),
            "keep-alive"
            | "proxy-connection"
            | "proxy-authorization"
            | "proxy-authenticate"
            | "proxy-authentication-info"
            | HTTP2_SETTINGS
            | "trailer" => Self::HOP_BY_HOP,
            "via" => Self::VIA,
            "prefer" => Self::PREFER,
            "cookie" => Self::COOKIE,
            "traceparent" => Self::TRACE,
            name if name.starts_with(OURS) => Self::OURS,
            _ => Self::default(),
        }
    }

    const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns true if at least one of `fields` is present.
    pub const fn has(self, fields: Self) -> bool {
        self.0 & fields.0 != 0
    }
}

/// Returns true for a field that a configuration or an item must not set, because it is for a single
/// hop or outpace sets it itself.
pub fn is_reserved(name: &HeaderName) -> bool {
    let flags = HeaderFlags::field(name.as_str());
    let fields = [
        HeaderFlags::CONNECTION,
        HeaderFlags::HOP_BY_HOP,
        HeaderFlags::FRAMING,
        HeaderFlags::OURS,
        HeaderFlags::VIA,
    ];
    fields.into_iter().any(|reserved| flags.has(reserved))
        || name == header::HOST
        || name.as_str().starts_with("proxy-")
}

/// Removes the fields that must not reach the origin from a request. These are hop-by-hop fields,
/// the fields that `Connection` names, proxy credentials, `Expect` and outpace's own fields.
/// outpace answers `Expect` directly, and `TE: trailers` stays.
pub fn strip_request(headers: &mut HeaderMap, flags: HeaderFlags) {
    let trailers = flags.has(HeaderFlags::TE)
        && elements(headers, header::TE).any(|coding| coding.eq_ignore_ascii_case("trailers"));
    strip(
        headers,
        flags,
        [header::PROXY_AUTHORIZATION, header::EXPECT],
    );
    if trailers {
        headers.insert(header::TE, REQUEST_TRAILERS);
    }
}

/// Removes the hop-by-hop fields of a response, and every field that imitates one of outpace's own.
pub fn strip_response(headers: &mut HeaderMap) {
    let flags = HeaderFlags::of(headers);
    let info = const { HeaderName::from_static("proxy-authentication-info") };
    strip(headers, flags, [header::PROXY_AUTHENTICATE, info]);
    remove_our_status(headers);
}

/// Removes the fields for a single hop, among them `also`, and outpace's own fields.
fn strip(headers: &mut HeaderMap, flags: HeaderFlags, also: [HeaderName; 2]) {
    if flags.has(HeaderFlags::CONNECTION) {
        remove_named_by_connection(headers);
    }
    if flags.has(HeaderFlags::HOP_BY_HOP) {
        for name in ["keep-alive", "proxy-connection", HTTP2_SETTINGS] {
            headers.remove(name);
        }
        let known = [header::TE, header::TRANSFER_ENCODING, header::UPGRADE];
        for name in known.into_iter().chain(also) {
            headers.remove(name);
        }
        keep_honest_trailer_names(headers);
    }
    if flags.has(HeaderFlags::OURS) {
        remove_where(headers, |name| name.as_str().starts_with(OURS));
    }
}

/// Returns the elements of a list field from all its lines, except for unreadable elements.
pub(super) fn elements(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(name).into_iter();
    let elements = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    elements.filter_map(|element| std::str::from_utf8(element.trim_ascii()).ok())
}

fn remove_where(headers: &mut HeaderMap, matches: impl Fn(&HeaderName) -> bool) {
    let names: Vec<_> = headers
        .keys()
        .filter(|name| matches(name))
        .cloned()
        .collect();
    for name in names {
        headers.remove(name);
    }
}

/// Removes the fields that `Connection` names, and `Connection` too. Fields that the exchange
/// relies on stay, because a client could otherwise remove credentials or the framing.
fn remove_named_by_connection(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = elements(headers, header::CONNECTION)
        .filter_map(|name| name.parse().ok())
        .filter(|name| !relied_on(name))
        .collect();
    for name in named {
        headers.remove(name);
    }
    headers.remove(header::CONNECTION);
}

fn relied_on(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "authorization"
            | "host"
            | "cookie"
            | "content-length"
            | "content-type"
            | "idempotency-key"
            | "te"
            | "transfer-encoding"
            | "upgrade"
            | "connection"
    ) || name.as_str().starts_with(OURS)
}

/// Filters `Trailer`, which announces the trailer section (RFC 9110 section 6.6.2). hyper sends
/// only the trailers that this field names.
fn keep_honest_trailer_names(headers: &mut HeaderMap) {
    if !headers.contains_key(header::TRAILER) {
        return;
    }
    let names: Vec<String> = elements(headers, header::TRAILER)
        .filter_map(|name| name.parse::<HeaderName>().ok())
        .filter(may_be_trailer)
        .map(|name| name.to_string())
        .collect();
    match HeaderValue::try_from(names.join(", ")) {
        Ok(value) if !names.is_empty() => {
            headers.insert(header::TRAILER, value);
        }
        _ => {
            headers.remove(header::TRAILER);
        }
    }
}

/// Removes trailer fields that would frame, route or authenticate a message (RFC 9110 section
/// 6.5.1).
pub fn strip_trailers(trailers: &mut HeaderMap) {
    remove_where(trailers, |name| !may_be_trailer(name));
}

/// Returns true if a field may stand in a trailer section. Fields for framing, routing or
/// authentication may not (RFC 9110 section 6.5.1).
fn may_be_trailer(name: &HeaderName) -> bool {
    !matches!(
        name.as_str(),
        "content-length"
            | "transfer-encoding"
            | "host"
            | "te"
            | "trailer"
            | "connection"
            | "authorization"
            | "proxy-authorization"
            | "cookie"
            | "set-cookie"
            | "content-type"
            | "content-encoding"
            | "content-range"
            | "expect"
            | "max-forwards"
            | "upgrade"
            | "cache-control"
            | "range"
    ) && !name.as_str().starts_with(OURS)
}

/// Joins several `Cookie` lines into one. HTTP/2 may split the field into lines, but HTTP/1 must
/// not (RFC 9113 section 8.2.3).
pub fn join_cookies(headers: &mut HeaderMap) {
    let lines = || headers.get_all(header::COOKIE).iter();
    if lines().nth(1).is_none() {
        return;
    }
    let joined: Vec<_> = lines().map(HeaderValue::as_bytes).collect();
    if let Ok(value) = HeaderValue::from_bytes(&joined.join(&b"; "[..])) {
        headers.insert(header::COOKIE, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::semantics::map;

    fn strip_request_whole(headers: &mut HeaderMap) {
        strip_request(headers, HeaderFlags::of(headers));
    }

    fn names(map: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<_> = map.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn nothing_of_one_hop_reaches_the_origin() {
        let mut request = map(&[
            ("connection", "x-secret, Keep-Alive"),
            ("connection", "close"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic eDp5"),
            ("te", "gzip"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABk"),
            ("expect", "100-continue"),
            ("outpace-max-wait", "1s"),
            ("accept", "*/*"),
        ]);
        strip_request_whole(&mut request);
        assert_eq!(names(&request), ["accept"]);
    }

    #[test]
    fn connection_cannot_take_away_what_the_exchange_relies_on() {
        let mut request = map(&[
            ("connection", "authorization, cookie, content-length"),
            ("authorization", "Bearer x"),
            ("cookie", "a=b"),
            ("content-length", "3"),
        ]);
        strip_request_whole(&mut request);
        let kept = ["authorization", "content-length", "cookie"];
        assert_eq!(names(&request), kept);
    }

    #[test]
    fn an_unreadable_element_hides_no_other_element() {
        for line in [
            &b"\xff, x-secret"[..],
            b"x-secret,\xe9",
            b"a\xff,X-Secret\t, b\xff",
        ] {
            let mut request = map(&[("x-secret", "1"), ("accept", "*/*")]);
            let value = HeaderValue::from_bytes(line).unwrap();
            request.insert(header::CONNECTION, value);
            let mut response = request.clone();
            strip_request_whole(&mut request);
            strip_response(&mut response);
            assert_eq!(
                (names(&request), names(&response)),
                (vec!["accept"], vec!["accept"])
            );
        }
    }

    #[test]
    fn te_trailers_survives_alone() {
        let mut request = map(&[("te", "gzip;q=0.5, Trailers"), ("connection", "te")]);
        strip_request_whole(&mut request);
        assert_eq!(request.get(header::TE), Some(&REQUEST_TRAILERS));
        assert_eq!(names(&request), ["te"]);
    }

    #[test]
    fn a_response_cannot_speak_for_us() {
        let mut response = map(&[
            ("outpace-waited", "99"),
            ("proxy-authenticate", "Basic"),
            ("connection", "close, x-hop"),
            ("x-hop", "1"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
        ]);
        strip_response(&mut response);
        assert_eq!(names(&response), ["set-cookie"]);
        assert_eq!(response.get_all("set-cookie").iter().count(), 2);
    }

    #[test]
    fn only_harmless_trailers_are_announced() {
        let mut request = map(&[("trailer", "grpc-status, content-length, host")]);
        strip_request_whole(&mut request);
        assert_eq!(request.get(header::TRAILER).unwrap(), "grpc-status");
    }

    #[test]
    fn cookies_are_one_line_in_http_1() {
        let mut request = map(&[("cookie", "a=b"), ("cookie", "c=d")]);
        join_cookies(&mut request);
        assert!(request.get_all("cookie").iter().eq(["a=b; c=d"]));
    }

    #[test]
    fn an_ordinary_message_is_left_alone() {
        let before = map(&[
            ("accept", "*/*"),
            ("content-type", "text/plain"),
            ("x-a", "\u{e9}"),
        ]);
        let mut after = before.clone();
        strip_request_whole(&mut after);
        strip_response(&mut after);
        assert_eq!(before, after);
    }
}
