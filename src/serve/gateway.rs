//! Routes, which map a host that clients name to an origin.

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
