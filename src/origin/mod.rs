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
mod connect;
mod http1;
mod io;
mod pool;
mod resolve;
mod tls;

pub use address::AddressClass;
pub use body::OriginBody;
pub use connect::{Connector, ParentProxy};
pub use io::Io;
pub use pool::{Destination, Lease, Pool, Protocol, ProtocolChoice, RequestBody, SendError};
pub use tls::{Roots, load_pem_file};

use std::net::SocketAddr;

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
    /// All addresses of the host belong to classes that must not be dialled.
    #[error("the address {address} is {class}")]
    Prohibited {
        /// Address that was refused, with its port.
        address: SocketAddr,
        /// Class of the address, which is the reason for the refusal.
        class: AddressClass,
    },
    /// The address belongs to this proxy itself.
    #[error("the address {0} belongs to this proxy")]
    Ourselves(SocketAddr),
    /// No connection could be established, because the peer or the network refused it.
    #[error("connection failed: {0}")]
    Refused(String),
    /// No connection was established within [`CONNECT_TIMEOUT`](crate::bounds::CONNECT_TIMEOUT).
    #[error("connecting to the origin timed out")]
    ConnectTimeout,
    /// The certificate of the origin could not be verified.
    #[error("the origin's certificate was not accepted: {0}")]
    Certificate(String),
    /// TLS with the origin failed for a reason other than its certificate.
    #[error("TLS with the origin failed: {0}")]
    Tls(String),
    /// The parent proxy did not open a tunnel to the origin.
    #[error("CONNECT through the parent proxy failed: {0}")]
    ParentProxy(String),
    /// The connection broke before the response was complete, or the response was malformed.
    #[error("the exchange with the origin failed: {0}")]
    Broken(String),
}

impl OriginError {
    /// Returns true if the request certainly never reached the origin.
    pub const fn is_before_dispatch(&self) -> bool {
        !matches!(self, Self::Broken(_))
    }

    /// Returns true if a new attempt may succeed. All other errors are permanent, because names,
    /// addresses and certificates rarely change within seconds.
    pub const fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Refused(_) | Self::ConnectTimeout | Self::Broken(_)
        )
    }
}
