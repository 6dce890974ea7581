//! The four forms of a request-target (RFC 9112 section 3.2), and the authority that applies.

use http::uri::PathAndQuery;
use http::{Method, Request, Uri, Version, header};

use super::{Authority, Malformed};
use crate::units::{Origin, Scheme};

/// The role that a request assigns to outpace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestTarget {
    /// Absolute-form: a forward proxy to this origin.
    Absolute(Origin),
    /// Origin-form: a gateway for the host that `Host` names.
    Origin(Authority),
    /// Authority-form (CONNECT): a tunnel to this host and port.
    Connect(Authority),
    /// Asterisk-form (`OPTIONS *`): a question to outpace as a server.
    Asterisk,
}

/// Classifies a request. The authority of the request-target applies, but `Host` is checked too. A
/// message with an invalid `Host` may have been tampered with.
///
/// # Errors
/// Returns [`Malformed`] if the request-target or the host is invalid.
pub fn classify<B>(request: &Request<B>) -> Result<RequestTarget, Malformed> {
    let host = host_field(request)?;
    let (method, uri) = (request.method(), request.uri());
    // hyper accepts UTF-8 in a target, but a URI is ASCII (RFC 3986 section 2).
    let path = uri.path_and_query();
    if path.is_some_and(|path| !path.as_str().is_ascii()) {
        return Err(Malformed::RequestTarget(
            "it contains a character beyond ASCII; percent-encode it",
        ));
    }
    if let (Some(scheme), Some(written)) = (uri.scheme_str(), uri.authority())
        && method != Method::CONNECT
    {
        let authority = Authority::parse(written.as_str())?;
        // Both texts are nearly always equal, and then the text is parsed only once.
        let differs = match host {
            Some(host) if host != written.as_str() => Authority::parse(host)? != authority,
            _ => false,
        };
        if differs && request.version() == Version::HTTP_2 {
            return Err(Malformed::Host(
                "`host` and `:authority` differ; send the same value in both",
            ));
        }
        let origin = absolute(scheme, authority)?;
        return match form(uri) {
            PathForm::Rooted => Ok(RequestTarget::Absolute(origin)),
            // Only a URI may leave the path out (RFC 3986 section 3.3), but not `:path`.
            PathForm::Absent if request.version() != Version::HTTP_2 => {
                Ok(RequestTarget::Absolute(origin))
            }
            PathForm::Asterisk => asterisk(method),
            PathForm::Absent | PathForm::Other => Err(Malformed::RequestTarget(
                "the path does not begin with `/`; add it",
            )),
        };
    }
    let host = host.map(Authority::parse).transpose()?;
    if method == Method::CONNECT {
        return connect(uri).map(RequestTarget::Connect);
    }
    if form(uri) == PathForm::Asterisk {
        return asterisk(method);
    }
    if uri.authority().is_none() && uri.path().starts_with('/') {
        return host
            .map(RequestTarget::Origin)
            .ok_or(Malformed::Host("it is missing; send `Host`"));
    }
    Err(Malformed::RequestTarget(
        "it is neither absolute-form nor origin-form",
    ))
}

/// Returns the path and query to send, which begin with `/`. A URI may leave the path out.
pub fn path_and_query(uri: &Uri) -> PathAndQuery {
    let slash = || PathAndQuery::from_static("/");
    match (uri.path_and_query(), form(uri)) {
        (Some(path), PathForm::Rooted | PathForm::Asterisk) => path.clone(),
        (Some(path), PathForm::Absent) if path.query().is_some() => {
            PathAndQuery::try_from(path.to_string()).unwrap_or_else(|_| slash())
        }
        _ => slash(),
    }
}

/// Form of the path in a request-target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PathForm {
    /// Path that begins with `/`.
    Rooted,
    /// No path, with or without a query.
    Absent,
    /// Asterisk-form, which names the server.
    Asterisk,
    /// Text that no form of request-target allows.
    Other,
}

