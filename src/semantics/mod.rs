//! The rules of the RFCs as pure functions between hyper's parser and hyper's encoder. A plain
//! hyper forwarder passes on much that it must not. Everything that makes a message safe to forward
//! is in this folder. The functions do no I/O, so a test can cover each rule.

mod authority;
mod browser;
mod credentials;
mod date;
mod fields;
mod framing;
mod max_forwards;
mod max_wait;
mod prefer;
mod proxy_status;
mod request_target;
mod retry_after;
mod upgrade;
mod via;

pub use authority::Authority;
pub use browser::{
    forbid_sniffing, is_cross_site, is_own_host, isolate_replay, needs_no_preflight,
};
pub use credentials::{bearer_token, is_credential, own_credential, proxy_credentials};
pub use date::date;
pub use fields::{
    CLIENT_TOKEN, HeaderFlags, OUTPACE_ATTEMPTS, OUTPACE_WAITED, REQUEST_TRAILERS, is_reserved,
    join_cookies, strip_request, strip_response, strip_trailers,
};
pub use framing::{Framing, framing, has_doubtful_end, response_framing, without_content};
pub use max_forwards::{count_hop, is_last_hop};
pub use max_wait::{OUTPACE_MAX_WAIT, max_wait};
pub use prefer::{PREFER, PREFERENCE_APPLIED, Preference, preference};
pub use proxy_status::{PROXY_STATUS, made_by_us, received};
pub use request_target::{RequestTarget, classify, path_and_query};
pub use retry_after::{longest_wait, retry_after, wait_in, write_retry_after};
pub use upgrade::{requested_upgrade, switched};
pub use via::{Pseudonym, VIA_LOOP_MAX};

/// The error for a message that must not be forwarded. The text is for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The request-target has the wrong form (RFC 9112 section 3.2).
    #[error("the request-target is malformed: {0}")]
    RequestTarget(&'static str),
    /// `Host` or `:authority` is missing, repeated, invalid or contradictory.
    #[error("the host is malformed: {0}")]
    Host(&'static str),
    /// `Content-Length` or `Transfer-Encoding` cannot be trusted (RFC 9112 section 6).
    #[error("the framing is malformed: {0}")]
    Framing(&'static str),
    /// A field of outpace has a value that cannot be read.
    #[error("the field `{field}` is malformed: {problem}")]
    Field {
        /// Name of the malformed field.
        field: &'static str,
        /// Cause of the error and the correct notation.
        problem: &'static str,
    },
}

/// Returns a map of these fields, in which a name may occur several times.
#[cfg(test)]
fn map(lines: &[(&'static str, &str)]) -> http::HeaderMap {
    let mut map = http::HeaderMap::new();
    for (name, value) in lines {
        map.append(*name, value.parse().unwrap());
    }
    map
}
