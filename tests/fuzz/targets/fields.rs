//! Header fields of requests and responses: nothing of one hop is left, and the framing has one
//! meaning.

use http::{HeaderMap, Method, StatusCode, Version};
use outpace::semantics::{
    Framing, HeaderFlags, Pseudonym, count_hop, framing, is_last_hop, isolate_replay, join_cookies,
    requested_upgrade, response_framing, strip_request, strip_response, strip_trailers, switched,
    without_content,
};

use super::{Target, fields, joined};

pub(crate) const TARGET: Target = Target {
    name: "fields",
    seeds: &[
        b"Connection: x-secret, Keep-Alive\nX-Secret: 1\nTE: gzip, Trailers\nUpgrade: websocket",
        b"Transfer-Encoding: chunked\nTrailer: grpc-status, content-length\nExpect: 100-continue",
        b"Content-Length: 03\nContent-Length: 3, 3\nCookie: a=b\nCookie: c=d",
        b"Proxy-Status: a; x=\"\\\"\nProxy-Status: \", outpace; error=e, b\nOutpace-Waited: 1",
        b"Proxy-Status: \"OUTPACE\"; a=b , other;details=\"x, outpace\"\nContent-Length: 0",
        b"Max-Forwards: 10\nVia: 1.1 outpace-00000007, 1.0 b (c, d)\nVia: 2 e\nProxy-Foo: a",
        b"Set-Cookie: a\nRefresh: 0\nHTTP2-Settings: A\nProxy-Authenticate: Basic\nSec-X: y",
        b"Connection: upgrade\nUpgrade: h2c\nTransfer-Encoding: gzip, chunked\nContent-Length: 1",
    ],
    run,
};

/// Names that never pass in either direction.
const OF_ONE_HOP: [&str; 6] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "http2-settings",
    "transfer-encoding",
    "upgrade",
];
/// Names that a client cannot remove by `Connection`.
const RELIED_ON: [&str; 5] = [
    "authorization",
    "host",
    "cookie",
    "content-length",
    "content-type",
];

fn run(data: &[u8]) {
    let headers = fields(data);
    check_request(&headers);
    check_response(&headers);
    check_framing(&headers);
    check_hops(&headers);
    let mut trailers = headers.clone();
    strip_trailers(&mut trailers);
    for name in [
        "content-length",
        "transfer-encoding",
        "host",
        "authorization",
        "set-cookie",
    ] {
        assert!(!trailers.contains_key(name), "{name} is a trailer");
    }
    check_ours(&trailers);
    let mut replay = headers;
    isolate_replay(&mut replay);
    for name in [
        "set-cookie",
        "refresh",
        "link",
        "access-control-allow-origin",
        "proxy-status",
    ] {
        assert!(!replay.contains_key(name), "{name} acts on the origin");
    }
    assert_eq!(
        joined(&replay, "content-security-policy"),
        b"sandbox; default-src 'none'"
    );
}

fn check_ours(headers: &HeaderMap) {
    let ours = headers
        .keys()
        .find(|name| name.as_str().starts_with("outpace-"));
    assert_eq!(ours, None);
}

fn check_request(before: &HeaderMap) {
    let mut headers = before.clone();
    strip_request(&mut headers, HeaderFlags::of(before));
    for name in OF_ONE_HOP
        .into_iter()
        .chain(["proxy-authorization", "expect"])
    {
        assert!(!headers.contains_key(name), "{name} leaves");
    }
    check_ours(&headers);
    check_named(before, &headers);
    assert!(headers.get("te").is_none_or(|value| value == "trailers"));
    for name in RELIED_ON {
        let lines = before.get_all(name).iter();
        assert!(headers.get_all(name).iter().eq(lines), "{name} has changed");
    }
    let mut again = headers.clone();
    strip_request(&mut again, HeaderFlags::of(&headers));
    assert_eq!(again, headers, "stripped twice");
    join_cookies(&mut again);
    assert!(again.get_all("cookie").iter().count() <= 1);
    assert_eq!(again.contains_key("cookie"), before.contains_key("cookie"));
}

/// Checks that the fields that `Connection` names are gone, except for those that are relied on.
fn check_named(before: &HeaderMap, after: &HeaderMap) {
    let named = joined(before, "connection").to_ascii_lowercase();
    for name in named.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
        let Ok(name) = http::HeaderName::from_bytes(name) else {
            continue;
        };
        let stays = matches!(name.as_str(), "idempotency-key" | "te");
        let stays = stays || RELIED_ON.contains(&name.as_str());
        assert!(stays || !after.contains_key(&name), "{name} leaves");
    }
}

