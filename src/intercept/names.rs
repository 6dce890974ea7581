//! Names for which a CA may sign: the name constraints of its certificate (RFC 5280 section
//! 4.2.1.10).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rcgen::{CidrSubnet, GeneralSubtree, NameConstraints};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use crate::policy::HostPattern;
use crate::units::HostName;

/// Name constraints of a CA. The default permits every name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CaNames {
    permitted: Vec<Subtree>,
    excluded: Vec<Subtree>,
}

/// Set of names: a domain with all names below it, or a network.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Subtree {
    /// Lower-case domain. The empty text stands for all domains.
    Domain(String),
    Network(IpNet),
    /// Addresses whose mask is no prefix, or that cannot be read. No address is compared with them.
    UnreadableNetwork,
}

/// Domain under which no host exists (RFC 2606). A permitted list without a domain would permit all
/// domains, so this one closes the list.
const NO_DOMAIN: &str = "none.invalid";

impl CaNames {
    /// Returns the narrowest constraints that cover the hosts. A pattern for all hosts makes them
    /// permit every name.
    pub fn covering<'a>(hosts: impl IntoIterator<Item = &'a HostPattern>) -> Self {
        let mut permitted = Vec::new();
        for host in hosts {
            let subtree = match (host.exact(), host.below()) {
                (Some(host), _) => match host.ip() {
                    Some(ip) => Subtree::Network(ip.into()),
                    None => Subtree::Domain(host.as_str().to_owned()),
                },
                (None, Some(domain)) => Subtree::Domain(domain.as_str().to_owned()),
                (None, None) => return Self::default(),
            };
            if !permitted.contains(&subtree) {
                permitted.push(subtree);
            }
        }
        let is_domain = |subtree: &Subtree| matches!(subtree, Subtree::Domain(_));
        if !permitted.iter().any(is_domain) {
            permitted.push(Subtree::Domain(NO_DOMAIN.to_owned()));
        }
        // Each family of addresses without a permitted one is excluded as a whole, because a list of
        // domains alone permits all addresses.
        let all: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let families = all.into_iter().filter(|all| {
            !permitted.iter().any(|subtree| {
                matches!(subtree, Subtree::Network(net) if net.addr().is_ipv4() == all.is_ipv4())
            })
        });
        let whole = families.filter_map(|all| IpNet::new(all, 0).ok());
        let excluded = whole.map(Subtree::Network).collect();
        Self {
            permitted,
            excluded,
        }
    }

    /// Reads the constraints of a certificate, which permits every name if it has none.
    pub(super) fn of(certificate: &X509Certificate<'_>) -> Result<Self, String> {
        let found = certificate
            .name_constraints()
            .map_err(|error| format!("its name constraints cannot be read: {error}"))?;
        let Some(found) = found else {
            return Ok(Self::default());
        };
        let read = |trees: &Option<Vec<x509_parser::extensions::GeneralSubtree<'_>>>| {
            let trees = trees.iter().flatten();
            trees.filter_map(|tree| Subtree::read(&tree.base)).collect()
        };
        Ok(Self {
            permitted: read(&found.value.permitted_subtrees),
            excluded: read(&found.value.excluded_subtrees),
        })
    }

    /// Returns the extension for a certificate, or `None` if every name is permitted.
    pub(super) fn extension(&self) -> Option<NameConstraints> {
        let written = |trees: &[Subtree]| trees.iter().filter_map(Subtree::written).collect();
        self.is_constrained().then(|| NameConstraints {
            permitted_subtrees: written(&self.permitted),
            excluded_subtrees: written(&self.excluded),
        })
    }

    /// Returns true if some names are not permitted.
    pub const fn is_constrained(&self) -> bool {
        !self.permitted.is_empty() || !self.excluded.is_empty()
    }

    /// Returns true if the CA may sign for this host.
    pub fn permit(&self, host: &HostName) -> bool {
        let holds = |tree: &Subtree| tree.holds(host);
        let is_listed = self.permitted.iter().any(holds);
        let same_kind = |tree: &Subtree| tree.is_domain() == host.ip().is_none();
        let is_open = !self.permitted.iter().any(same_kind);
        (is_listed || is_open) && !self.excluded.iter().any(holds)
    }

    /// Returns true if the CA may sign for every host that the pattern matches.
    pub fn cover(&self, pattern: &HostPattern) -> bool {
        match (pattern.exact(), pattern.below()) {
            (Some(host), _) => self.permit(host),
            (None, Some(domain)) => {
                let below = |tree: &Subtree| matches!(tree, Subtree::Domain(excluded) if is_within(excluded, domain.as_str()));
                self.permit(domain) && !self.excluded.iter().any(below)
            }
            (None, None) => !self.is_constrained(),
        }
    }
}

impl Subtree {
    /// Reads a name of a certificate. Kinds of names that no leaf of outpace has are left out.
    fn read(name: &GeneralName<'_>) -> Option<Self> {
        match name {
            // A leading dot is not standard, but common for the names below a domain.
            GeneralName::DNSName(name) => Some(Self::Domain(
                name.trim_start_matches('.').to_ascii_lowercase(),
            )),
            GeneralName::IPAddress(bytes) => {
                let network = read_network(bytes);
                Some(network.map_or(Self::UnreadableNetwork, Self::Network))
            }
            _ => None,
        }
    }

