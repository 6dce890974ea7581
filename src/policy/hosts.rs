//! Host patterns, and the table that finds the most specific match.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use foldhash::HashMap;

use super::Target;
use crate::units::HostName;

/// A host pattern: `api.x.com`, `*.x.com` or `*`, each with an optional `:port`. `*.x.com` matches
/// every name below `x.com`, but not `x.com` itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPattern {
    name: Name,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Name {
    Exact(HostName),
    /// Matches every name below this one, but not the name itself.
    Below(HostName),
    Any,
}

impl HostPattern {
    /// Returns the port, or `None` if the pattern names none.
    pub const fn port(&self) -> Option<u16> {
        self.port
    }

    /// Returns true if the pattern matches this host and port.
    pub fn matches(&self, host: &HostName, port: u16) -> bool {
        let is_named = match &self.name {
            Name::Exact(name) => name == host,
            Name::Below(name) => {
                let above = host.as_str().strip_suffix(name.as_str());
                host.ip().is_none() && above.is_some_and(|above| above.ends_with('.'))
            }
            Name::Any => true,
        };
        is_named && self.port.is_none_or(|named| named == port)
    }

    /// Returns the host if the pattern matches exactly one host, and `None` for a wildcard.
    pub const fn exact(&self) -> Option<&HostName> {
        match &self.name {
            Name::Exact(host) => Some(host),
            Name::Below(_) | Name::Any => None,
        }
    }

    /// Returns the domain of a wildcard such as `*.x.com`, and `None` for other patterns.
    pub const fn below(&self) -> Option<&HostName> {
        match &self.name {
            Name::Below(domain) => Some(domain),
            Name::Exact(_) | Name::Any => None,
        }
    }
}

/// The error for a text that is not a host pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a host pattern; write it as \"api.example.com\", \"*.example.com\" or \"api.example.com:8443\""
)]
pub struct ParseHostPatternError(String);

impl FromStr for HostPattern {
    type Err = ParseHostPatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = || ParseHostPatternError(text.to_owned());
        let bare_v6 = text.starts_with('[') && text.ends_with(']');
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) if !bare_v6 => {
                let port = port.parse().ok().filter(|port| *port != 0);
                (name, Some(port.ok_or_else(fail)?))
            }
            _ => (text, None),
        };
        let name = if name == "*" {
            Name::Any
        } else if let Some(below) = name.strip_prefix("*.") {
            let below = HostName::parse(below).ok().filter(|h| h.ip().is_none());
            Name::Below(below.ok_or_else(fail)?)
        } else {
            Name::Exact(HostName::parse(name).map_err(|_error| fail())?)
        };
        Ok(Self { name, port })
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Name::Exact(host) => write!(f, "{host}")?,
            Name::Below(host) => write!(f, "*.{host}")?,
            Name::Any => f.write_str("*")?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// An index from host patterns to the positions of their targets.
#[derive(Debug, Default)]
pub(super) struct HostTable {
    exact: HashMap<Arc<str>, Ports>,
    below: HashMap<Arc<str>, Ports>,
    any: Ports,
    ports: HashSet<u16>,
}

/// The positions of the targets for one name, by port.
#[derive(Debug, Default)]
struct Ports {
    any: Option<usize>,
    one: Vec<(u16, usize)>,
}

impl Ports {
    fn find(&self, port: u16) -> Option<usize> {
        let named = self.one.iter().find(|(named, _)| *named == port);
        named.map(|(_, index)| *index).or(self.any)
    }
}

impl HostTable {
    pub(super) fn new(targets: &[Arc<Target>]) -> Self {
        let mut table = Self::default();
        for (index, target) in targets.iter().enumerate() {
            for pattern in &target.hosts {
                table.insert(pattern, index);
            }
        }
        table
    }

    fn insert(&mut self, pattern: &HostPattern, index: usize) {
        let ports = match &pattern.name {
            Name::Exact(host) => self.exact.entry(host.as_str().into()).or_default(),
            Name::Below(host) => self.below.entry(host.as_str().into()).or_default(),
            Name::Any => &mut self.any,
        };
        match pattern.port {
            None => ports.any = Some(index),
            Some(port) => {
                ports.one.push((port, index));
                self.ports.insert(port);
            }
        }
    }

    pub(super) fn names_port(&self, port: u16) -> bool {
        self.ports.contains(&port)
    }

    /// Returns the position of the target with the most specific match. Exact names come before
    /// wildcards, and longer wildcards before shorter ones. Within one name, a pattern with the
    /// port comes first.
    pub(super) fn find(&self, host: &HostName, port: u16) -> Option<usize> {
        let name = host.as_str();
        if let Some(found) = self.exact.get(name).and_then(|ports| ports.find(port)) {
            return Some(found);
        }
        if !self.below.is_empty() && host.ip().is_none() {
            let mut rest = name;
            while let Some((_, below)) = rest.split_once('.') {
                if let Some(found) = self.below.get(below).and_then(|ports| ports.find(port)) {
                    return Some(found);
                }
                rest = below;
            }
        }
        self.any.find(port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(patterns: &[&str]) -> HostTable {
        let mut table = HostTable::default();
        for (index, pattern) in patterns.iter().enumerate() {
            table.insert(&pattern.parse().unwrap(), index);
        }
        table
    }

    #[test]
    fn the_most_specific_pattern_wins() {
        let table = table(&["*.x.com", "api.x.com", "*.eu.x.com", "api.x.com:8443", "*"]);
        let find = |host: &str, port| table.find(&HostName::parse(host).unwrap(), port);
        assert_eq!(find("api.x.com", 443), Some(1));
        assert_eq!(find("api.x.com", 8443), Some(3));
        assert_eq!(find("www.x.com", 443), Some(0));
        assert_eq!(find("a.eu.x.com", 443), Some(2));
        assert_eq!(find("x.com", 443), Some(4));
        assert_eq!(find("127.0.0.1", 443), Some(4));
        assert!(table.names_port(8443) && !table.names_port(443));
    }

    #[test]
    fn one_pattern_matches_as_the_table_does() {
        let hosts = ["x.com", "api.x.com", "a.b.x.com", "ax.com", "127.0.0.1"];
        for pattern in ["*", "*.x.com", "api.x.com", "*.x.com:8443", "x.com:443"] {
            let table = table(&[pattern]);
            for (host, port) in hosts.iter().flat_map(|host| [(host, 443), (host, 8443)]) {
                let host = HostName::parse(host).unwrap();
                let one = pattern.parse::<HostPattern>().unwrap();
                let found = table.find(&host, port).is_some();
                assert_eq!(one.matches(&host, port), found, "{pattern} {host}:{port}");
            }
        }
    }

    #[test]
    fn patterns_print_as_they_are_written() {
        for text in ["api.x.com", "*.x.com:8443", "*", "[::1]:80", "[::1]"] {
            assert_eq!(text.parse::<HostPattern>().unwrap().to_string(), text);
        }
        for text in ["", "*x.com", "a.*.com", "x.com:0", "x.com:y", "*.127.0.0.1"] {
            assert!(text.parse::<HostPattern>().is_err(), "{text}");
        }
    }
}
