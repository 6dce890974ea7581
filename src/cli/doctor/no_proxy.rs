//! Entries of `NO_PROXY`, as most programs read them.

use ipnet::IpNet;

use crate::units::HostName;

/// Returns the first entry of `list` for which a program reaches this host without its proxy. An
/// entry is `*`, a host that stands for all names below it, or a network.
pub(super) fn exempting<'a>(list: &'a str, host: &HostName) -> Option<&'a str> {
    let entries = list.split(',').map(str::trim);
    entries
        .filter(|entry| !entry.is_empty())
        .find(|entry| covers(entry, host))
}

fn covers(entry: &str, host: &HostName) -> bool {
    if entry == "*" {
        return true;
    }
    let entry = entry.to_ascii_lowercase();
    if let Some(ip) = host.ip() {
        let net = entry.parse::<IpNet>().ok();
        let same = entry.parse() == Ok(ip);
        return same || net.is_some_and(|net| net.contains(&ip));
    }
    // A port in an entry narrows it to that port, which is close enough for a warning.
    let name = entry.split(':').next().unwrap_or_default();
    let name = name.trim_start_matches("*.").trim_start_matches('.');
    let above = host.as_str().strip_suffix(name);
    !name.is_empty() && above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_covers_names_below_it_and_networks() {
        let found = |list, host| exempting(list, &HostName::parse(host).unwrap()).is_some();
        for (list, host) in [
            ("*", "api.x.com"),
            ("localhost,.x.com", "api.x.com"),
            ("x.com", "api.x.com"),
            ("*.X.com", "api.x.com"),
            (" x.com , y.com", "x.com"),
            ("10.0.0.0/8", "10.1.2.3"),
            ("127.0.0.1", "127.0.0.1"),
        ] {
            assert!(found(list, host), "{list} {host}");
        }
        for (list, host) in [
            ("", "api.x.com"),
            (",", "api.x.com"),
            ("x.com", "ax.com"),
            ("10.0.0.0/8", "11.0.0.1"),
            ("10.0.0.0/8", "api.x.com"),
        ] {
            assert!(!found(list, host), "{list} {host}");
        }
    }
}
