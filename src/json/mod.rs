//! Streaming reader of JSON: the values at some JSON pointers (RFC 6901), in bounded memory.
//!
//! A body of any length is pushed in chunks of any size, and the bytes of strings at no pointer are
//! skipped. The parsers of other crates keep each string whole (`actson`), need each token in one
//! buffer (`json-event-parser`) or pull from a blocking source (`struson`).

mod pointer_set;
mod reader;

use std::sync::Arc;

pub use reader::{JsonEnd, JsonReader};

use crate::bounds::{JSON_POINTERS_MAX, JSON_VALUE_BYTES};

/// A list of JSON pointers (RFC 6901) to read together. Clones share one list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JsonPointers(Arc<[Pointer]>);

/// One pointer, with its text and its unescaped segments.
#[derive(Debug, PartialEq, Eq)]
struct Pointer {
    text: Box<str>,
    segments: Vec<Box<str>>,
}

impl JsonPointers {
    /// Parses the pointers and drops repeated ones. Returns `None` if one is no JSON pointer, has a
    /// segment of more than [`JSON_VALUE_BYTES`], or there are more than [`JSON_POINTERS_MAX`].
    pub fn new<'a>(pointers: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut list: Vec<Pointer> = Vec::new();
        for text in pointers {
            if list.iter().any(|known| *known.text == *text) {
                continue;
            }
            let segments = segments_of(text)?;
            let text = text.into();
            list.push(Pointer { text, segments });
        }
        (list.len() <= JSON_POINTERS_MAX).then(|| Self(list.into()))
    }

    /// Returns true if this text is a JSON pointer that the reader can find.
    pub fn is_pointer(text: &str) -> bool {
        segments_of(text).is_some()
    }

    /// Returns the number of pointers.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns true if the list has no pointers.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the position of a pointer in the list, as it was written.
    pub fn position(&self, pointer: &str) -> Option<usize> {
        self.0.iter().position(|known| *known.text == *pointer)
    }
}

/// Returns the unescaped segments of a pointer, or `None` if it is none.
fn segments_of(text: &str) -> Option<Vec<Box<str>>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    let segments = text.strip_prefix('/')?.split('/').map(|segment| {
        // A tilde that begins no escape is an error (RFC 6901 section 3).
        let mut after_tilde = segment.split('~').skip(1);
        let valid = after_tilde.all(|rest| rest.starts_with(['0', '1']));
        let unescaped = segment.replace("~1", "/").replace("~0", "~");
        (valid && unescaped.len() <= JSON_VALUE_BYTES).then(|| unescaped.into())
    });
    segments.collect()
}

/// A value in a JSON document, as far as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JsonScalar {
    /// Unescaped text of a string.
    String(Box<str>),
    /// Number, in the spelling of the document.
    Number(Box<str>),
    /// The literal `true` or `false`.
    Bool(bool),
    /// The literal `null`, which counts as no value.
    Null,
    /// Array or object, whose content is not kept.
    Container,
    /// String or number of more than [`JSON_VALUE_BYTES`], which is not kept.
    TooLong,
}

impl JsonScalar {
    /// Returns a string, number or boolean as text. All other values have none.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::String(text) | Self::Number(text) => Some(text),
            Self::Bool(true) => Some("true"),
            Self::Bool(false) => Some("false"),
            Self::Null | Self::Container | Self::TooLong => None,
        }
    }
}

#[cfg(test)]
mod tests;
