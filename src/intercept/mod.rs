//! Ending a client's TLS inside its CONNECT, so that single requests are seen and can be paced.
//!
//! The CA is made on first use, or supplied. Its key never leaves its file; leaves have a key of
//! their own, live for a week and are kept in memory. A leaf is minted for the host that CONNECT
//! named, never for whatever a ClientHello claims.

mod accept;
mod authority;
mod bundle;
mod leaves;

pub use accept::{AcceptError, Inside, Prefixed, accept};
pub use authority::{CaError, CaSource, CertificateAuthority, Description};
pub use bundle::write_bundle;
pub use leaves::Leaves;
