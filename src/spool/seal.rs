//! Encryption of stored requests and responses with ChaCha20-Poly1305 (RFC 8439), under keys outside
//! the store.
//!
//! Each sealed content has a [`SealLabel`]: its kind, the id of its item or buffer, and its
//! destination. HKDF-SHA256 (RFC 5869) derives a key of its own for each label, and the label is the
//! associated data. So sealed content opens only for the item and the destination that it was
//! sealed for.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf;

use crate::random::Random;

/// Version of the sealed forms. A later version gets another number, so that both can be read.
const VERSION: u8 = 2;
/// Number of bytes in the id of a key.
const KEY_ID: usize = 8;
/// Bytes behind the ciphertext and its tag: the nonce, the key's id and the version.
const TRAILER: usize = NONCE_LEN + KEY_ID + 1;

/// Least number of bytes of a key.
pub const KEY_BYTES_MIN: usize = 32;

/// Purpose of sealed content, which is authenticated together with it.
#[derive(Debug, Clone, Copy)]
pub struct SealLabel<'a> {
    /// Kind of the content, such as `body`.
    pub kind: &'static str,
    /// Id of the item or buffer.
    pub id: &'a str,
    /// Destination of the request, as `scheme://host:port`.
    pub destination: &'a str,
}

impl SealLabel<'_> {
    /// Returns the associated data: the version, and each part after its length.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        for part in [self.kind, self.id, self.destination] {
            bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
            bytes.extend_from_slice(part.as_bytes());
        }
        bytes
    }
}

/// Secret from which the keys of all labels are derived.
struct SealKey {
    id: [u8; KEY_ID],
    secret: hkdf::Prk,
}

/// Set of keys that seals content with the newest key and opens it with any of them.
pub struct Sealer {
    keys: Vec<SealKey>,
    random: Random,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.key_ids()).finish()
    }
}

/// Error while content is sealed or opened. It names no secret value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// A field holds a secret and no key is configured. The value is the field's name.
    #[error(
        "header field `{0}` cannot be stored: it holds a secret and there is no key to seal it; set `spool.key`, or let the target set the field (`set_headers`)"
    )]
    NoKey(String),
    /// No configured key has the id of the key that sealed the content.
    #[error(
        "the sealed content cannot be opened: no key in `spool.key` or `spool.old_keys` fits; add the key that sealed it to `spool.old_keys`"
    )]
    OtherKey,
    /// The content is damaged, or was sealed for another item or destination.
    #[error(
        "the sealed content cannot be opened: it is damaged, or was sealed for another item or destination; push it again"
    )]
    OtherLabel,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Sealer {
    /// Creates a sealer from keys as text, the newest first. The configuration makes sure that each
    /// has at least [`KEY_BYTES_MIN`] bytes.
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a str>, random: Random) -> Self {
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"outpace spool");
        let keys = keys.into_iter().filter_map(|text| {
            let secret = salt.extract(text.trim().as_bytes());
            let mut whole = [0; 32];
            let derived = secret.expand(&[b"key id"], hkdf::HKDF_SHA256);
            derived.ok()?.fill(&mut whole).ok()?;
            let mut id = [0; KEY_ID];
            id.copy_from_slice(&whole[..KEY_ID]);
            Some(SealKey { id, secret })
        });
        Self {
            keys: keys.collect(),
            random,
        }
    }

    /// Returns true if there is a key, so that content can be sealed.
    pub const fn has_key(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Returns the ids of all keys with their version, in the form with which sealed text begins.
    pub fn key_ids(&self) -> Vec<String> {
        let ids = self.keys.iter().map(|key| hex(&key.id));
        ids.map(|id| format!("{VERSION}.{id}")).collect()
    }

    /// Returns the content sealed with the newest key, or `None` without a key.
    pub fn seal(&self, label: &SealLabel<'_>, content: Bytes) -> Option<Bytes> {
        let newest = self.keys.first()?;
        let data = label.bytes();
        let mut nonce = [0; NONCE_LEN];
        nonce[..8].copy_from_slice(&self.random.bits().to_le_bytes());
        nonce[8..].copy_from_slice(&self.random.bits().to_le_bytes()[..4]);
        // Content that nothing else refers to is encrypted in place.
        let mut sealed = content.try_into_mut().unwrap_or_else(|shared| {
            let mut copy = BytesMut::with_capacity(shared.len() + TRAILER + 16);
            copy.extend_from_slice(&shared);
            copy
        });
        let key = newest.derive(&data)?;
        let once = Nonce::assume_unique_for_key(nonce);
        key.seal_in_place_append_tag(once, Aad::from(&data), &mut sealed)
            .ok()?;
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(&newest.id);
        sealed.extend_from_slice(&[VERSION]);
        Some(sealed.freeze())
    }

    /// Returns the content that [`seal`](Self::seal) sealed for an equal label.
    ///
    /// # Errors
    /// [`SealError::OtherKey`] if no key has the id in the sealed content.
    /// [`SealError::OtherLabel`] if the content is damaged or has another label.
    pub fn open(&self, label: &SealLabel<'_>, sealed: Bytes) -> Result<Bytes, SealError> {
        let mut sealed = sealed.try_into_mut().unwrap_or_else(BytesMut::from);
        let end = sealed.len().checked_sub(TRAILER);
        let trailer = sealed.split_off(end.ok_or(SealError::OtherLabel)?);
        let (nonce, rest) = trailer.split_at(NONCE_LEN);
        let (id, version) = rest.split_at(KEY_ID);
        if version != [VERSION] {
            return Err(SealError::OtherKey);
        }
        let mut keys = self.keys.iter();
        let known = keys.find(|key| key.id == id).ok_or(SealError::OtherKey)?;
        let data = label.bytes();
        let opened = known.derive(&data).and_then(|key| {
            let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
            let opened = key.open_in_place(nonce, Aad::from(&data), &mut sealed);
            opened.ok().map(|opened| opened.len())
        });
        sealed.truncate(opened.ok_or(SealError::OtherLabel)?);
        Ok(sealed.freeze())
    }

    /// Returns the content sealed as text: the version, the key's id and base64, with dots between
    /// them.
    pub fn seal_text(&self, label: &SealLabel<'_>, content: Vec<u8>) -> Option<String> {
        let id = self.key_ids().into_iter().next()?;
        let sealed = self.seal(label, content.into())?;
        Some(format!("{id}.{}", BASE64.encode(sealed)))
    }

    /// Returns the content that [`seal_text`](Self::seal_text) sealed for an equal label.
    ///
    /// # Errors
    /// The same as [`open`](Self::open). Text of another form or version counts as text of another
    /// key.
    pub fn open_text(&self, label: &SealLabel<'_>, text: &str) -> Result<Bytes, SealError> {
        let parts = text.rsplit_once('.');
        let (id, sealed) = parts.ok_or(SealError::OtherKey)?;
        if !self.key_ids().iter().any(|known| known == id) {
            return Err(SealError::OtherKey);
        }
        let sealed = BASE64.decode(sealed);
        self.open(
            label,
            sealed.map_err(|_cause| SealError::OtherLabel)?.into(),
        )
    }
}

