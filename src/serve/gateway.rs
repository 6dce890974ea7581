//! Routes, which map a host that clients name to an origin.

use http::Request;
use http::uri::PathAndQuery;

use crate::exchange::{Error, Reason};
use crate::policy::Policy;
use crate::semantics::Authority;
use crate::units::{HostName, Origin, Scheme};

/// Returns the origin of the route for this host, if there is one.
pub(super) fn route(policy: &Policy, host: &HostName) -> Option<Origin> {
    policy
        .routes_by_host
        .get(host)
        .cloned()
        .or_else(|| by_localhost(policy, host))
}

/// Returns the origin for a request in origin-form. Only configured routes are served, never an
/// arbitrary `Host`.
///
/// # Errors
/// Returns [`Reason::NoRoute`] if no route has the host.
pub(super) fn origin(policy: &Policy, authority: &Authority) -> Result<Origin, Error> {
    route(policy, &authority.host).ok_or_else(|| {
        let detail = format!("no route has the host `{}`", authority.host);
        Error::new(Reason::NoRoute, detail)
    })
}

/// Start of the path of a route by path, such as `/to/api.example.com/v1/models`.
const PATH_ROUTE: &str = "/to/";

/// Returns the origin that the path of a request in origin-form names, if it is a route by path. Only
/// hosts of targets have such routes. A host with `http:` before it is reached without TLS.
///
/// # Errors
/// Returns [`Reason::NoRoute`] if the path names no host of a target.
pub(super) fn by_path(policy: &Policy, path: &str) -> Option<Result<Origin, Error>> {
    let named = segment(path)?;
    let (scheme, authority) = match named.strip_prefix("http:") {
        Some(authority) => (Scheme::Http, authority),
        None => (Scheme::Https, named),
    };
    let origin = Authority::parse(authority).ok().map(|authority| Origin {
        scheme,
        port: authority.port.unwrap_or(scheme.default_port()),
        host: authority.host,
    });
    let known = origin.filter(|origin| policy.target(&origin.host, origin.port).is_some());
    Some(known.ok_or_else(|| {
        let detail = format!("`{named}` in the path is no host of a target; write {PATH_ROUTE}HOST/… or {PATH_ROUTE}http:HOST:PORT/…");
        Error::new(Reason::NoRoute, detail)
    }))
}

fn segment(path: &str) -> Option<&str> {
    let rest = path.strip_prefix(PATH_ROUTE)?;
    Some(rest.split_once('/').map_or(rest, |(named, _)| named))
}

/// Removes the route from the path of a request, and leaves the path at the origin.
pub(super) fn strip_route<B>(request: &mut Request<B>) {
    let whole = request
        .uri()
        .path_and_query()
        .map_or("", PathAndQuery::as_str);
    let length = segment(request.uri().path()).map_or(0, |named| PATH_ROUTE.len() + named.len());
    let rest = whole.get(length..).unwrap_or_default();
    // A route without a path still may have a query.
    let slash = if rest.starts_with('/') { "" } else { "/" };
    if let Ok(path) = PathAndQuery::try_from(format!("{slash}{rest}")) {
        *request.uri_mut() = path.into();
    }
}

/// Maps `api.example.com.localhost` to `https://api.example.com` if a target has that host.
/// Browsers and curl resolve such names to the local machine (RFC 6761 section 6.3).
fn by_localhost(policy: &Policy, host: &HostName) -> Option<Origin> {
    let name = host.as_str().strip_suffix(".localhost")?;
    let host = HostName::parse(name).ok()?;
    let port = Scheme::Https.default_port();
    policy.target(&host, port)?;
    Some(Origin {
        scheme: Scheme::Https,
        host,
        port,
    })
}
