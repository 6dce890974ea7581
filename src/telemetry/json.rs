//! One flat JSON object, written without looking for escapes in keys and in the plain strings that
//! nearly all values are: the canonical line is written for every request.

use std::fmt::{Display, Write as _};
use std::time::Duration;

/// Writes members one after the other into a buffer.
#[derive(Debug)]
pub struct JsonObject<'a> {
    into: &'a mut Vec<u8>,
    first: bool,
}

impl<'a> JsonObject<'a> {
    /// Begins an object.
    pub fn begin(into: &'a mut Vec<u8>) -> Self {
        into.push(b'{');
        Self { into, first: true }
    }

    /// Ends it.
    pub fn end(self) {
        self.into.push(b'}');
    }

    fn key(&mut self, key: &'static str) {
        if !std::mem::replace(&mut self.first, false) {
            self.into.push(b',');
        }
        self.into.push(b'"');
        self.into.extend_from_slice(key.as_bytes());
        self.into.extend_from_slice(b"\":");
    }

    /// A string.
    pub fn text(&mut self, key: &'static str, value: &str) -> &mut Self {
        self.key(key);
        if value
            .bytes()
            .all(|byte| (b' '..=b'~').contains(&byte) && byte != b'"' && byte != b'\\')
        {
            self.into.push(b'"');
            self.into.extend_from_slice(value.as_bytes());
            self.into.push(b'"');
        } else {
            // Writing a string to memory does not fail.
            drop(serde_json::to_writer(&mut *self.into, value));
        }
        self
    }

    /// A string, or null.
    pub fn text_or_null(&mut self, key: &'static str, value: Option<&str>) -> &mut Self {
        match value {
            Some(value) => self.text(key, value),
            None => self.shown(key, "null"),
        }
    }

    /// A string, or nothing at all.
    pub fn text_if(&mut self, key: &'static str, value: Option<&str>) -> &mut Self {
        match value {
            Some(value) => self.text(key, value),
            None => self,
        }
    }

    /// What prints as a JSON number, `true`, `false` or `null`.
    pub fn shown(&mut self, key: &'static str, value: impl Display) -> &mut Self {
        self.key(key);
        self.print(format_args!("{value}"));
        self
    }

    /// What prints as a string without anything to escape.
    pub fn quoted(&mut self, key: &'static str, value: impl Display) -> &mut Self {
        self.key(key);
        self.print(format_args!("\"{value}\""));
        self
    }

    /// Milliseconds, to the microsecond.
    pub fn millis(&mut self, key: &'static str, value: Duration) -> &mut Self {
        let micros = value.as_micros();
        self.key(key);
        self.print(format_args!("{}.{:03}", micros / 1000, micros % 1000));
        self
    }

    fn print(&mut self, arguments: std::fmt::Arguments<'_>) {
        struct Bytes<'a>(&'a mut Vec<u8>);
        impl std::fmt::Write for Bytes<'_> {
            fn write_str(&mut self, text: &str) -> std::fmt::Result {
                self.0.extend_from_slice(text.as_bytes());
                Ok(())
            }
        }
        let written = Bytes(self.into).write_fmt(arguments);
        debug_assert!(written.is_ok(), "writing to memory does not fail");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_json_whatever_the_strings() {
        let mut bytes = Vec::new();
        let mut object = JsonObject::begin(&mut bytes);
        object
            .text("plain", "/v1/x?y=1")
            .text("odd", "a \"quote\"\n\\ \u{e9}\u{1b}[31m")
            .text_or_null("none", None)
            .text_if("absent", None)
            .shown("count", 7)
            .quoted("ip", "127.0.0.1")
            .millis("took", Duration::from_micros(1_002_030));
        object.end();
        let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(value["odd"], "a \"quote\"\n\\ \u{e9}\u{1b}[31m");
        assert_eq!(
            (&value["plain"], &value["count"]),
            (&"/v1/x?y=1".into(), &7.into())
        );
        assert!(value["none"].is_null() && value.get("absent").is_none());
        assert!(bytes.ends_with(b"\"took\":1002.030}"));
    }
}
