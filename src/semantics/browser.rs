//! The boundary between web pages and outpace's own listeners.
//!
//! A browser sends requests of any page to loopback addresses, so an address alone does not
//! authenticate a client. These functions decide by the host that a request names, by the fields
//! that only browsers send (Fetch Metadata, RFC 6454) and by the type of its body.

use std::net::IpAddr;

use http::Method;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::Authority;
use crate::units::{HostName, Scheme};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Returns true for a host that always means this listener: `localhost`, a name below it (RFC 6761
/// section 6.3), a loopback address or the listener's own address. A DNS answer of another site
/// cannot give that site such a name.
pub fn is_own_host(host: &HostName, listener: IpAddr) -> bool {
    match host.ip().map(|ip| ip.to_canonical()) {
        Some(ip) => {
            let same = ip == listener.to_canonical() && !ip.is_unspecified();
            same || ip.is_loopback()
        }
        None => host.as_str() == "localhost" || host.as_str().ends_with(".localhost"),
    }
}

/// Returns true if a web page of another origin sent the request. `named` is the host that the
/// request names, and `scheme` is that of the listener.
///
/// Other clients send neither `Origin` nor `Sec-Fetch-Site`, so their requests are never cross-site.
pub fn is_cross_site(
    method: &Method,
    headers: &HeaderMap,
    named: &Authority,
    scheme: Scheme,
) -> bool {
    let foreign = |scheme: Option<Scheme>| {
        let mut origins = headers.get_all(header::ORIGIN).iter();
        origins.any(|origin| !is_own(origin, named, scheme))
    };
    let mut sites = headers.get_all(SEC_FETCH_SITE).iter();
    let site = sites.next().map(HeaderValue::as_bytes);
    if sites.next().is_some() {
        return true;
    }
    match site {
        None => foreign(Some(scheme)),
        // A server in front of outpace may have terminated the page's TLS.
        Some(b"same-origin") => foreign(None),
        // A user typed the address or opened a bookmark, which is a navigation.
        Some(b"none") => !matches!(*method, Method::GET | Method::HEAD) || foreign(Some(scheme)),
        // Another port of the same host is the same site, but not the same origin.
        Some(b"same-site") => !headers.contains_key(header::ORIGIN) || foreign(Some(scheme)),
        Some(_) => true,
    }
}

/// Returns true if the value of `Origin` is the origin of a request to `named`. Without `scheme`
/// both schemes match.
fn is_own(origin: &HeaderValue, named: &Authority, scheme: Option<Scheme>) -> bool {
    let parts = origin.to_str().ok().and_then(|text| text.split_once("://"));
    let (of, authority) = match parts {
        Some(("http", authority)) => (Scheme::Http, authority),
        Some(("https", authority)) => (Scheme::Https, authority),
        _ => return false,
    };
    let port = |authority: &Authority| authority.port.unwrap_or(of.default_port());
    scheme.is_none_or(|scheme| scheme == of)
        && Authority::parse(authority)
            .is_ok_and(|page| page.host == named.host && port(&page) == port(named))
}

/// Returns true if a web page of another site can send a body with this `Content-Type` without a
/// preflight. These are a body without a type and the three types of HTML forms.
pub fn needs_no_preflight(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(header::CONTENT_TYPE).iter().peekable();
    types.peek().is_none() || types.any(|value| is_simple(value.as_bytes()))
}

/// Returns true for the type of an HTML form, and for a value that is not a media type.
fn is_simple(value: &[u8]) -> bool {
    let essence = value.split(|byte| *byte == b';').next().unwrap_or_default();
    let essence = essence.trim_ascii().to_ascii_lowercase();
    let mut parts = essence.splitn(2, |byte| *byte == b'/');
    let is_token = |part: Option<&[u8]>| {
        part.is_some_and(|part| !part.is_empty() && part.iter().copied().all(is_token_byte))
    };
    let is_type = is_token(parts.next()) && is_token(parts.next());
    !is_type
        || matches!(
            &*essence,
            b"text/plain" | b"application/x-www-form-urlencoded" | b"multipart/form-data"
        )
}

/// Returns true for a byte of a token (RFC 9110 section 5.6.2).
const fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.')
        || matches!(byte, b'^' | b'_' | b'`' | b'|' | b'~')
}

/// Adds the field by which browsers take a response only for what its `Content-Type` says.
pub fn forbid_sniffing(headers: &mut HeaderMap) {
    let nosniff = HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
}

/// Makes a stored response of an origin harmless in a browser, which takes it for a response of
/// outpace's own origin. Fields that act on an origin are removed, and no part of the content runs.
pub fn isolate_replay(headers: &mut HeaderMap) {
    let acting: Vec<HeaderName> = headers
        .keys()
        .filter(|name| acts_on_origin(name.as_str()))
        .cloned()
        .collect();
    for name in acting {
        headers.remove(name);
    }
    let policy = HeaderValue::from_static("sandbox; default-src 'none'");
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    let attachment = HeaderValue::from_static("attachment");
    headers.insert(header::CONTENT_DISPOSITION, attachment);
    forbid_sniffing(headers);
}

