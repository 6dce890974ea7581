//! Rule for the operator's credentials: they leave only over TLS, and only to the ports that the
//! target's host patterns mean.

use crate::policy::Target;
use crate::semantics::is_credential;
use crate::units::{Origin, Scheme};

/// Returns the reason for which credentials of the target must not leave for this origin, or `None`
/// if they may or the target sets none.
///
/// A host pattern without a port means port 443, and also port 80 where the target allows http.
pub fn refused_credential(target: &Target, origin: &Origin) -> Option<String> {
    let mut names = target.set_headers.iter().map(|(name, _)| name);
    let name = names.find(|name| is_credential(name.as_str()))?;
    let (of, over_http) = (&target.name, target.set_headers_over_http);
    if origin.scheme == Scheme::Http && !over_http {
        return Some(format!(
            "target `{of}` sets `{name}`, which leaves only over TLS, and the request is for {origin}; use https"
        ));
    }
    let (host, port) = (&origin.host, origin.port);
    let mut patterns = target.hosts.iter();
    let is_named = patterns.any(|one| one.port() == Some(port) && one.matches(host, port));
    if is_named || port == 443 || (over_http && port == 80) {
        return None;
    }
    let ports = if over_http { "443 and 80" } else { "443" };
    Some(format!(
        "target `{of}` sets `{name}`, which leaves only to port {ports} of a host without a port in `hosts`, and the request is for port {port}; add `{host}:{port}` to `hosts`"
    ))
}
