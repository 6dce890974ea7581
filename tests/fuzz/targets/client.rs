//! Fields in which a client speaks to outpace, and the fields by which a browser is recognised.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{HeaderMap, HeaderValue, Method};
use outpace::semantics::{
    Authority, OUTPACE_MAX_WAIT, is_cross_site, is_own_host, made_by_us, max_wait,
    needs_no_preflight, preference, proxy_credentials,
};
use outpace::units::Scheme;

use super::{Target, fields, joined};

pub(crate) const TARGET: Target = Target {
    name: "client",
    seeds: &[
        b"Proxy-Authorization: Basic YXBwOnRva2Vu\nHost: localhost:8080",
        b"Proxy-Authorization:  bAsIc  YTpiOmM= \nPrefer: respond-async, wait=10; a=b",
        b"Prefer: Wait=\"5\"\nPrefer: wait=x, respond-async\nOutpace-Max-Wait: 1m30s",
        b"Outpace-Max-Wait: 0.5\nOutpace-Max-Wait: 250ms\nContent-Type: application/json",
        b"Host: localhost:8080\nOrigin: http://localhost:8080\nSec-Fetch-Site: same-origin",
        b"Host: [::1]:81\nOrigin: https://[::1]:81\nSec-Fetch-Site: none",
        b"Host: x.test\nOrigin: http://X.test:80\nSec-Fetch-Site: same-site",
        b"Host: 127.0.0.1\nOrigin: null\nContent-Type: text/plain; charset=utf-8",
    ],
    run,
};

fn run(data: &[u8]) {
    let headers = fields(data);
    if let Some((name, token)) = proxy_credentials(&headers) {
        assert!(!name.contains(':'));
        let value = format!("Basic {}", BASE64.encode(format!("{name}:{token}")));
        let mut again = HeaderMap::new();
        again.insert("proxy-authorization", HeaderValue::try_from(value).unwrap());
        assert_eq!(proxy_credentials(&again), Some((name, token)));
    }
    let preferred = preference(&headers);
    let written = joined(&headers, "prefer").to_ascii_lowercase();
    let asks = |text: &[u8]| written.windows(text.len()).any(|part| part == text);
    assert!(!preferred.respond_async || asks(b"respond-async"));
    assert!(preferred.wait.is_none() || asks(b"wait"));
    check_max_wait(&headers);
    check_browser(&headers);
    let status = made_by_us("http_request_error", &String::from_utf8_lossy(data));
    let quotes = status
        .as_bytes()
        .iter()
        .filter(|byte| **byte == b'"')
        .count();
    assert!(quotes == 2 && status.to_str().is_ok());
}

/// Checks that the shortest of several max waits counts, and that an unreadable one is refused.
fn check_max_wait(headers: &HeaderMap) {
    let of_one = |line: &HeaderValue| {
        let mut one = HeaderMap::new();
        one.insert(OUTPACE_MAX_WAIT, line.clone());
        max_wait(&one)
    };
    let each: Result<Vec<_>, _> = headers
        .get_all(OUTPACE_MAX_WAIT)
        .iter()
        .map(of_one)
        .collect();
    let least = each.map(|each| each.into_iter().flatten().min());
    assert_eq!(max_wait(headers), least);
}

/// Compares the guard with the origins that a browser itself would compare.
fn check_browser(headers: &HeaderMap) {
    let host = headers.get("host").and_then(|host| host.to_str().ok());
    let Some(named) = host.and_then(|host| Authority::parse(host).ok()) else {
        return;
    };
    for method in [Method::GET, Method::POST] {
        if is_cross_site(&method, headers, &named, Scheme::Http) {
            continue;
        }
        for page in headers.get_all("origin") {
            let page = url::Url::parse(page.to_str().unwrap()).unwrap();
            let default = if page.scheme() == "https" { 443 } else { 80 };
            assert_eq!(
                page.port_or_known_default(),
                Some(named.port.unwrap_or(default))
            );
            // A name with a trailing dot is the same name.
            let own = named.host.to_string();
            let own = url::Host::parse(own.trim_end_matches('.')).unwrap();
            let page_host = page.host_str().unwrap().trim_end_matches('.').to_owned();
            assert_eq!(url::Host::parse(&page_host), Ok(own), "{page}");
        }
        let site = joined(headers, "sec-fetch-site");
        let is_own = match &*site {
            b"" | b"same-origin" => true,
            b"none" => method == Method::GET,
            b"same-site" => headers.contains_key("origin"),
            _ => false,
        };
        assert!(is_own, "{} is no other site", site.escape_ascii());
    }
    let loopback = "127.0.0.1".parse().unwrap();
    if is_own_host(&named.host, loopback) {
        let text = named.host.as_str();
        let is_loopback = named
            .host
            .ip()
            .is_some_and(|ip| ip.to_canonical().is_loopback());
        assert!(
            is_loopback || text == "localhost" || text.ends_with(".localhost"),
            "{text}"
        );
    }
    if !needs_no_preflight(headers) {
        let value = joined(headers, "content-type").to_ascii_lowercase();
        for simple in [
            "text/plain",
            "multipart/form-data",
            "application/x-www-form-urlencoded",
        ] {
            assert!(value.split(|byte| *byte == b';').next() != Some(simple.as_bytes()));
        }
    }
}
