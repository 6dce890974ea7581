//! Addresses to which outpace may connect.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;
use rustls::sign::CertifiedKey;

use super::HostPattern;
use crate::units::HostName;

/// The operator's exceptions to the rule that only public addresses are dialled, and the static
/// hosts table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Egress {
    /// Networks that may be dialled although their addresses are not public.
    pub allow: Vec<Allow>,
    /// Fixed address of each listed host, with an optional fixed port. An entry takes precedence
    /// over DNS.
    pub resolve: HashMap<HostName, (IpAddr, Option<u16>)>,
    /// TLS certificates that identify this program to some origins.
    pub client_certs: Vec<ClientCertificate>,
    /// True if private addresses may be dialled, except those of metadata services. Only a proxy for
    /// one command of this user has this.
    pub private: bool,
}

/// A TLS certificate by which this program identifies itself to the origins of some hosts.
#[derive(Debug, Clone)]
pub struct ClientCertificate {
    /// Hosts to which the certificate is sent if they ask for one.
    pub hosts: Vec<HostPattern>,
    /// Certificate chain with its private key.
    pub identity: Arc<CertifiedKey>,
}

// The key belongs to the certificate, so it need not be compared.
impl PartialEq for ClientCertificate {
    fn eq(&self, other: &Self) -> bool {
        self.hosts == other.hosts && self.identity.cert == other.identity.cert
    }
}

impl Eq for ClientCertificate {}

impl Egress {
    /// Returns true if one of the operator's exceptions covers `address`.
    pub fn allows(&self, address: SocketAddr) -> bool {
        self.allow.iter().any(|allow| allow.covers(address))
    }

    /// Returns the client certificate for a host and port. The first entry with a matching pattern
    /// counts.
    pub fn client_cert(&self, host: &HostName, port: u16) -> Option<&Arc<CertifiedKey>> {
        let certs = &mut self.client_certs.iter();
        let matches = |pattern: &HostPattern| pattern.matches(host, port);
        let found = certs.find(|cert| cert.hosts.iter().any(matches));
        found.map(|cert| &cert.identity)
    }
}

/// A network that may be dialled, or one port of it. Examples are `10.0.0.0/8`, `127.0.0.1`,
/// `127.0.0.1:9900` and `[fd00::/8]:443`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allow {
    net: IpNet,
    port: Option<u16>,
}

impl Allow {
    fn covers(&self, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        let within = self.net.contains(&ip) || self.net.contains(&address.ip());
        within && self.port.is_none_or(|port| port == address.port())
    }
}

/// The error for an entry of `egress.allow` that is neither a network nor an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a network; write it as \"10.0.0.0/8\", \"127.0.0.1\" or \"127.0.0.1:9900\"")]
pub struct ParseAllowError(String);

impl FromStr for Allow {
    type Err = ParseAllowError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = || ParseAllowError(text.to_owned());
        if let Some(net) = parse_net(text) {
            return Ok(Self { net, port: None });
        }
        let (net, port) = text.rsplit_once(':').ok_or_else(fail)?;
        let bare = net.strip_prefix('[').and_then(|n| n.strip_suffix(']'));
        let port = port.parse().ok().filter(|port| *port != 0);
        Ok(Self {
            net: parse_net(bare.unwrap_or(net)).ok_or_else(fail)?,
            port: Some(port.ok_or_else(fail)?),
        })
    }
}

fn parse_net(text: &str) -> Option<IpNet> {
    let address = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse::<IpNet>().or_else(|_| address()).ok()
}

impl fmt::Display for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.port, self.net) {
            (None, net) => write!(f, "{net}"),
            (Some(port), IpNet::V4(net)) => write!(f, "{net}:{port}"),
            (Some(port), IpNet::V6(net)) => write!(f, "[{net}]:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exception_covers_its_network_and_port_and_no_more() {
        let covers = |allow: &str, address: &str| {
            let allow: Allow = allow.parse().unwrap();
            allow.covers(address.parse().unwrap())
        };
        assert!(covers("127.0.0.0/8", "127.1.2.3:80"));
        assert!(covers("127.0.0.1:9900", "127.0.0.1:9900"));
        assert!(!covers("127.0.0.1:9900", "127.0.0.1:9901"));
        assert!(!covers("127.0.0.1", "127.0.0.2:80"));
        assert!(covers("::1", "[::1]:80"));
        assert!(covers("127.0.0.0/8", "[::ffff:127.0.0.1]:80"));
        assert!(covers("[fd00::/8]:443", "[fd00::1]:443"));
        assert!("localhost".parse::<Allow>().is_err());
    }
}
