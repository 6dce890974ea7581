//! The outward side: resolve, guard the address, connect, TLS, keep connections, send.
//!
//! One resolver and one connector. The address that was checked is the address that is dialled, so a
//! name that resolves differently the second time gains nothing (RFC 9110 section 17.1).
//!
//! An HTTP/1.1 connection has no task of its own: whoever uses it polls it, first while it waits for
//! the response, then through the response's body. That saves a wake-up of another task per message,
//! which is a good part of what forwarding costs.

mod address;
mod body;
mod connect;
mod io;
mod pool;
mod resolve;
mod tls;

pub use address::AddressClass;
pub use body::OriginBody;
pub use connect::{Connector, ParentProxy};
pub use io::Io;
pub use pool::{Destination, Lease, Pool, Protocol, ProtocolChoice, SendError};
pub use tls::{Roots, load_pem_file};

use std::net::SocketAddr;

/// Why an origin could not be reached or did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    /// The name has no address.
    #[error("`{host}` could not be resolved: {cause}")]
    Unresolved {
        /// The name.
        host: String,
        /// What the resolver said.
        cause: String,
    },
    /// Every address is one that must not be dialled.
    #[error("the address {address} is {class}")]
    Prohibited {
        /// The address.
        address: SocketAddr,
        /// Why it must not be.
        class: AddressClass,
    },
    /// The address is our own.
    #[error("the address {0} is this proxy itself")]
    Ourselves(SocketAddr),
    /// Nobody listens, or the network said no.
    #[error("connecting failed: {0}")]
    Refused(String),
    /// No connection in time.
    #[error("connecting took too long")]
    ConnectTimeout,
    /// The origin's certificate was not accepted.
    #[error("the origin's certificate was not accepted: {0}")]
    Certificate(String),
    /// TLS failed otherwise.
    #[error("TLS with the origin failed: {0}")]
    Tls(String),
    /// The parent proxy did not connect us.
    #[error("the parent proxy refused: {0}")]
    ParentProxy(String),
    /// The connection broke before the response was complete, or the response was malformed.
    #[error("the exchange with the origin broke: {0}")]
    Broken(String),
}

impl OriginError {
    /// Whether the request surely never reached the origin.
    pub const fn is_before_dispatch(&self) -> bool {
        !matches!(self, Self::Broken(_))
    }

    /// Whether trying once more may help; a name, an address or a certificate does not change so soon.
    pub const fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Refused(_) | Self::ConnectTimeout | Self::Broken(_)
        )
    }
}
