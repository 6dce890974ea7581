//! JSON body of a request, as far as limits and lanes depend on it.

use http::{HeaderMap, header};

use super::Glob;
use crate::json::{JsonEnd, JsonPointers, JsonReader, JsonScalar};

/// The values that a target's rules need from the body of a request. The bytes are pushed in chunks.
///
/// The values of a body that could not be read to its end count as far as they were found, and
/// every pattern matches it. So no request escapes a limit by the size or form of its body.
#[derive(Debug)]
pub struct RequestJson {
    reader: JsonReader,
    /// Result of reading, or `None` while the end of the body is not known.
    end: Option<JsonEnd>,
}

impl RequestJson {
    /// Creates the state before the first byte, for the pointers of a target.
    pub fn new(pointers: JsonPointers) -> Self {
        Self {
            reader: JsonReader::new(pointers),
            end: None,
        }
    }

    /// Reads a complete body, unless its fields say that it is compressed.
    pub fn of_body(pointers: JsonPointers, fields: &HeaderMap, body: &[u8]) -> Self {
        let mut json = Self::new(pointers);
        if is_identity(fields) {
            json.push(body);
            json.finish();
        }
        json
    }

    /// Reads the next bytes of the body.
    pub fn push(&mut self, bytes: &[u8]) {
        self.reader.push(bytes);
    }

    /// Returns true if further bytes cannot change anything.
    pub const fn has_stopped(&self) -> bool {
        self.reader.has_stopped()
    }

    /// Notes that the body has no further bytes.
    pub fn finish(&mut self) {
        self.end = Some(self.reader.finish());
    }

    /// Returns true if the body was read to its end. A body of another form of text, such as a form,
    /// holds no JSON, so it counts as read.
    pub const fn is_read(&self) -> bool {
        matches!(self.end, Some(JsonEnd::Whole | JsonEnd::OtherText))
    }

    /// Returns the last value at a pointer as text, or `None` if it has none.
    pub(super) fn text(&self, pointer: &str) -> Option<&str> {
        let position = self.reader.pointers().position(pointer)?;
        self.reader.last(position)?.text()
    }

    /// Returns the first and the last value at a pointer, which differ only if a name is repeated.
    /// Parsers disagree about such a body, so both count.
    pub(super) fn values(&self, pointer: &str) -> [Option<&JsonScalar>; 2] {
        let position = self.reader.pointers().position(pointer);
        position.map_or([None, None], |position| {
            [self.reader.first(position), self.reader.last(position)]
        })
    }

    /// Returns true if a value at the pointer fits the pattern, or may fit it.
    pub(super) fn matches(&self, pointer: &str, pattern: &Glob) -> bool {
        let values = self.values(pointer);
        !self.is_read()
            || values
                .into_iter()
                .flatten()
                .any(|value| fits(pattern, value))
    }
}

/// Returns true for fields of a body that is not compressed.
pub fn is_identity(fields: &HeaderMap) -> bool {
    let mut codings = fields.get_all(header::CONTENT_ENCODING).iter();
    codings.all(|coding| coding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// Compares a value with a pattern. A value that is too long to be kept fits every pattern, an array
/// or object fits only `*`, and `null` fits none.
fn fits(pattern: &Glob, value: &JsonScalar) -> bool {
    match value {
        JsonScalar::TooLong => true,
        JsonScalar::Container => pattern.text() == "*",
        value => value
            .text()
            .is_some_and(|text| pattern.matches(text.as_bytes())),
    }
}
