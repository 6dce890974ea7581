//! Key of a limit, of one or several parts of the request.

use std::sync::Arc;

use super::key::{digest_of_part, readable};
use super::{KeySecret, RequestView, Source};

/// The parts of a request by which a limit counts separately. Requests that differ in one part have
/// different keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitKey(Vec<Source>);

/// Character between the parts of a key. No part contains it.
const BETWEEN: char = '|';

/// One part of a key, with what was found for a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPart {
    /// Source of the part, in its form in the configuration.
    pub source: String,
    /// Part as it stands in the key. It is a digest if the value may be secret.
    pub text: Arc<str>,
    /// True if `text` is a digest of the value.
    pub is_digest: bool,
    /// True if the request has a value at the source.
    pub is_present: bool,
}

impl From<Source> for LimitKey {
    fn from(source: Source) -> Self {
        Self(vec![source])
    }
}

impl LimitKey {
    /// Creates a key of these parts, or `None` if there are none.
    pub fn of_parts(parts: Vec<Source>) -> Option<Self> {
        (!parts.is_empty()).then_some(Self(parts))
    }

    /// Returns the sources of the parts.
    pub fn sources(&self) -> &[Source] {
        &self.0
    }

    /// Returns true if the limit counts each client separately and nothing else.
    pub fn is_client(&self) -> bool {
        self.0 == [Source::Client]
    }

    /// Returns the key of a request.
    pub(super) fn key(&self, asked: &RequestView<'_>, secret: &KeySecret) -> Arc<str> {
        match &*self.0 {
            [source] => source.key(asked, secret),
            sources => joined(sources.iter().map(|source| part(source.key(asked, secret)))),
        }
    }

    /// Returns the key for values that are known, one for each part. Returns `None` if a value is
    /// missing.
    pub fn key_of(&self, values: &[&str], secret: &KeySecret) -> Option<Arc<str>> {
        match (&*self.0, values) {
            ([source], [value]) => Some(source.key_of(value, secret)),
            (sources, values) if sources.len() == values.len() => {
                let parts = sources.iter().zip(values);
                Some(joined(
                    parts.map(|(source, value)| part(source.key_of(value, secret))),
                ))
            }
            _ => None,
        }
    }

    /// Returns the parts of the key of a request, as `key` joins them.
    pub fn parts(&self, asked: &RequestView<'_>, secret: &KeySecret) -> Vec<KeyPart> {
        let several = self.0.len() > 1;
        let sources = self.0.iter();
        let parts = sources.map(|source| {
            let value = source.plain(asked);
            let key = source.key(asked, secret);
            let text = if several { part(key) } else { key };
            KeyPart {
                source: source.to_string(),
                is_digest: value.as_ref().is_some_and(|value| **value != *text),
                is_present: value.is_some(),
                text,
            }
        });
        parts.collect()
    }
}

/// Writes the sources as in the configuration.
impl std::fmt::Display for LimitKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sources: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&sources.join(" + "))
    }
}

/// Returns a part without the character between parts. A part that contains it becomes its digest.
fn part(key: Arc<str>) -> Arc<str> {
    match key.contains(BETWEEN) {
        true => digest_of_part(&key),
        false => key,
    }
}

/// Joins parts that do not contain the character between them. A key that is too long becomes its
/// digest.
fn joined(parts: impl Iterator<Item = Arc<str>>) -> Arc<str> {
    let mut text = String::new();
    for (index, part) in parts.enumerate() {
        if index > 0 {
            text.push(BETWEEN);
        }
        text.push_str(&part);
    }
    readable(&text.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(parts: &[Source], values: &[&str]) -> Arc<str> {
        let key = LimitKey::of_parts(parts.to_vec()).unwrap();
        key.key_of(values, &KeySecret::new([7; 32])).unwrap()
    }

    proptest! {
        #[test]
        fn p1_pace_parts_of_a_key_cannot_run_into_each_other(
            one in prop::collection::vec("[ab |-]{0,4}|[a-z]{120,129}|\\PC{0,3}", 2),
            other in prop::collection::vec("[ab |-]{0,4}|[a-z]{120,129}|\\PC{0,3}", 2),
        ) {
            let sources = [Source::Client, Source::Host];
            let texts = |values: &[String]| {
                let values: Vec<&str> = values.iter().map(String::as_str).collect();
                key(&sources, &values)
            };
            prop_assert_eq!(one == other, texts(&one) == texts(&other));
            prop_assert!(texts(&one).len() <= crate::bounds::KEY_BYTES);
        }
    }

    #[test]
    fn a_key_of_parts_is_readable_as_far_as_its_parts_are() {
        let parts = [Source::Host, Source::Header(http::header::AUTHORIZATION)];
        let text = key(&parts, &["a.myshopify.com", "Bearer 1"]);
        let (host, digest) = text.split_once('|').unwrap();
        assert_eq!((host, digest.len()), ("a.myshopify.com", 32));
        assert!(!digest.contains("Bearer"));
        let one = LimitKey::from(Source::Host);
        assert_eq!(one.key_of(&[], &KeySecret::new([7; 32])), None);
        assert_eq!(&*key(&[Source::PathSegment(2)], &["shops"]), "shops");
        let long = key(
            &[Source::Client, Source::Path],
            &[&"c".repeat(70), &"/p".repeat(40)],
        );
        assert_eq!(long.len(), 32);
    }
}
