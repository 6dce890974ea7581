//! Entries of `NO_PROXY`, as most programs read them.

use ipnet::IpNet;

use crate::units::HostName;

/// Hosts that are reached without a proxy, as `NO_PROXY` and `egress.no_proxy` name them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NoProxy(Vec<String>);

impl NoProxy {
    /// Reads a list with commas, the form of the environment variable. Empty entries are left out.
    pub fn parse(list: &str) -> Self {
        let entries = list.split(',').map(str::trim);
        Self::of(entries.filter(|entry| !entry.is_empty()))
    }

    /// Creates the list from single entries.
    pub fn of<'a>(entries: impl IntoIterator<Item = &'a str>) -> Self {
        Self(entries.into_iter().map(str::to_owned).collect())
    }

    /// Returns the first entry for which a program reaches this host and port without its proxy. An
    /// entry is `*`, a host that stands for all names below it, or a network, also with a port.
    pub fn exempting(&self, host: &HostName, port: Option<u16>) -> Option<&str> {
        let mut entries = self.0.iter();
        let found = entries.find(|entry| covers(entry, host, port));
        found.map(String::as_str)
    }

    /// Returns the entries in their order.
    pub fn entries(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

fn covers(entry: &str, host: &HostName, port: Option<u16>) -> bool {
    if entry == "*" {
        return true;
    }
    let entry = entry.to_ascii_lowercase();
    if let Some(ip) = host.ip()
        && let Some(net) = network(&entry)
    {
        return net.contains(&ip);
    }
    let (name, named) = match entry
        .rsplit_once(':')
        .map(|(name, port)| (name, port.parse()))
    {
        Some((name, Ok(port))) if !name.contains(':') || name.ends_with(']') => (name, Some(port)),
        _ => (&*entry, None),
    };
    if port.is_some() && named.is_some() && port != named {
        return false;
    }
    if let Some(ip) = host.ip() {
        return network(name).is_some_and(|net| net.contains(&ip));
    }
    let name = name.trim_start_matches("*.").trim_start_matches('.');
    let above = host.as_str().strip_suffix(name);
    !name.is_empty() && above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
}

/// Parses a network or an address, also an IPv6 address in brackets.
fn network(text: &str) -> Option<IpNet> {
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let text = bare.unwrap_or(text);
    let address = || text.parse::<std::net::IpAddr>().map(IpNet::from);
    text.parse().or_else(|_| address()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_covers_names_below_it_and_networks() {
        let found = |list, host, port| {
            let host = HostName::parse(host).unwrap();
            NoProxy::parse(list).exempting(&host, port).is_some()
        };
        for (list, host) in [
            ("*", "api.x.com"),
            ("localhost,.x.com", "api.x.com"),
            ("x.com", "api.x.com"),
            ("*.X.com", "api.x.com"),
            (" x.com , y.com", "x.com"),
            ("10.0.0.0/8", "10.1.2.3"),
            ("127.0.0.1", "127.0.0.1"),
            ("::1", "[::1]"),
            ("[::1]", "[::1]"),
            ("x.com:8443", "x.com"),
            ("10.1.2.3:80", "10.1.2.3"),
        ] {
            assert!(found(list, host, None), "{list} {host}");
        }
        for (list, host, port) in [
            ("x.com:8443", "a.x.com", 8443),
            ("localhost", "localhost", 80),
            ("[::1]:80", "[::1]", 80),
        ] {
            assert!(found(list, host, Some(port)), "{list} {host} {port}");
        }
        for (list, host, port) in [
            ("", "api.x.com", None),
            (",", "api.x.com", None),
            ("x.com", "ax.com", None),
            ("10.0.0.0/8", "11.0.0.1", None),
            ("10.0.0.0/8", "api.x.com", None),
            ("x.com:8443", "x.com", Some(443)),
            ("localhost:3000", "localhost", Some(3001)),
            ("10.1.2.3:80", "10.1.2.3", Some(81)),
        ] {
            assert!(!found(list, host, port), "{list} {host}");
        }
    }
}
