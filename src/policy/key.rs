//! Keys of schedules. A key is text of a closed alphabet, so that every store, log and query can
//! hold it, whatever a client sends.

use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;

use ring::digest::{SHA256, digest};
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::bounds::KEY_BYTES;

/// The 32 random bytes with which the digests of secret keys are made. All replicas of one ledger
/// use the same ones, and clones share them.
#[derive(Clone)]
pub struct KeySecret(Arc<SecretParts>);

struct SecretParts {
    bytes: [u8; KeySecret::BYTES],
    key: hmac::Key,
}

impl KeySecret {
    /// Number of bytes of a key secret.
    pub const BYTES: usize = 32;

    /// Creates a secret from these bytes.
    pub fn new(bytes: [u8; Self::BYTES]) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &bytes);
        Self(Arc::new(SecretParts { bytes, key }))
    }

    /// Creates a secret of random bytes, or `None` if the system yields none.
    pub fn random() -> Option<Self> {
        let mut bytes = [0; Self::BYTES];
        SystemRandom::new().fill(&mut bytes).ok()?;
        Some(Self::new(bytes))
    }

    /// Parses the form that [`Self::to_hex`] writes. Returns `None` for any other text.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; Self::BYTES];
        if text.len() != 2 * Self::BYTES || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
        }
        Some(Self::new(bytes))
    }

    /// Returns the bytes as 64 hexadecimal digits.
    pub fn to_hex(&self) -> String {
        hex(&self.0.bytes)
    }

    /// Returns the key for a value that may be secret: the first 16 bytes of its HMAC-SHA-256.
    pub fn digest(&self, text: &str) -> Arc<str> {
        let tag = hmac::sign(&self.0.key, text.as_bytes());
        short(tag.as_ref()).into()
    }
}

impl PartialEq for KeySecret {
    fn eq(&self, other: &Self) -> bool {
        self.0.bytes == other.0.bytes
    }
}

impl fmt::Debug for KeySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeySecret(..)")
    }
}

/// Returns the key for a value that is no secret. A value within the alphabet and [`KEY_BYTES`] is
/// its own key, and any other value is replaced by the first 16 bytes of its SHA-256.
pub(super) fn readable(text: &Arc<str>) -> Arc<str> {
    match is_key(text) {
        true => Arc::clone(text),
        false => short(digest(&SHA256, text.as_bytes()).as_ref()).into(),
    }
}

/// Returns the digest of a value in a key of several parts. No value that is a key by itself or by its
/// own digest has this one, because the byte in front is no UTF-8.
pub(super) fn digest_of_part(text: &str) -> Arc<str> {
    let bytes = [b"\xff", text.as_bytes()].concat();
    short(digest(&SHA256, &bytes).as_ref()).into()
}

/// Returns true if a text may be a key as it is: 1 to [`KEY_BYTES`] visible ASCII characters other
/// than quotation marks, the apostrophe and the backslash.
fn is_key(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\'' | b'\\');
    (1..=KEY_BYTES).contains(&text.len()) && text.bytes().all(allowed)
}

fn short(digest: &[u8]) -> String {
    hex(digest.get(..16).unwrap_or(digest))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        // Writing to a string cannot fail.
        write!(hex, "{byte:02x}").unwrap_or_default();
        hex
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::Source;

    fn sources() -> [Source; 5] {
        [
            Source::Client,
            Source::Path,
            Source::Header(http::header::AUTHORIZATION),
            Source::Query("user".into()),
            Source::Json("/user".into()),
        ]
    }

    proptest! {
        #[test]
        fn p10_closed_every_key_is_of_the_alphabet(text in "\\PC*|.*|[ -~]{120,140}|[\u{0}-\u{1f}\"'\\\\]{0,9}") {
            let secret = KeySecret::new([7; 32]);
            for source in sources() {
                let key = source.key_of(&text, &secret);
                prop_assert!(is_key(&key), "{source:?}: {key:?}");
                prop_assert_eq!(&key, &source.key_of(&text, &secret));
            }
        }
    }

    /// Reaches the bound `KEY_BYTES`.
    #[test]
    fn p10_closed_hostile_values_become_digests() {
        let secret = KeySecret::new([7; 32]);
        let long = "x".repeat(1024 * 1024);
        let edge = "y".repeat(KEY_BYTES + 1);
        for text in [
            "",
            "\0",
            "a b",
            "a\"b",
            "a'b",
            "a\\b",
            "\u{1f600}",
            "ü",
            &long,
            &edge,
        ] {
            let key = Source::Client.key_of(text, &secret);
            assert_eq!(key.len(), 32, "{key}");
        }
        let kept = "y".repeat(KEY_BYTES);
        assert_eq!(&*Source::Client.key_of(&kept, &secret), kept);
        assert_eq!(&*Source::Client.key_of("a-B_9~", &secret), "a-B_9~");
    }

    #[test]
    fn p10_closed_a_secret_key_depends_on_the_secret_of_the_ledger() {
        let [one, other] = [1, 2].map(|byte| KeySecret::new([byte; 32]));
        for source in &sources()[2..] {
            assert_ne!(source.key_of("sk-1", &one), source.key_of("sk-1", &other));
            let again = KeySecret::from_hex(&one.to_hex()).unwrap();
            assert_eq!(source.key_of("sk-1", &one), source.key_of("sk-1", &again));
        }
        for source in &sources()[..2] {
            assert_eq!(source.key_of("/a", &one), source.key_of("/a", &other));
        }
        assert_eq!(KeySecret::from_hex(&"g".repeat(64)), None);
        assert_eq!(KeySecret::from_hex("12"), None);
        assert_eq!(KeySecret::from_hex(&format!("{}é", "a".repeat(62))), None);
    }
}
