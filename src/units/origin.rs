//! The triple that names a server (RFC 6454): scheme, host and port.

use std::fmt;

use super::HostName;

/// A URI scheme that we forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Plain HTTP.
    Http,
    /// HTTP over TLS.
    Https,
}

impl Scheme {
    /// The port when none is written (RFC 9110 sections 4.2.1 and 4.2.2).
    pub const fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }

    /// `http` or `https`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// Where requests go: scheme, canonical host, port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Plain or TLS.
    pub scheme: Scheme,
    /// Whom to resolve, name in SNI and in `Host`.
    pub host: HostName,
    /// The TCP port.
    pub port: u16,
}

impl Origin {
    /// `host` or `host:port`, the port only where it is not the scheme's default: the value of `Host`.
    pub fn authority(&self) -> String {
        if self.port == self.scheme.default_port() {
            self.host.to_string()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl Origin {
    /// Whether this is how `Host` names it ([`Self::authority`]), without making that text.
    pub fn is_written(&self, host: &[u8]) -> bool {
        let plain = self.host.ip().is_none() && self.port == self.scheme.default_port();
        plain && host == self.host.as_str().as_bytes() || host == self.authority().as_bytes()
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.as_str(), self.authority())
    }
}
