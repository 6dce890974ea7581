//! Connections to origins: name resolution, address guard, dialling, TLS, pooling and sending.
//!
//! There is one resolver and one connector. The address that was checked is the address that is
//! dialled. A name that resolves differently the second time therefore gains nothing (RFC 9110
//! section 17.1).
//!
//! An HTTP/1.1 connection has no task of its own. The task that uses it also polls it, first while
//! it waits for the response, then through the response's body. This saves one wake-up of another
//! task per message, which is a considerable part of the cost of forwarding.

mod address;
mod body;
mod client_link;
mod connect;
mod connections;
mod descriptors;
mod failure;
mod http1;
mod http2;
mod io;
mod no_proxy;
mod parent;
mod pool;
mod resolve;
mod tls;

pub use address::{AddressClass, may_dial};
pub use body::OriginBody;
pub use client_link::ClientLink;
pub use connect::Connector;
pub use descriptors::OriginPermit;
pub use io::Io;
pub use no_proxy::NoProxy;
pub use parent::ParentProxy;
pub use pool::{Destination, Lease, Pool, Protocol, ProtocolChoice, RequestBody, SendError};
pub use tls::{Roots, load_identity, load_pem_file};

use crate::units::HostName;

/// Reason why an origin could not be reached or did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    /// The host name has no address.
    #[error("`{host}` could not be resolved: {cause}")]
    Unresolved {
        /// Host name that was looked up.
        host: String,
        /// Error of the system's resolver, or a note that the name has no address.
        cause: String,
    },
    /// All addresses of the host belong to classes that must not be dialled. The message does not
    /// name them, because a client could otherwise look up internal names.
    #[error("`{host}` is or resolves to an address that is not public")]
    Prohibited {
        /// Host name or address literal that the request names.
        host: HostName,
    },
    /// The host leads to this proxy itself.
    #[error("`{host}` is or resolves to an address of this proxy")]
    Ourselves {
        /// Host name or address literal that the request names.
        host: HostName,
    },
    /// No connection could be established, because the peer or the network refused it.
    #[error("connection failed: {0}")]
    Refused(String),
    /// No connection was established within [`CONNECT_TIMEOUT`](crate::bounds::CONNECT_TIMEOUT).
    #[error("connecting to the origin timed out")]
    ConnectTimeout,
    /// The certificate of the origin could not be verified.
    #[error("the origin's certificate was not accepted: {0}")]
    Certificate(String),
    /// The origin does not accept this client, whose TLS certificate is missing or wrong.
    #[error("the origin requires a client certificate: {0}")]
    ClientCertificate(String),
    /// TLS with the origin failed permanently for a reason other than a certificate.
    #[error("TLS with the origin failed: {0}")]
    Tls(String),
    /// The connection broke during the TLS handshake, so another try may succeed.
    #[error("the TLS handshake with the origin broke: {0}")]
    HandshakeBroke(String),
    /// The parent proxy did not open a tunnel to the origin.
    #[error("the parent proxy failed at {cause}")]
    ParentProxy {
        /// Response of the parent proxy, or the error of its connection.
        cause: String,
        /// True if another try may succeed.
        passing: bool,
    },
    /// All connections to the origin are in use, and no further one may be opened.
    #[error("all connections to the origin are in use, and it allows no further HTTP/2 streams")]
    Busy,
    /// The request was sent, but the origin declared that it did not process it.
    #[error("the origin did not process the request: {cause}")]
    Unprocessed {
        /// Error code of the stream or the connection.
        cause: String,
        /// True if the origin ends the whole connection (GOAWAY).
        going_away: bool,
    },
    /// The origin refused the request over HTTP/2 and requires HTTP/1.1.
    #[error("the origin requires HTTP/1.1")]
    Http1Required,
    /// The response is malformed.
    #[error("the origin's response cannot be read: {0}")]
    Unreadable(String),
    /// The connection broke before the response was complete.
    #[error("the exchange with the origin failed: {0}")]
    Broken(String),
}

impl OriginError {
    /// Returns true if a new attempt may succeed. All other errors are permanent, because names,
    /// addresses, certificates and faulty origins rarely change within seconds.
    pub const fn is_passing(&self) -> bool {
        match self {
            Self::Refused(_)
            | Self::ConnectTimeout
            | Self::HandshakeBroke(_)
            | Self::Unprocessed { .. }
            | Self::Http1Required
            | Self::Broken(_) => true,
            Self::ParentProxy { passing, .. } => *passing,
            Self::Unresolved { .. }
            | Self::Prohibited { .. }
            | Self::Ourselves { .. }
            | Self::Certificate(_)
            | Self::ClientCertificate(_)
            | Self::Tls(_)
            | Self::Busy
            | Self::Unreadable(_) => false,
        }
    }
}

#[cfg(test)]
mod tests;