    fn written(&self) -> Option<GeneralSubtree> {
        match self {
            Self::Domain(domain) => Some(GeneralSubtree::DnsName(domain.clone())),
            Self::Network(net) => {
                let subnet = CidrSubnet::from_addr_prefix(net.addr(), net.prefix_len());
                Some(GeneralSubtree::IpAddress(subnet))
            }
            Self::UnreadableNetwork => None,
        }
    }

    const fn is_domain(&self) -> bool {
        matches!(self, Self::Domain(_))
    }

    fn holds(&self, host: &HostName) -> bool {
        match (self, host.ip()) {
            (Self::Domain(domain), None) => is_within(host.as_str(), domain),
            (Self::Network(net), Some(ip)) => net.contains(&ip),
            _ => false,
        }
    }
}

/// Returns true if `name` is `domain` or lies below it.
fn is_within(name: &str, domain: &str) -> bool {
    let above = name.strip_suffix(domain);
    domain.is_empty() || above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
}

/// Reads an address that is followed by its mask.
fn read_network(bytes: &[u8]) -> Option<IpNet> {
    let (address, mask) = bytes.split_at_checked(bytes.len() / 2)?;
    let ip = |bytes: &[u8]| -> Option<IpAddr> {
        let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
        let v6 = || <[u8; 16]>::try_from(bytes).map(IpAddr::from);
        v4.or_else(|_| v6()).ok()
    };
    IpNet::with_netmask(ip(address)?, ip(mask)?).ok()
}

impl fmt::Display for CaNames {
    /// Writes the permitted names, or the excluded ones if no list of permitted ones exists.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (prefix, list) = match (self.permitted.is_empty(), self.excluded.is_empty()) {
            (true, true) => return f.write_str("all names"),
            (true, false) => ("all names except ", &self.excluded),
            (false, _) => ("", &self.permitted),
        };
        f.write_str(prefix)?;
        let shown = list.iter().filter_map(|tree| match tree {
            Subtree::Domain(domain) if domain == NO_DOMAIN => None,
            Subtree::Domain(domain) => Some(format!("{domain} and below")),
            Subtree::Network(net) if net.prefix_len() == net.max_prefix_len() => {
                Some(net.addr().to_string())
            }
            Subtree::Network(net) => Some(net.to_string()),
            Subtree::UnreadableNetwork => Some("an unreadable network".to_owned()),
        });
        f.write_str(&shown.collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(patterns: &[&str]) -> CaNames {
        let patterns: Vec<HostPattern> = patterns.iter().map(|p| p.parse().unwrap()).collect();
        CaNames::covering(&patterns)
    }

    #[test]
    fn only_hosts_of_the_patterns_are_permitted() {
        let names = names(&["api.x.com", "*.y.org", "127.0.0.1", "api.x.com:8443"]);
        for (host, permitted) in [
            ("api.x.com", true),
            // A constraint cannot be narrower than a domain with all names below it.
            ("a.api.x.com", true),
            ("x.com", false),
            ("evilapi.x.com", false),
            ("a.b.y.org", true),
            ("127.0.0.1", true),
            ("127.0.0.2", false),
            ("[::1]", false),
        ] {
            assert_eq!(names.permit(&host.parse().unwrap()), permitted, "{host}");
        }
        for (pattern, covered) in [
            ("*.y.org", true),
            ("*.b.y.org", true),
            ("*.x.com", false),
            ("*", false),
            ("api.x.com:9000", true),
        ] {
            assert_eq!(names.cover(&pattern.parse().unwrap()), covered, "{pattern}");
        }
    }

    #[test]
    fn one_kind_of_host_does_not_permit_the_other() {
        let only_domains = names(&["x.com"]);
        let only_addresses = names(&["[::1]"]);
        for (names, host) in [
            (&only_domains, "10.0.0.1"),
            (&only_domains, "[::1]"),
            (&only_addresses, "x.com"),
            (&only_addresses, "127.0.0.1"),
            (&only_addresses, "[::2]"),
        ] {
            assert!(!names.permit(&host.parse().unwrap()), "{host}");
        }
        assert!(only_addresses.permit(&"[::1]".parse().unwrap()));
    }

    #[test]
    fn a_pattern_for_all_hosts_permits_every_name() {
        let all = names(&["x.com", "*"]);
        assert!(!all.is_constrained() && all.cover(&"*".parse().unwrap()));
        assert_eq!(all.extension(), None);
        assert_eq!(all.to_string(), "all names");
    }

    #[test]
    fn an_excluded_domain_below_a_wildcard_is_noticed() {
        let some = CaNames {
            permitted: Vec::new(),
            excluded: vec![Subtree::Domain("secret.x.com".to_owned())],
        };
        for (pattern, covered) in [
            ("*.x.com", false),
            ("*.secret.x.com", false),
            ("secret.x.com", false),
            ("*.y.com", true),
            ("10.0.0.1", true),
        ] {
            assert_eq!(some.cover(&pattern.parse().unwrap()), covered, "{pattern}");
        }
        assert_eq!(some.to_string(), "all names except secret.x.com and below");
    }
}
