//! Encryption of stored secrets. Header fields that authenticate are sealed with ChaCha20-Poly1305
//! (RFC 8439) under a key outside the store. The id of their item or buffer is part of the
//! authenticated data.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest;

use crate::random::Random;

/// Names and values of header fields, in their order.
type Fields = Vec<(String, String)>;

/// Set of keys that encrypts header fields with the newest key and decrypts with any of them.
pub struct Sealer {
    keys: Vec<(String, LessSafeKey)>,
    random: Random,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = self.keys.iter().map(|(name, _)| name);
        f.debug_list().entries(names).finish()
    }
}

/// Error while secrets are sealed or opened. It names no secret value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// A field holds a secret and no key is configured. The value is the field's name.
    #[error(
        "header field `{0}` cannot be stored: it holds a secret and there is no key to seal it; set `spool.key`, or let the target set the field (`set_headers`)"
    )]
    NoKey(String),
    /// No configured key opens the sealed fields, or they do not belong to this id.
    #[error(
        "the sealed fields cannot be opened: no key in `spool.key` or `spool.old_keys` fits; add the key that sealed them to `spool.old_keys`"
    )]
    OtherKey,
}

/// Returns true if the name of a header field indicates that its value is a secret.
pub fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    matches!(
        name.as_str(),
        "authorization" | "cookie" | "x-api-key" | "api-key" | "x-amz-security-token"
    ) || ["-token", "-secret", "-key", "_token", "_secret"]
        .iter()
        .any(|end| name.ends_with(end) && name != "idempotency-key")
}

impl Sealer {
    /// Creates a sealer from keys as text, the newest first. Each text is hashed with SHA-256, so
    /// it should be at least as random as the secrets that it protects.
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a str>, random: Random) -> Self {
        let keys = keys.into_iter().filter_map(|text| {
            let key = digest::digest(&digest::SHA256, text.as_bytes());
            let name = digest::digest(&digest::SHA256, key.as_ref());
            let name = name.as_ref().iter().take(4);
            let name = name.map(|byte| format!("{byte:02x}")).collect();
            let key = UnboundKey::new(&CHACHA20_POLY1305, key.as_ref()).ok()?;
            Some((name, LessSafeKey::new(key)))
        });
        Self {
            keys: keys.collect(),
            random,
        }
    }

    /// Moves the secret fields out of `headers` and returns them as sealed text, bound to `id`.
    /// Returns `None` if no field is secret.
    ///
    /// # Errors
    /// [`SealError::NoKey`] if a field is secret and no key is configured. [`SealError::OtherKey`]
    /// if the encryption fails.
    pub fn seal(&self, id: &str, headers: &mut Fields) -> Result<Option<String>, SealError> {
        let (secret, open): (Vec<_>, Vec<_>) = std::mem::take(headers)
            .into_iter()
            .partition(|(name, _)| is_secret(name));
        *headers = open;
        let Some((first, _)) = secret.first() else {
            return Ok(None);
        };
        let Some((name, key)) = self.keys.first() else {
            return Err(SealError::NoKey(first.clone()));
        };
        let mut nonce = [0; NONCE_LEN];
        nonce[..8].copy_from_slice(&self.random.bits().to_le_bytes());
        nonce[8..].copy_from_slice(&self.random.bits().to_le_bytes()[..4]);
        let mut text = serde_json::to_vec(&secret).unwrap_or_default();
        let nonce_value = Nonce::assume_unique_for_key(nonce);
        key.seal_in_place_append_tag(nonce_value, Aad::from(id.as_bytes()), &mut text)
            .map_err(|_cause| SealError::OtherKey)?;
        let sealed = [&nonce[..], &text].concat();
        Ok(Some(format!("{name}:{}", BASE64.encode(sealed))))
    }

    /// Returns the fields that [`seal`](Self::seal) moved into the sealed text for the same `id`.
    /// Without sealed text the result is empty.
    ///
    /// # Errors
    /// [`SealError::OtherKey`] if no configured key opens the text, or if the text is damaged or
    /// bound to another id.
    pub fn open(&self, id: &str, sealed: Option<&str>) -> Result<Fields, SealError> {
        let Some(sealed) = sealed else {
            return Ok(Vec::new());
        };
        let opened = sealed.split_once(':').and_then(|(name, text)| {
            let (_, key) = self.keys.iter().find(|(known, _)| known == name)?;
            let mut sealed = BASE64.decode(text).ok()?;
            let (nonce, text) = sealed.split_at_mut_checked(NONCE_LEN)?;
            let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
            let text = key.open_in_place(nonce, Aad::from(id.as_bytes()), text);
            serde_json::from_slice(text.ok()?).ok()
        });
        opened.ok_or(SealError::OtherKey)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields() -> Fields {
        let field = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        vec![
            field("Authorization", "Bearer s3cret"),
            field("accept", "*/*"),
        ]
    }

    #[test]
    fn p10_closed_a_secret_is_sealed_for_its_item_and_a_newer_key_opens_the_older_box() {
        let mut open = fields();
        let old = Sealer::new(["old"], Random::seeded(1));
        let sealed = old.seal("i1", &mut open).unwrap().unwrap();
        assert!(!sealed.contains("s3cret") && open == fields()[1..]);
        let rotated = Sealer::new(["new", "old"], Random::seeded(2));
        assert_eq!(rotated.open("i1", Some(&sealed)).unwrap(), fields()[..1]);
        assert_eq!(rotated.open("i2", Some(&sealed)), Err(SealError::OtherKey));
        let other = Sealer::new(["new"], Random::seeded(3));
        assert_eq!(other.open("i1", Some(&sealed)), Err(SealError::OtherKey));
    }

    #[test]
    fn p10_closed_without_a_key_a_secret_is_not_kept() {
        let none = Sealer::new([], Random::seeded(1));
        let refused = none.seal("i", &mut fields());
        assert_eq!(refused, Err(SealError::NoKey("Authorization".to_owned())));
        let mut open = fields().split_off(1);
        assert_eq!(none.seal("i", &mut open), Ok(None));
        assert_eq!(none.open("i", None), Ok(Vec::new()));
    }
}
