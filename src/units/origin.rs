//! The triple that identifies a server (RFC 6454): scheme, host and port.

use std::fmt;

use super::HostName;

/// A URI scheme that outpace forwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Plain HTTP over TCP (RFC 9110 section 4.2.1).
    Http,
    /// HTTP over TLS (RFC 9110 section 4.2.2).
    Https,
}

impl Scheme {
    /// Returns the port for a URI that names none (RFC 9110 sections 4.2.1 and 4.2.2).
    pub const fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }

    /// Returns the text of the scheme, `http` or `https`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// The server that receives requests: scheme, canonical host and port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Scheme, which selects plain TCP or TLS.
    pub scheme: Scheme,
    /// Host to resolve, also sent in SNI and `Host`.
    pub host: HostName,
    /// TCP port of the server.
    pub port: u16,
}

impl Origin {
    /// Returns the value of `Host`: the host, followed by the port unless it is the scheme's
    /// default.
    pub fn authority(&self) -> String {
        if self.port == self.scheme.default_port() {
            self.host.to_string()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Returns true if `host` equals [`Self::authority`], usually without building that text.
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
