//! Termination of a client's TLS inside its CONNECT, so that single requests are visible and can be
//! paced.
//!
//! The CA is created on first use or supplied by the operator. Its private key stays in its file
//! and in this process. Leaves share a separate key, expire 5 days after minting and are cached in
//! memory only. A leaf is minted for the host that the CONNECT named, never for a name from the
//! ClientHello.

mod accept;
mod authority;
mod bundle;
mod leaves;

pub use accept::{AcceptError, Inside, Prefixed, accept};
pub use authority::{CaError, CaSource, CertificateAuthority, Description, exposed_mode};
pub use bundle::write_bundle;
pub use leaves::Leaves;
