//! Tokens that prove who may use a listener, and access that a reload can revoke.

use std::sync::Arc;

use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use subtle::ConstantTimeEq as _;

use super::Secret;
use crate::shutdown::{Cancellation, Cancelled};

/// Bearer token of a client or an operator. It is compared by its SHA-256 digest, so the time of a
/// comparison depends neither on the token nor on its length.
#[derive(Debug, Clone)]
pub struct Token {
    digest: [u8; SHA256_OUTPUT_LEN],
    /// Text of the token, or `None` if the configuration holds only its digest.
    text: Option<Secret>,
}

impl Token {
    /// Creates a token from its text.
    pub fn new(text: Secret) -> Self {
        Self {
            digest: sha256(text.reveal()),
            text: Some(text),
        }
    }

    /// Creates a token of which only the digest is known, from 64 hexadecimal digits. Returns
    /// `None` for any other text.
    pub fn of_digest(hex: &str) -> Option<Self> {
        let mut digest = [0; SHA256_OUTPUT_LEN];
        if hex.len() != 2 * digest.len() || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        for (byte, digits) in digest.iter_mut().zip(hex.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).ok()?;
            *byte = u8::from_str_radix(digits, 16).ok()?;
        }
        Some(Self { digest, text: None })
    }

    /// Returns true if `offered` is the token.
    pub fn matches(&self, offered: &str) -> bool {
        self.digest.ct_eq(&sha256(offered)).into()
    }

    /// Returns the text of the token, or `None` if only its digest is known. Callers must not log
    /// it.
    pub fn reveal(&self) -> Option<&str> {
        self.text.as_ref().map(Secret::reveal)
    }
}

/// Two tokens are equal if their digests are, whatever the configuration says about them.
impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        self.digest.ct_eq(&other.digest).into()
    }
}

impl Eq for Token {}

fn sha256(text: &str) -> [u8; SHA256_OUTPUT_LEN] {
    let mut bytes = [0; SHA256_OUTPUT_LEN];
    bytes.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
    bytes
}

/// Access of a client, from its authentication until a reload revokes it. Clones share it. The
/// default is access that is never revoked.
#[derive(Debug, Clone, Default)]
pub struct Access(Option<Arc<Cancellation>>);

impl Access {
    /// Creates access that can be revoked.
    pub fn new() -> Self {
        Self(Some(Arc::default()))
    }

    /// Revokes the access. Connections, tunnels and held requests that have it end.
    pub fn revoke(&self) {
        if let Some(access) = &self.0 {
            access.cancel();
        }
    }

    /// Returns true if the access was revoked.
    pub fn is_revoked(&self) -> bool {
        let access = self.0.as_ref();
        access.is_some_and(|access| access.is_cancelled())
    }

    /// Returns true if both are clones of one access.
    pub fn is(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(one), Some(two)) => Arc::ptr_eq(one, two),
            (one, two) => one.is_none() && two.is_none(),
        }
    }

    /// Returns a future that completes when the access is revoked. A repeated poll by the same task
    /// costs one atomic load.
    pub fn revocation(&self) -> Option<Cancelled> {
        self.0.as_ref().map(|access| access.cancelled())
    }

    /// Waits until the access is revoked.
    pub async fn revoked(&self) {
        match self.revocation() {
            Some(revoked) => revoked.await,
            None => std::future::pending().await,
        }
    }
}

/// Access is a state and no part of the configuration, so all of it is equal.
impl PartialEq for Access {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Access {}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "0123456789abcdef";

    #[test]
    fn a_token_is_compared_but_never_printed() {
        let token = Token::new(Secret::new(TEXT));
        assert!(token.matches(TEXT));
        for wrong in [
            "",
            "0123456789abcde",
            "0123456789abcdef0",
            "0123456789abcdeF",
        ] {
            assert!(!token.matches(wrong), "{wrong}");
        }
        assert_eq!(token.reveal(), Some(TEXT));
        assert!(!format!("{:?}", token.text).contains(TEXT));
    }

    #[test]
    fn a_digest_stands_for_its_token() {
        let hex: String = sha256(TEXT)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        for hex in [hex.clone(), hex.to_uppercase()] {
            let token = Token::of_digest(&hex).unwrap();
            assert!(token.matches(TEXT) && !token.matches(&hex));
            assert_eq!(
                (token.reveal(), &token),
                (None, &Token::new(Secret::new(TEXT)))
            );
        }
        for wrong in [
            "",
            "abc",
            hex.get(1..).unwrap(),
            &format!("{hex}0"),
            &format!("+{}", hex.get(1..).unwrap()),
        ] {
            assert!(Token::of_digest(wrong).is_none(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn access_ends_for_all_clones_and_for_no_other() {
        let (one, other) = (Access::new(), Access::new());
        let clone = one.clone();
        assert!(clone.is(&one) && !one.is(&other) && Access::default().is(&Access::default()));
        one.revoke();
        Access::default().revoke();
        clone.revoked().await;
        assert!(clone.is_revoked() && !other.is_revoked());
    }
}
