//! Guard of the API and of routes against web pages: the host that a request names must be one of
//! outpace's own, and the request must not come from a page of another site.

use http::{Request, Version};

use super::connection::{ClientConnection, Inbound};
use super::gateway;
use crate::exchange::{Error, Reason};
use crate::policy::{ListenerId, Policy};
use crate::semantics::{self, Authority, RequestTarget};
use crate::units::{HostName, Scheme};

impl ClientConnection {
    /// Returns the request-target as HTTP/1 would write it. HTTP/2 has only one form, so a request
    /// to the proxy's own port is in origin-form there if it names this port.
    pub(super) fn own_form(
        &self,
        requested: RequestTarget,
        version: Version,
        policy: &Policy,
    ) -> RequestTarget {
        match requested {
            RequestTarget::Absolute(origin)
                if version == Version::HTTP_2
                    && matches!(self.inbound, Inbound::Proxy)
                    && origin.port == self.listener.port()
                    && gateway::route(policy, &origin.host).is_none()
                    && self.is_called(policy, ListenerId::Proxy, &origin.host) =>
            {
                RequestTarget::Origin(Authority {
                    host: origin.host,
                    port: Some(origin.port),
                })
            }
            requested => requested,
        }
    }

    /// Checks a request to the API or to a route. Requests to the forward proxy name their origin
    /// in the request-target, so they are not checked.
    ///
    /// # Errors
    /// Returns [`Reason::UnknownHost`] for a host that is not outpace's own, and
    /// [`Reason::CrossSite`] for a request of another site's page.
    pub(super) fn guard<B>(
        &self,
        request: &Request<B>,
        requested: &RequestTarget,
        policy: &Policy,
    ) -> Result<(), Error> {
        let listener = match self.inbound {
            Inbound::Proxy => ListenerId::Proxy,
            Inbound::Route(address, _) => ListenerId::Route(address),
            Inbound::Inside(_) => return Ok(()),
        };
        let named = match requested {
            RequestTarget::Origin(authority) => authority.clone(),
            RequestTarget::Absolute(origin)
                if listener != ListenerId::Proxy
                    || gateway::route(policy, &origin.host).is_some() =>
            {
                Authority {
                    host: origin.host.clone(),
                    port: Some(origin.port),
                }
            }
            _ => return Ok(()),
        };
        let guarded = self.listener.ip().is_loopback() || policy.clients.is_empty();
        if guarded && !self.is_called(policy, listener, &named.host) {
            let key = match listener {
                ListenerId::Route(_) => "the route's `hosts`",
                ListenerId::Proxy | ListenerId::Admin => "`hosts`",
            };
            let detail = format!(
                "`{}` is not a name of this listener; use `localhost`, or add it to {key}",
                named.host
            );
            return Err(Error::new(Reason::UnknownHost, detail));
        }
        let headers = request.headers();
        let tls = match self.inbound {
            Inbound::Route(address, _) => policy.tls.routes.get(&address),
            Inbound::Proxy | Inbound::Inside(_) => policy.tls.proxy.as_ref(),
        };
        let scheme = tls.map_or(Scheme::Http, |_| Scheme::Https);
        if semantics::is_cross_site(request.method(), headers, &named, scheme) {
            let detail = "the request comes from a web page of another site than this listener";
            return Err(Error::new(Reason::CrossSite, detail));
        }
        Ok(())
    }

    /// Returns true if clients may call the listener by this host.
    fn is_called(&self, policy: &Policy, listener: ListenerId, host: &HostName) -> bool {
        semantics::is_own_host(host, self.local) || policy.names_listener(listener, host)
    }
}
