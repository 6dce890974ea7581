//! Request-targets, authorities and host names: whatever is accepted has one canonical form.

use http::{Method, Request, Uri, Version};
use outpace::semantics::{Authority, RequestTarget, classify, path_and_query};
use outpace::units::{HostName, Origin};

use super::{Target, fields, text};

pub(crate) const TARGET: Target = Target {
    name: "request_target",
    seeds: &[
        b"GET http://X.com:8080/a?b#c HTTP/1.1\nHost: x.com:8080",
        b"GET https://b\xc3\xbccher.example./ HTTP/1.1\nHost: b\xc3\xbccher.example",
        b"GET /a/../%2e%2e?q HTTP/1.1\nHost: [::ffff:127.0.0.1]:9",
        b"CONNECT [::1]:443 HTTP/1.1\nHost: [::1]:443",
        b"CONNECT 0x7f.1:443 HTTP/1.0\n",
        b"OPTIONS * HTTP/1.1\nHost: 2130706433",
        b"GET https://xn--bcher-kva.example HTTP/2\nHost: xn--bcher-kva.example",
        b"GET http://a_b.-c/?d HTTP/2\n",
    ],
    run,
};

fn run(data: &[u8]) {
    let head = data.split(|byte| *byte == b'\n').next().unwrap_or_default();
    if let Some(head) = text(head) {
        head.split([' ', '/', '@']).for_each(check_authority);
    }
    let Some(request) = request(data, head) else {
        return;
    };
    let Ok(found) = classify(&request) else {
        return;
    };
    match &found {
        RequestTarget::Absolute(origin) => check_origin(origin),
        RequestTarget::Origin(authority) => check_host(&authority.host),
        RequestTarget::Connect(authority) => {
            check_host(&authority.host);
            assert!(authority.port.is_some(), "CONNECT has no port");
        }
        RequestTarget::Asterisk => assert_eq!(request.method(), Method::OPTIONS),
    }
    let hosts = request.headers().get_all("host").iter().count();
    assert!(hosts <= 1 && (hosts == 1 || request.version() != Version::HTTP_11));
    if !matches!(found, RequestTarget::Connect(_)) {
        check_path(request.uri(), &found);
    }
}

fn request(data: &[u8], head: &[u8]) -> Option<Request<()>> {
    let mut words = head.splitn(3, |byte| *byte == b' ');
    let method = Method::from_bytes(words.next()?).ok()?;
    let uri = Uri::try_from(words.next()?).ok()?;
    let version = match words.next()? {
        b"HTTP/1.1" => Version::HTTP_11,
        b"HTTP/1.0" => Version::HTTP_10,
        b"HTTP/2" => Version::HTTP_2,
        _ => return None,
    };
    let mut request = Request::builder()
        .method(method)
        .uri(uri)
        .version(version)
        .body(())
        .ok()?;
    *request.headers_mut() = fields(&data[head.len()..]);
    Some(request)
}

fn check_origin(origin: &Origin) {
    check_host(&origin.host);
    assert!(origin.port != 0 && origin.is_written(origin.authority().as_bytes()));
    let written = Request::builder()
        .uri(format!("{origin}/"))
        .body(())
        .unwrap();
    let mut written = written;
    *written.version_mut() = Version::HTTP_10;
    let again = classify(&written);
    assert_eq!(
        again,
        Ok(RequestTarget::Absolute(origin.clone())),
        "{origin} is not canonical"
    );
}

/// Checks that the path that leaves begins with `/`, holds visible ASCII only, and stays as it is.
fn check_path(uri: &Uri, found: &RequestTarget) {
    let path = path_and_query(uri);
    let text = path.as_str();
    let is_rooted = text.starts_with('/');
    assert!(
        is_rooted || text == "*" && *found == RequestTarget::Asterisk,
        "{text}"
    );
    assert!(text.bytes().all(|byte| byte.is_ascii_graphic()), "{text:?}");
    assert!(!text.contains('#'), "{text}");
    let again = path_and_query(&text.parse().unwrap());
    assert_eq!(again, path);
}

fn check_authority(text: &str) {
    if let Ok(host) = HostName::parse(text) {
        check_host(&host);
        let upper = HostName::parse(&text.to_ascii_uppercase());
        assert_eq!(upper, Ok(host), "{text:?} means another host in upper case");
    }
    if let Ok(authority) = Authority::parse(text) {
        check_host(&authority.host);
        assert_ne!(authority.port, Some(0));
        assert_eq!(Authority::parse(&authority.to_string()), Ok(authority));
    }
}

/// Checks that the host is in canonical form, in which policy, SNI and `Host` compare it.
fn check_host(host: &HostName) {
    let text = host.as_str();
    assert_eq!(
        HostName::parse(&host.to_string()).as_ref(),
        Ok(host),
        "{text:?}"
    );
    match host.ip() {
        Some(ip) => assert_eq!(text, ip.to_string()),
        None => {
            let of_name = |byte: u8| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte)
            };
            assert!(text.bytes().all(of_name) && text.len() <= 253, "{text:?}");
            assert!(!text.starts_with('.') && !text.ends_with('.') && !text.contains(".."));
            assert!(text.parse::<std::net::IpAddr>().is_err(), "{text:?}");
            assert_eq!(HostName::parse(&format!("{text}.")).as_ref(), Ok(host));
            let plain = HostName::plain(text);
            assert!(plain.is_none_or(|plain| plain == *host));
        }
    }
}
