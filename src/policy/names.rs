//! Names by which clients may call outpace's own listeners, for the `Host` guard.

use std::collections::HashMap;
use std::net::SocketAddr;

use super::Policy;
use crate::units::HostName;

/// Hosts that the configuration lists for its listeners, apart from the names of this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListenerHosts {
    /// Host of `public_url`, which every listener may be called by.
    pub public: Option<HostName>,
    /// Hosts of the proxy's port, from the key `hosts`.
    pub proxy: Vec<HostName>,
    /// Hosts of the admin port, from the key `admin.hosts`.
    pub admin: Vec<HostName>,
    /// Hosts of each route with a port of its own, from the key `routes[].hosts`.
    pub routes: HashMap<SocketAddr, Vec<HostName>>,
}

/// Listener of outpace, as the configuration tells it from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenerId {
    /// Port of the forward proxy, the API and the routes by host.
    Proxy,
    /// Port of the operators' calls.
    Admin,
    /// Port of one route, by its address in the configuration.
    Route(SocketAddr),
}

impl Policy {
    /// Returns true if the configuration allows clients of the listener to name this host. These
    /// are the hosts of the listener, of the public URL and of routes.
    pub fn names_listener(&self, listener: ListenerId, host: &HostName) -> bool {
        let hosts = &self.listener_hosts;
        let listed = match listener {
            ListenerId::Proxy => Some(&hosts.proxy),
            ListenerId::Admin => Some(&hosts.admin),
            ListenerId::Route(address) => hosts.routes.get(&address),
        };
        let route = match listener {
            ListenerId::Route(address) => self.routes_by_port.get(&address),
            ListenerId::Proxy | ListenerId::Admin => None,
        };
        listed.is_some_and(|listed| listed.contains(host))
            || hosts.public.as_ref() == Some(host)
            || route.is_some_and(|origin| origin.host == *host)
            || self.routes_by_host.contains_key(host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Origin, Scheme};

    #[test]
    fn each_listener_has_its_own_names_and_the_common_ones() {
        let host = |text: &str| HostName::parse(text).unwrap();
        let origin = |text: &str| Origin {
            scheme: Scheme::Https,
            host: host(text),
            port: 443,
        };
        let address: SocketAddr = ([127, 0, 0, 1], 9001).into();
        let mut policy = Policy::default();
        policy.routes_by_port.insert(address, origin("to.example"));
        policy
            .routes_by_host
            .insert(host("by.host"), origin("to.example"));
        policy.listener_hosts = ListenerHosts {
            public: Some(host("public.example")),
            proxy: vec![host("proxy.example")],
            admin: vec![host("admin.example")],
            routes: HashMap::from([(address, vec![host("route.example")])]),
        };
        let other = ListenerId::Route(([127, 0, 0, 1], 9002).into());
        for (listener, own) in [
            (ListenerId::Proxy, "proxy.example"),
            (ListenerId::Admin, "admin.example"),
            (ListenerId::Route(address), "route.example to.example"),
            (other, ""),
        ] {
            let all = "proxy.example admin.example route.example to.example evil.example";
            for name in all.split(' ') {
                let expected = own.split(' ').any(|own| own == name);
                let named = policy.names_listener(listener, &host(name));
                assert_eq!(named, expected, "{listener:?} {name}");
            }
            for name in ["public.example", "by.host"] {
                assert!(policy.names_listener(listener, &host(name)), "{name}");
            }
        }
    }
}
