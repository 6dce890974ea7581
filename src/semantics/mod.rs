//! What the RFCs say, as pure functions between hyper's parser and hyper's encoder. A naive hyper
//! forwarder passes on much that it must not (measured); everything that makes a message safe to
//! forward is here, without I/O, so that every rule is a test.

mod authority;
mod credentials;
mod fields;
mod framing;
mod max_wait;
mod prefer;
mod proxy_status;
mod request_target;
mod retry_after;
mod upgrade;
mod via;

pub use authority::Authority;
pub use credentials::proxy_credentials;
pub use fields::{
    CLIENT_TOKEN, HeaderFlags, OUTPACE_ATTEMPTS, OUTPACE_WAITED, REQUEST_TRAILERS, join_cookies,
    may_be_trailer, strip_request, strip_response,
};
pub use framing::{Framing, framing};
pub use max_wait::{OUTPACE_MAX_WAIT, max_wait};
pub use prefer::{PREFER, PREFERENCE_APPLIED, Preference, preference};
pub use proxy_status::{PROXY_STATUS, made_by_us, received};
pub use request_target::{RequestTarget, classify};
pub use retry_after::{retry_after, write_retry_after};
pub use upgrade::{Upgrade, requested_upgrade, switched};
pub use via::{Pseudonym, VIA_LOOP_MAX};

/// A message that must not be forwarded, and why; the text is for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The request-target has the wrong form (RFC 9112 section 3.2).
    #[error("the request-target is malformed: {0}")]
    RequestTarget(&'static str),
    /// `Host` or `:authority` is missing, repeated, invalid or contradictory.
    #[error("the host is malformed: {0}")]
    Host(&'static str),
    /// `Content-Length` or `Transfer-Encoding` cannot be trusted.
    #[error("the framing is malformed: {0}")]
    Framing(&'static str),
    /// A field of ours has a value that we cannot read.
    #[error("the field `{field}` is malformed: {problem}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
}