/// Returns the form of the path as it was sent. [`Uri::path`] does not show if a path is absent.
fn form(uri: &Uri) -> PathForm {
    let Some(path) = uri.path_and_query() else {
        return PathForm::Absent;
    };
    match path.as_str() {
        "/" if Uri::from(path.clone()).path().is_empty() => PathForm::Absent,
        "*" => PathForm::Asterisk,
        text if text.starts_with('/') => PathForm::Rooted,
        text if text.starts_with('?') => PathForm::Absent,
        _ => PathForm::Other,
    }
}

fn asterisk(method: &Method) -> Result<RequestTarget, Malformed> {
    match *method {
        Method::OPTIONS => Ok(RequestTarget::Asterisk),
        _ => Err(Malformed::RequestTarget("`*` is allowed with OPTIONS only")),
    }
}

fn absolute(scheme: &str, authority: Authority) -> Result<Origin, Malformed> {
    let scheme = match scheme {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        _ => {
            return Err(Malformed::RequestTarget(
                "its scheme is not `http` or `https`",
            ));
        }
    };
    let Authority { host, port } = authority;
    let port = port.unwrap_or(scheme.default_port());
    Ok(Origin { scheme, host, port })
}

/// Parses the authority-form, which is a host and a port only (RFC 9112 section 3.2.3).
fn connect(uri: &Uri) -> Result<Authority, Malformed> {
    let bare = uri.scheme().is_none()
        && uri
            .path_and_query()
            .is_none_or(|path| path.as_str().is_empty());
    let authority = uri.authority().filter(|_| bare);
    let authority = authority
        .ok_or(Malformed::RequestTarget("CONNECT needs `host:port` only"))
        .and_then(|authority| Authority::parse(authority.as_str()))?;
    if authority.port.is_none() {
        return Err(Malformed::RequestTarget("CONNECT has no port; add one"));
    }
    Ok(authority)
}

