//! Authorities of the form `host[:port]` (RFC 3986 section 3.2), canonicalised once.

use std::fmt;

use super::Malformed;
use crate::units::HostName;

/// A host, and the port if one was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// Host in canonical form, without brackets.
    pub host: HostName,
    /// Port as it was written, never zero.
    pub port: Option<u16>,
}

impl Authority {
    /// Parses an authority. Userinfo is refused (RFC 9110 section 4.2.4). An empty, zero or too
    /// large port is refused too, because an unreadable port must not become the default port.
    ///
    /// # Errors
    /// Returns [`Malformed::Host`] with the cause.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        if let Some(host) = HostName::plain(text) {
            return Ok(Self { host, port: None });
        }
        if text.contains('@') {
            return Err(Malformed::Host("it contains userinfo; remove it"));
        }
        let after_bracket = text.rfind(']').map_or(0, |at| at + 1);
        let tail = text.get(after_bracket..).unwrap_or_default();
        let (host, port) = match tail.rfind(':') {
            None => (text, None),
            Some(colon) => {
                let (host, port) = text.split_at(after_bracket + colon);
                (host, Some(parse_port(port.trim_start_matches(':'))?))
            }
        };
        let host =
            HostName::parse(host).map_err(|_error| Malformed::Host("it is not a host name"))?;
        Ok(Self { host, port })
    }
}

fn parse_port(digits: &str) -> Result<u16, Malformed> {
    let sound = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let port = if sound { digits.parse().ok() } else { None };
    port.filter(|port| *port != 0)
        .ok_or(Malformed::Host("its port is not a number from 1 to 65535"))
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.host)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_parse_once_and_canonically() {
        for (text, host, port) in [
            ("api.x.com", "api.x.com", None),
            ("API.x.com:8443", "api.x.com", Some(8443)),
            ("[::1]", "::1", None),
            ("[::1]:80", "::1", Some(80)),
        ] {
            let authority = Authority::parse(text).unwrap();
            assert_eq!((authority.host.as_str(), authority.port), (host, port));
        }
    }

    #[test]
    fn a_port_that_cannot_be_read_is_no_default_port() {
        let texts = "x.com: x.com:0 x.com:99999 x.com:+80 x.com:8a u:p@x.com :80 ::1 x.com::80";
        for text in texts.split(' ') {
            assert!(Authority::parse(text).is_err(), "{text}");
        }
    }
}
