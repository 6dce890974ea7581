//! Connection of a client, as far as connections to origins may belong to it.
//!
//! Some authentication schemes authenticate a connection instead of a request (RFC 4559). Another
//! client on that connection would act with the rights of the first one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use http::HeaderMap;
use http::header::{AUTHORIZATION, HeaderName, WWW_AUTHENTICATE};

static NEXT: AtomicU64 = AtomicU64::new(0);

/// Connection of one client, by which connections to origins are kept apart.
#[derive(Debug)]
pub struct ClientLink {
    number: u64,
    is_bound: AtomicBool,
}

impl Default for ClientLink {
    fn default() -> Self {
        Self {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            is_bound: AtomicBool::new(false),
        }
    }
}

impl ClientLink {
    /// Returns the number of the client connection if its requests need connections of their own.
    /// That is so from the first request that authenticates a connection.
    pub fn owner(&self, request: &HeaderMap) -> Option<u64> {
        if binds(request, AUTHORIZATION) {
            return Some(self.bind());
        }
        let is_bound = self.is_bound.load(Ordering::Relaxed);
        is_bound.then_some(self.number)
    }

    /// Returns the number of the client connection if the response authenticates the connection on
    /// which it arrived.
    pub(super) fn owner_by(&self, response: &HeaderMap) -> Option<u64> {
        binds(response, WWW_AUTHENTICATE).then(|| self.bind())
    }

    fn bind(&self) -> u64 {
        self.is_bound.store(true, Ordering::Relaxed);
        self.number
    }
}

/// Returns true if a line of the field names a scheme that authenticates connections.
fn binds(headers: &HeaderMap, field: HeaderName) -> bool {
    let lines = headers.get_all(field).into_iter();
    let mut challenges = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    challenges.any(|challenge| {
        let mut words = challenge.trim_ascii().split(|byte| *byte == b' ');
        let scheme = words.next().unwrap_or_default();
        let known: [&[u8]; 3] = [b"ntlm", b"negotiate", b"kerberos"];
        known.iter().any(|name| scheme.eq_ignore_ascii_case(name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn schemes_that_authenticate_connections_are_found_among_others() {
        let finds = |line: &'static str| {
            let line = HeaderValue::from_static(line);
            binds(
                &[(WWW_AUTHENTICATE, line)].into_iter().collect(),
                WWW_AUTHENTICATE,
            )
        };
        for line in [
            "NTLM",
            "negotiate",
            "Negotiate YII=",
            "Basic realm=\"a\", NTLM",
            "ntlm TlRM",
        ] {
            assert!(finds(line), "{line}");
        }
        for line in [
            "",
            "Basic realm=\"NTLM\"",
            "Bearer negotiate",
            "NTLMv9",
            "Digest a=b, c=d",
        ] {
            assert!(!finds(line), "{line}");
        }
    }

    #[test]
    fn a_client_connection_is_bound_from_its_first_authentication() {
        let (one, two) = (ClientLink::default(), ClientLink::default());
        let nothing = HeaderMap::new();
        let ntlm = HeaderValue::from_static("NTLM TlRMTVNTUAAB");
        let request = [(AUTHORIZATION, ntlm)].into_iter().collect();
        assert_eq!(one.owner(&nothing), None);
        let owner = one.owner(&request);
        assert!(owner.is_some());
        assert_eq!(one.owner(&nothing), owner);
        assert_eq!(two.owner(&nothing), None);
        assert_ne!(two.owner(&request), owner);
    }
}
