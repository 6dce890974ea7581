//! Routes: a host that clients name, and the origin it stands for.

use crate::exchange::{Error, Reason};
use crate::policy::Policy;
use crate::semantics::Authority;
use crate::units::{HostName, Origin, Scheme};

/// The origin of a route by host.
pub(super) fn route(policy: &Policy, host: &HostName) -> Option<Origin> {
    policy
        .routes_by_host
        .get(host)
        .cloned()
        .or_else(|| by_localhost(policy, host))
}

/// The origin for a request in origin-form; there is no relaying to whatever `Host` says.
pub(super) fn origin(policy: &Policy, authority: &Authority) -> Result<Origin, Error> {
    route(policy, &authority.host).ok_or_else(|| {
        let detail = format!("no route has the host `{}`", authority.host);
        Error::new(Reason::NoRoute, detail)
    })
}

/// `api.example.com.localhost` stands for `https://api.example.com` where a target has that host:
/// browsers and curl resolve such names to this machine (RFC 6761 section 6.3).
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
