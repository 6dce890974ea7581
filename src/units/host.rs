//! Host names in the canonical form that policy, SNI, `Host` and dialling share.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

/// A host in canonical form: a lower-case ASCII name (IDNA A-labels) without a trailing dot, or an
/// IP address as its standard text without brackets. `0x7f.1` and `127.0.0.1` are the same host.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct HostName {
    text: Arc<str>,
    /// Parsed address, if the text is an IP address.
    ip: Option<IpAddr>,
}

/// The error for a text that is not a host. The message quotes at most 80 characters of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a host name; write it as \"api.example.com\", \"10.0.0.7\" or \"[::1]\"")]
pub struct ParseHostError(String);

impl HostName {
    /// Canonicalises `text`: a registered name, an IPv4 address in any spelling, or an IPv6 address
    /// in brackets (RFC 3986 section 3.2.2). Zone identifiers are refused.
    ///
    /// # Errors
    /// Returns an error if `text` is not a valid host.
    pub fn parse(text: &str) -> Result<Self, ParseHostError> {
        if let Some(plain) = Self::plain(text) {
            return Ok(plain);
        }
        let fail = || ParseHostError(text.chars().take(80).collect());
        if let Some(inner) = text.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or_else(fail)?;
            let ip: Ipv6Addr = inner.parse().map_err(|_error| fail())?;
            return Ok(Self::from_ip(ip.into()));
        }
        // A percent sign, as in `%2e`, is refused because requests are routed by this text.
        if text.contains('%') || text.is_empty() {
            return Err(fail());
        }
        match url::Host::parse(text.strip_suffix('.').unwrap_or(text)).map_err(|_error| fail())? {
            url::Host::Ipv4(ip) => Ok(Self::from_ip(IpAddr::V4(ip))),
            url::Host::Ipv6(ip) => Ok(Self::from_ip(IpAddr::V6(ip))),
            url::Host::Domain(name) if is_registered_name(&name) => Ok(Self {
                text: name.into(),
                ip: None,
            }),
            url::Host::Domain(_) => Err(fail()),
        }
    }

    /// Returns the host if `text` is already a canonical name and not an IP address. Nearly every
    /// request has such a host.
    pub fn plain(text: &str) -> Option<Self> {
        is_plain(text).then(|| Self {
            text: text.into(),
            ip: None,
        })
    }

    /// Creates the host for an IP address.
    pub fn from_ip(ip: IpAddr) -> Self {
        Self {
            text: ip.to_string().into(),
            ip: Some(ip),
        }
    }

    /// Returns the canonical text, without brackets around an IPv6 address.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the address if the host is an IP address.
    pub const fn ip(&self) -> Option<IpAddr> {
        self.ip
    }
}

impl std::str::FromStr for HostName {
    type Err = ParseHostError;

    fn from_str(text: &str) -> Result<Self, ParseHostError> {
        Self::parse(text)
    }
}

/// Returns true for a canonical name that cannot be an IP address, because its last label begins
/// with a letter. A name with an A-label is not plain, because its encoding must be checked.
fn is_plain(text: &str) -> bool {
    let (mut label, mut begins_with_letter) = (0, false);
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => {
                if label == 0 {
                    begins_with_letter = byte.is_ascii_lowercase();
                }
                label += 1;
            }
            b'.' if (1..=63).contains(&label) => label = 0,
            _ => return false,
        }
    }
    let is_encoded = text.starts_with("xn--") || text.contains(".xn--");
    begins_with_letter && (1..=63).contains(&label) && text.len() <= 253 && !is_encoded
}

fn is_registered_name(text: &str) -> bool {
    text.len() <= 253
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
        })
}

impl fmt::Display for HostName {
    /// Writes the host as in an authority, with brackets around an IPv6 address.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            Some(IpAddr::V6(_)) => write!(f, "[{}]", self.text),
            _ => f.write_str(&self.text),
        }
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_host_are_one_host() {
        for (written, canonical) in [
            ("API.Example.COM", "api.example.com"),
            ("api.example.com.", "api.example.com"),
            ("127.0.0.1", "127.0.0.1"),
            ("0x7f.1", "127.0.0.1"),
            ("2130706433", "127.0.0.1"),
            ("0177.0.0.1", "127.0.0.1"),
            ("[::1]", "::1"),
            ("[::ffff:127.0.0.1]", "::ffff:127.0.0.1"),
            ("b\u{fc}cher.example", "xn--bcher-kva.example"),
            ("\u{b9}27.0.0.1", "127.0.0.1"),
        ] {
            let host = HostName::parse(written).unwrap();
            assert_eq!(host.as_str(), canonical, "{written}");
        }
    }

    #[test]
    fn what_is_no_host_is_refused() {
        let texts = "|a b|a/b|a@b|[::1|[fe80::1%25eth0]|a%2eb|..|a..b|256.1.1.1|[::1]x";
        for text in texts.split('|') {
            assert!(HostName::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_label_that_encodes_no_name_is_refused_in_every_spelling() {
        for text in [
            "xn--",
            "xn--bcher-le",
            "a.xn--.b",
            "xn--a-ecp.test",
            "b.xn--0",
        ] {
            let spellings = [
                text.to_owned(),
                format!("{text}."),
                text.to_ascii_uppercase(),
            ];
            for text in spellings {
                assert!(HostName::parse(&text).is_err(), "{text}");
            }
        }
        for text in [
            "xn--bcher-kva.example",
            "XN--bcher-kva.example.",
            "a.xn--bcher-kva",
        ] {
            assert!(HostName::parse(text).is_ok(), "{text}");
        }
    }
}