fn check_response(before: &HeaderMap) {
    let mut headers = before.clone();
    strip_response(&mut headers);
    for name in OF_ONE_HOP
        .into_iter()
        .chain(["proxy-authenticate", "proxy-authentication-info"])
    {
        assert!(!headers.contains_key(name), "{name} leaves");
    }
    check_ours(&headers);
    check_named(before, &headers);
    for member in members(&joined(&headers, "proxy-status")) {
        let name = member
            .split(|byte| b"; \t".contains(byte))
            .next()
            .unwrap_or_default();
        let name: Vec<u8> = name.iter().copied().filter(|byte| *byte != b'"').collect();
        let shown = member.escape_ascii();
        assert!(
            !name.eq_ignore_ascii_case(b"outpace"),
            "the origin speaks for us: {shown}"
        );
    }
    let mut again = headers.clone();
    strip_response(&mut again);
    assert_eq!(again, headers, "stripped twice");
}

/// Splits a list at its commas. A recipient joins all lines first (RFC 9110 section 5.3), so a
/// string may begin in one line and end in another.
fn members(list: &[u8]) -> Vec<Vec<u8>> {
    let (mut all, mut is_quoted, mut bytes) = (vec![Vec::new()], false, list.iter().copied());
    while let Some(byte) = bytes.next() {
        if byte == b',' && !is_quoted {
            all.push(Vec::new());
            continue;
        }
        is_quoted ^= byte == b'"';
        let last = all.last_mut().unwrap();
        last.push(byte);
        if byte == b'\\' && is_quoted {
            last.extend(bytes.next());
        }
    }
    all.iter()
        .map(|member| member.trim_ascii().to_vec())
        .collect()
}

fn check_framing(before: &HeaderMap) {
    let lines = |headers: &HeaderMap, name| headers.get_all(name).iter().count();
    for version in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2] {
        let mut headers = before.clone();
        let Ok(found) = framing(version, &mut headers) else {
            continue;
        };
        let counts = (
            lines(&headers, "content-length"),
            lines(&headers, "transfer-encoding"),
        );
        match found {
            Framing::None => assert_eq!(counts, (0, 0)),
            Framing::Length(length) => {
                assert_eq!(counts, (1, 0));
                assert_eq!(headers["content-length"], *length.to_string());
            }
            Framing::Chunked => {
                assert_eq!((counts, version), ((0, 1), Version::HTTP_11));
                let coding = joined(&headers, "transfer-encoding");
                assert!(coding.trim_ascii().eq_ignore_ascii_case(b"chunked"));
            }
        }
        assert_eq!(framing(version, &mut headers), Ok(found));
        let is_empty = matches!(found, Framing::None | Framing::Length(0));
        assert!(is_empty || without_content(before).is_err());
    }
    for (method, status) in [(Method::GET, 200), (Method::HEAD, 200), (Method::GET, 204)] {
        let status = StatusCode::from_u16(status).unwrap();
        let mut headers = before.clone();
        if response_framing(&method, status, &mut headers).is_err() {
            continue;
        }
        let coding = joined(&headers, "transfer-encoding");
        assert!(coding.is_empty() || coding.trim_ascii().eq_ignore_ascii_case(b"chunked"));
        let length = joined(&headers, "content-length");
        let digits = String::from_utf8(length).unwrap();
        let is_canonical = digits
            .parse::<u64>()
            .is_ok_and(|length| length.to_string() == digits);
        assert!(is_canonical || digits.is_empty(), "{digits}");
        assert!(coding.is_empty() || digits.is_empty(), "two framings leave");
    }
}

fn check_hops(before: &HeaderMap) {
    let pseudonym = Pseudonym::new(7);
    let mut headers = before.clone();
    pseudonym.add(Version::HTTP_2, &mut headers);
    assert!(pseudonym.is_loop(&headers), "a loop is not seen");
    let options = Method::OPTIONS;
    if !is_last_hop(&options, &headers) {
        let digits = joined(&headers, "max-forwards");
        let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
        count_hop(&options, &mut headers);
        let after = headers
            .get("max-forwards")
            .and_then(|value| value.to_str().ok());
        let after = after.and_then(|digits| digits.parse::<u64>().ok());
        assert!(!is_number || after.is_some_and(|after| after < u64::MAX));
    }
    let asked = requested_upgrade(&Method::GET, Version::HTTP_11, before);
    assert!(!switched(asked.as_ref(), StatusCode::OK, before));
    if let Some(asked) = asked {
        let asked = asked.as_bytes().trim_ascii();
        assert!(!asked.is_empty() && !asked.eq_ignore_ascii_case(b"h2c"));
        assert!(without_content(before).is_ok() || !before.contains_key("transfer-encoding"));
    }
}
