//! Termination of a client's TLS inside its CONNECT, so that single requests are visible and can be
//! paced.
//!
//! The CA is created on first use or supplied by the operator, and replaced while the program runs.
//! Its private key stays in its file and in this process. Leaves share a separate key, expire 5 days after minting and are cached in
//! memory only. A leaf is minted for the host that the CONNECT named, never for a name from the
//! ClientHello.

mod accept;
mod authority;
mod bundle;
mod error;
mod files;
mod leaves;
mod minting;
mod names;
mod rotation;

pub use accept::{AcceptError, Inside, Prefixed, accept};
pub use authority::{CaSource, CertificateAuthority, Description};
pub use bundle::{bundle_text, write_bundle};
pub use error::CaError;
pub use leaves::Leaves;
pub use minting::LeafError;
pub use names::CaNames;
pub use rotation::CaRotation;