impl SealKey {
    /// Derives the key of one label, so that random nonces never repeat under one key.
    fn derive(&self, label: &[u8]) -> Option<LessSafeKey> {
        let info = [&b"seal"[..], label];
        let derived = self.secret.expand(&info, &CHACHA20_POLY1305).ok()?;
        Some(LessSafeKey::new(UnboundKey::from(derived)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "an old key of at least 32 bytes, for tests";
    const NEW: &str = "a new key of at least 32 bytes, for tests";

    fn label<'a>(id: &'a str, destination: &'a str) -> SealLabel<'a> {
        SealLabel {
            kind: "request",
            id,
            destination,
        }
    }

    #[test]
    fn p10_closed_sealed_content_opens_only_for_its_item_its_destination_and_its_key() {
        let ours = label("i1", "https://a.test:443");
        let old = Sealer::new([OLD], Random::seeded(1));
        let rotated = Sealer::new([NEW, OLD], Random::seeded(2));
        let other = Sealer::new([NEW], Random::seeded(3));
        let text = old.seal_text(&ours, b"s3cret".to_vec()).unwrap();
        assert!(text.starts_with("2.") && !text.contains("s3cret"), "{text}");
        assert_eq!(rotated.open_text(&ours, &text).unwrap(), "s3cret");
        assert_eq!(other.open_text(&ours, &text), Err(SealError::OtherKey));
        for (id, destination) in [
            ("i2", "https://a.test:443"),
            ("i1", "http://a.test:443"),
            ("i1", "https://b.test:443"),
            ("i1", "https://a.test:8443"),
            ("i1h", "ttps://a.test:443"),
        ] {
            let opened = old.open_text(&label(id, destination), &text);
            assert_eq!(opened, Err(SealError::OtherLabel), "{id} {destination}");
        }
        let body = SealLabel {
            kind: "body",
            ..ours
        };
        assert_eq!(old.open_text(&body, &text), Err(SealError::OtherLabel));
    }

    #[test]
    fn damaged_or_foreign_content_is_an_error() {
        let ours = label("i1", "https://a.test:443");
        let sealer = Sealer::new([NEW], Random::seeded(1));
        for content in ["", "x", &"long ".repeat(1000)] {
            let sealed = sealer.seal(&ours, content.to_owned().into()).unwrap();
            assert_eq!(sealer.open(&ours, sealed.clone()).unwrap(), content);
            for place in [0, content.len(), sealed.len() - TRAILER] {
                let mut damaged = sealed.to_vec();
                damaged[place] ^= 1;
                let opened = sealer.open(&ours, damaged.into());
                assert_eq!(opened, Err(SealError::OtherLabel), "{place}");
            }
            let mut later = sealed.to_vec();
            later.pop();
            later.push(VERSION + 1);
            assert_eq!(sealer.open(&ours, later.into()), Err(SealError::OtherKey));
        }
        for short in ["", "x", "0123456789012345678"] {
            assert!(sealer.open(&ours, short.into()).is_err(), "{short}");
        }
        for text in ["", "8d0b3c77:AAAA", "3.0011223344556677.AAAA", "2..AAAA"] {
            let opened = sealer.open_text(&ours, text);
            assert_eq!(opened, Err(SealError::OtherKey), "{text}");
        }
    }

    #[test]
    fn without_a_key_nothing_is_sealed() {
        let none = Sealer::new([], Random::seeded(1));
        let ours = label("i", "https://a.test:443");
        assert!(!none.has_key() && none.seal(&ours, "x".into()).is_none());
        assert!(none.seal_text(&ours, Vec::new()).is_none());
        let sealed = Sealer::new([NEW], Random::seeded(1)).seal(&ours, "x".into());
        assert_eq!(none.open(&ours, sealed.unwrap()), Err(SealError::OtherKey));
    }
}