/// Returns true for a response field by which a browser changes its state for the responding
/// origin, opens that origin to other pages, loads further resources or navigates by itself.
fn acts_on_origin(name: &str) -> bool {
    const PREFIXES: [&str; 9] = [
        "access-control-",
        "activate-storage-",
        "attribution-reporting-",
        "content-security-policy",
        "cross-origin-",
        "outpace-",
        "proxy-",
        "sec-",
        "secure-session-",
    ];
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || matches!(
            name,
            "accept-ch"
                | "alt-svc"
                | "clear-site-data"
                | "content-disposition"
                | "critical-ch"
                | "expect-ct"
                | "link"
                | "nel"
                | "observe-browsing-topics"
                | "origin-agent-cluster"
                | "permissions-policy"
                | "public-key-pins"
                | "refresh"
                | "report-to"
                | "reporting-endpoints"
                | "service-worker-allowed"
                | "set-cookie"
                | "set-cookie2"
                | "set-login"
                | "sourcemap"
                | "speculation-rules"
                | "strict-transport-security"
                | "timing-allow-origin"
                | "use-as-dictionary"
                | "www-authenticate"
                | "x-sourcemap"
        )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::semantics::map;

    fn cross_site(method: &Method, host: &str, lines: &[(&'static str, &str)]) -> bool {
        let named = Authority::parse(host).unwrap();
        is_cross_site(method, &map(lines), &named, Scheme::Http)
    }

    #[test]
    fn only_names_of_this_machine_are_own_hosts() {
        let is = |text: &str, listener: &str| {
            is_own_host(&HostName::parse(text).unwrap(), listener.parse().unwrap())
        };
        for host in "localhost LOCALHOST. a.localhost a.b.localhost 127.0.0.1 127.9.9.9 0x7f.1 \
                     [::1] [::ffff:127.0.0.1]"
            .split_whitespace()
        {
            assert!(is(host, "127.0.0.1") && is(host, "0.0.0.0"), "{host}");
        }
        for host in "evil.example localhost.evil.example notlocalhost 127.0.0.1.evil.example \
                     0.0.0.0 10.0.0.1 128.0.0.1 [::] [fe80::1] [::ffff:10.0.0.1]"
            .split_whitespace()
        {
            for listener in ["127.0.0.1", "0.0.0.0", "::"] {
                assert!(!is(host, listener), "{host} {listener}");
            }
        }
        assert!(is("10.0.0.1", "10.0.0.1") && is("[fd00::1]", "fd00::1"));
        assert!(is("[::ffff:10.0.0.1]", "10.0.0.1") && !is("10.0.0.2", "10.0.0.1"));
    }

    #[test]
    fn requests_of_programs_and_of_own_pages_pass() {
        let own = "http://localhost:8080";
        for (method, lines) in [
            (Method::POST, &[][..]),
            (Method::GET, &[("sec-fetch-site", "none")]),
            (Method::HEAD, &[("sec-fetch-site", "none")]),
            (Method::GET, &[("sec-fetch-site", "same-origin")]),
            (Method::PATCH, &[("origin", own)]),
            (
                Method::POST,
                &[("sec-fetch-site", "same-origin"), ("origin", own)],
            ),
            (
                Method::POST,
                &[("sec-fetch-site", "same-site"), ("origin", own)],
            ),
            (
                Method::POST,
                &[
                    ("sec-fetch-site", "same-origin"),
                    ("origin", "https://localhost:8080"),
                ],
            ),
        ] {
            assert!(!cross_site(&method, "localhost:8080", lines), "{lines:?}");
        }
        assert!(!cross_site(
            &Method::GET,
            "[::1]:81",
            &[("origin", "http://[::1]:81")]
        ));
        assert!(!cross_site(
            &Method::GET,
            "x.test:80",
            &[("origin", "http://x.test")]
        ));
        assert!(!cross_site(
            &Method::GET,
            "x.test",
            &[("origin", "http://x.test:80")]
        ));
    }

    #[test]
    fn requests_of_other_pages_do_not_pass() {
        let own = "http://localhost:8080";
        for lines in [
            &[("sec-fetch-site", "cross-site")][..],
            &[("sec-fetch-site", "cross-site"), ("origin", own)],
            &[("sec-fetch-site", "same-site")],
            &[
                ("sec-fetch-site", "same-site"),
                ("origin", "http://localhost:3000"),
            ],
            &[
                ("sec-fetch-site", "same-origin"),
                ("origin", "http://evil.example"),
            ],
            &[("sec-fetch-site", "same-origin"), ("origin", "null")],
            &[
                ("sec-fetch-site", "same-origin"),
                ("sec-fetch-site", "cross-site"),
            ],
            &[("sec-fetch-site", "Same-Origin")],
            &[("sec-fetch-site", "")],
            &[("sec-fetch-site", "none"), ("origin", "null")],
            &[("origin", "null")],
            &[("origin", "")],
            &[("origin", "http://localhost")],
            &[("origin", "http://localhost:3000")],
            &[("origin", "https://localhost:8080")],
            &[("origin", "http://localhost:8080/")],
            &[("origin", "http://u@localhost:8080")],
            &[("origin", "http://localhost:8080.evil.example")],
            &[("origin", "chrome-extension://localhost:8080")],
            &[("origin", own), ("origin", "http://evil.example")],
            &[("origin", "http://localhost:8080, http://evil.example")],
        ] {
            assert!(
                cross_site(&Method::GET, "localhost:8080", lines),
                "{lines:?}"
            );
        }
        let typed = [("sec-fetch-site", "none")];
        assert!(cross_site(&Method::POST, "localhost:8080", &typed));
        assert!(cross_site(&Method::DELETE, "localhost:8080", &typed));
    }

    #[test]
    fn the_types_of_forms_need_no_preflight() {
        for value in
            "|text/plain|TEXT/Plain ; charset=utf-8| text/plain|text/plain;application/json\
                      |application/x-www-form-urlencoded|multipart/form-data; boundary=x|/json\
                      |application/|json|text/plain, application/json|application/ json"
                .split('|')
        {
            assert!(
                needs_no_preflight(&map(&[("content-type", value)])),
                "{value}"
            );
        }
        assert!(needs_no_preflight(&map(&[])));
        let both = [
            ("content-type", "application/json"),
            ("content-type", "text/plain"),
        ];
        assert!(needs_no_preflight(&map(&both)));
        for value in [
            "application/json",
            "Application/JSON; charset=utf-8",
            "application/octet-stream",
            "application/x-ndjson",
            "application/problem+json",
            "text/plainer",
        ] {
            assert!(
                !needs_no_preflight(&map(&[("content-type", value)])),
                "{value}"
            );
        }
    }

    #[test]
    fn a_replay_keeps_its_content_and_loses_its_effects() {
        let mut replay = map(&[
            ("content-type", "text/html"),
            ("content-disposition", "inline"),
            ("content-security-policy", "script-src *"),
            ("content-security-policy-report-only", "default-src *"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("clear-site-data", "\"*\""),
            ("strict-transport-security", "max-age=1"),
            ("refresh", "0; url=/"),
            ("link", "</x.js>; rel=preload"),
            ("access-control-allow-origin", "*"),
            ("cross-origin-resource-policy", "cross-origin"),
            ("www-authenticate", "Basic"),
            ("service-worker-allowed", "/"),
            ("x-request-id", "7"),
            ("etag", "\"e\""),
        ]);
        isolate_replay(&mut replay);
        let mut names: Vec<_> = replay.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        let kept = "content-disposition content-security-policy content-type etag \
                    x-content-type-options x-request-id";
        assert_eq!(names, kept.split_whitespace().collect::<Vec<_>>());
        assert_eq!(replay["content-disposition"], "attachment");
        let policies: Vec<_> = replay.get_all("content-security-policy").iter().collect();
        assert_eq!(policies, ["sandbox; default-src 'none'"]);
    }

    proptest! {
        /// Compares the origin of a page with that of the listener in all three parts.
        #[test]
        fn only_an_equal_origin_is_own(
            page in ("https?", "[a-c]{1,2}", prop::option::of(1u16..5)),
            host in ("[a-c]{1,2}", prop::option::of(1u16..5)),
        ) {
            let (scheme, name, port) = page;
            let text = |name: &str, port: Option<u16>| {
                port.map_or(name.to_owned(), |port| format!("{name}:{port}"))
            };
            let origin = format!("{scheme}://{}", text(&name, port));
            let named = text(&host.0, host.1);
            let equal = scheme == "http" && name == host.0 && port == host.1;
            let refused = cross_site(&Method::GET, &named, &[("origin", &origin)]);
            prop_assert_eq!(refused, !equal);
        }

        /// Gives arbitrary values to the fields, which must not panic. A value that is not one of
        /// the four of the specification is always refused.
        #[test]
        fn an_unknown_site_is_refused(site in "[ -~]{0,20}", kind in "[ -~]{0,20}") {
            let lines = [("sec-fetch-site", site.as_str()), ("content-type", kind.as_str())];
            let lines = map(&lines);
            let named = Authority::parse("localhost").unwrap();
            let refused = is_cross_site(&Method::GET, &lines, &named, Scheme::Http);
            let known = ["same-origin", "none"].contains(&lines["sec-fetch-site"].to_str().unwrap());
            prop_assert_eq!(refused, !known);
            let _ = needs_no_preflight(&lines);
        }

        /// Appends parameters and changes the case, which must not make a simple type acceptable.
        #[test]
        fn parameters_and_case_are_ignored(upper in any::<bool>(), more in "(;[ -~]{0,20})?") {
            let kind = if upper { "TEXT/PLAIN" } else { "text/plain" };
            let value = format!("{kind}{more}");
            prop_assert!(needs_no_preflight(&map(&[("content-type", &value)])));
        }
    }
}