/// Returns the only `Host` field. HTTP/1.1 requires exactly one, and other versions allow none (RFC
/// 9112 section 3.2, RFC 9113 section 8.3.1).
fn host_field<B>(request: &Request<B>) -> Result<Option<&str>, Malformed> {
    let mut lines = request.headers().get_all(header::HOST).iter();
    let Some(line) = lines.next() else {
        return match request.version() {
            Version::HTTP_11 => Err(Malformed::Host("it is missing; send one `Host` field")),
            _ => Ok(None),
        };
    };
    if lines.next().is_some() {
        return Err(Malformed::Host("`Host` is repeated; send it once"));
    }
    line.to_str()
        .map(Some)
        .map_err(|_error| Malformed::Host("it is not visible ASCII"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(
        method: &str,
        uri: &str,
        version: Version,
        hosts: &[&str],
    ) -> Result<RequestTarget, Malformed> {
        let mut builder = Request::builder().method(method).uri(uri).version(version);
        for host in hosts {
            builder = builder.header("host", *host);
        }
        classify(&builder.body(()).unwrap())
    }

    fn text(target: &RequestTarget) -> String {
        match target {
            RequestTarget::Absolute(origin) => origin.to_string(),
            RequestTarget::Origin(authority) => format!("origin {authority}"),
            RequestTarget::Connect(authority) => format!("connect {authority}"),
            RequestTarget::Asterisk => "*".into(),
        }
    }

    #[test]
    fn the_four_forms() {
        let v11 = Version::HTTP_11;
        for (method, uri, hosts, expected) in [
            ("GET", "http://X.com/a", &["other.com"][..], "http://x.com"),
            (
                "GET",
                "http://x.com:8080/a",
                &["x.com"],
                "http://x.com:8080",
            ),
            ("GET", "https://x.com./", &["x.com"], "https://x.com"),
            ("GET", "/a", &["x.com:9"], "origin x.com:9"),
            ("CONNECT", "x.com:443", &["x.com:443"], "connect x.com:443"),
            ("CONNECT", "[::1]:443", &["y.com"], "connect [::1]:443"),
            ("OPTIONS", "*", &["x.com"], "*"),
        ] {
            assert_eq!(text(&of(method, uri, v11, hosts).unwrap()), expected);
        }
    }

    #[test]
    fn malformed_targets_and_hosts_are_refused() {
        let v11 = Version::HTTP_11;
        for (method, uri, hosts) in [
            ("GET", "/a", &[][..]),
            ("GET", "/a", &["x.com", "x.com"]),
            ("GET", "http://x.com/", &["x.com", "y.com"]),
            ("GET", "/a", &[""]),
            ("GET", "/a", &["a@b"]),
            ("GET", "/a", &["a/../b"]),
            ("GET", "/a", &["x.com:http"]),
            ("GET", "http://u:p@x.com/", &["x.com"]),
            ("GET", "ftp://x.com/", &["x.com"]),
            ("GET", "http://x.com:0/", &["x.com"]),
            ("GET", "http://x.com:99999/", &["x.com"]),
            ("GET", "*", &["x.com"]),
            ("GET", "http://x.com/caf\u{e9}", &["x.com"]),
            ("GET", "/?q=\u{20ac}", &["x.com"]),
            ("GET", "/caf\u{e9}", &["x.com"]),
            ("GET", "/a?b=\u{4e2d}", &["x.com"]),
            ("GET", "http://x.com/\u{1f600}", &["x.com"]),
            ("CONNECT", "x.com", &["x.com"]),
            ("CONNECT", "/", &["x.com"]),
            ("CONNECT", "http://x.com:443/", &["x.com"]),
            ("CONNECT", "u@x.com:443", &["x.com"]),
            ("CONNECT", "x.com:0", &["x.com"]),
        ] {
            assert!(
                of(method, uri, v11, hosts).is_err(),
                "{method} {uri} {hosts:?}"
            );
        }
    }

    #[test]
    fn http_2_authority_and_host_must_agree() {
        let v2 = Version::HTTP_2;
        assert!(of("GET", "https://x.com/", v2, &[]).is_ok());
        assert!(of("GET", "https://x.com/", v2, &["x.com"]).is_ok());
        assert!(of("GET", "https://x.com/", v2, &["y.com"]).is_err());
        assert!(of("GET", "/", v2, &["x.com"]).is_ok());
        assert!(of("GET", "/", v2, &[]).is_err());
    }

    #[test]
    fn the_path_that_leaves_begins_with_a_slash() {
        for (uri, expected) in [
            ("http://x.com", "/"),
            ("http://x.com#f", "/"),
            ("http://x.com/#f", "/"),
            ("http://x.com?a", "/?a"),
            ("http://x.com?#f", "/?"),
            ("http://x.com?a#f", "/?a"),
            ("http://x.com/a?b#c", "/a?b"),
            ("/a#c", "/a"),
            ("*", "*"),
        ] {
            let uri: Uri = uri.parse().unwrap();
            let path = path_and_query(&uri);
            assert_eq!(path.as_str(), expected, "{uri}");
            assert_eq!(Uri::from(path).to_string(), expected, "{uri}");
        }
    }

    #[test]
    fn a_path_of_http_2_begins_with_a_slash() {
        let of_path = |method: &str, path: &str| {
            let path = PathAndQuery::try_from(path);
            let uri = Uri::builder().scheme("https").authority("x.com");
            // The library accepts or refuses such paths, depending on its version.
            let uri = uri.path_and_query(path.ok()?).build().ok()?;
            let request = Request::builder().method(method).uri(uri);
            let request = request.version(Version::HTTP_2).body(()).unwrap();
            classify(&request).ok()
        };
        for (method, path) in [
            ("GET", "#x"),
            ("GET", "*"),
            ("POST", "*"),
            ("GET", "x"),
            ("GET", "?x"),
            ("OPTIONS", "*x"),
        ] {
            assert_eq!(of_path(method, path), None, "{method} {path}");
        }
        assert_eq!(of_path("OPTIONS", "*"), Some(RequestTarget::Asterisk));
        assert!(of_path("GET", "/").is_some() && of_path("GET", "/#x").is_some());
    }
}
