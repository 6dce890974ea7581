//! Writer of one flat JSON object per line. Names and most strings are copied without escapes,
//! because every request writes a canonical line.

use std::time::{Duration, SystemTime};

use itoa::Integer;

/// Name of a member with its punctuation. The macro [`key!`](crate::key) builds it at compile time.
#[derive(Debug, Clone, Copy)]
pub struct Key(pub &'static str);

/// Builds the name of a [`JsonObject`] member from a string literal, at compile time.
#[macro_export]
macro_rules! key {
    ($name:literal) => {
        $crate::telemetry::Key(concat!(",\"", $name, "\":"))
    };
}

/// Writer that appends the members of one JSON object to a buffer.
#[derive(Debug)]
pub struct JsonObject<'a> {
    into: &'a mut Vec<u8>,
    begun: usize,
}

impl<'a> JsonObject<'a> {
    /// Begins an object at the end of the buffer.
    pub fn begin(into: &'a mut Vec<u8>) -> Self {
        let begun = into.len();
        Self { into, begun }
    }

    /// Ends the object by writing its closing brace.
    pub fn end(self) {
        match self.into.get_mut(self.begun) {
            // The comma before the first member becomes the opening brace.
            Some(first) => *first = b'{',
            None => self.into.push(b'{'),
        }
        self.into.push(b'}');
    }

    fn raw(&mut self, text: &str) -> &mut Self {
        self.into.extend_from_slice(text.as_bytes());
        self
    }

    fn byte(&mut self, byte: u8) -> &mut Self {
        self.into.push(byte);
        self
    }

    /// Appends a string, with escapes if the value needs them.
    pub fn text(&mut self, key: Key, value: &str) -> &mut Self {
        let plain = |byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
        if value.bytes().all(plain) {
            return self.word(key, value);
        }
        self.raw(key.0);
        // Writing a string to memory cannot fail.
        let _ = serde_json::to_writer(&mut *self.into, value);
        self
    }

    /// Appends a string in which nothing needs an escape.
    pub fn word(&mut self, key: Key, value: &str) -> &mut Self {
        self.raw(key.0).byte(b'"').raw(value).byte(b'"')
    }

    /// Appends a string, or null if there is no value.
    pub fn text_or_null(&mut self, key: Key, value: Option<&str>) -> &mut Self {
        match value {
            Some(value) => self.text(key, value),
            None => self.raw(key.0).raw("null"),
        }
    }

    /// Appends a string, or no member at all if there is no value.
    pub fn text_if(&mut self, key: Key, value: Option<&str>) -> &mut Self {
        match value {
            Some(value) => self.text(key, value),
            None => self,
        }
    }

    /// Appends `true` if the value is true, and else nothing.
    pub fn true_if(&mut self, key: Key, value: bool) -> &mut Self {
        match value {
            true => self.raw(key.0).raw("true"),
            false => self,
        }
    }

    /// Appends a whole number, or null if there is no value.
    pub fn number_or_null(&mut self, key: Key, value: Option<impl Integer>) -> &mut Self {
        match value {
            Some(value) => self.number(key, value),
            None => self.raw(key.0).raw("null"),
        }
    }

    /// Appends a whole number, or no member at all if there is no value.
    pub fn number_if(&mut self, key: Key, value: Option<impl Integer>) -> &mut Self {
        match value {
            Some(value) => self.number(key, value),
            None => self,
        }
    }

    /// Appends a whole number of any integer type.
    pub fn number(&mut self, key: Key, value: impl Integer) -> &mut Self {
        self.raw(key.0).digits(value)
    }

    /// Appends a string of two numbers in hexadecimal digits, the first with eight digits, and `-`
    /// between them.
    pub fn hex(&mut self, key: Key, first: u32, second: u64) -> &mut Self {
        self.raw(key.0).byte(b'"').nibbles(first.into(), 8);
        let digits = (u64::BITS - second.leading_zeros()).div_ceil(4).max(1);
        self.byte(b'-').nibbles(second, digits).byte(b'"')
    }

    fn nibbles(&mut self, number: u64, digits: u32) -> &mut Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        for digit in (0..digits).rev() {
            self.byte(DIGITS[(number >> (4 * digit) & 15) as usize]);
        }
        self
    }

    /// Appends a duration in milliseconds with three decimal places.
    pub fn millis(&mut self, key: Key, value: Duration) -> &mut Self {
        let micros = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        self.raw(key.0).digits(micros / 1000).thousandths(micros)
    }

    /// Appends a time stamp with milliseconds in UTC (RFC 3339).
    pub fn time(&mut self, key: Key, at: SystemTime, stamp: &mut Stamp) -> &mut Self {
        let since = at.duration_since(SystemTime::UNIX_EPOCH);
        let since = since.unwrap_or_default();
        self.raw(key.0).byte(b'"').raw(stamp.second(since));
        self.thousandths(u64::from(since.subsec_millis()))
            .raw("Z\"")
    }

    fn digits(&mut self, value: impl Integer) -> &mut Self {
        self.raw(itoa::Buffer::new().format(value))
    }

    /// Appends a decimal point and the last three digits of `value`.
    fn thousandths(&mut self, value: u64) -> &mut Self {
        let point = self.into.len();
        // A leading digit keeps the zeros, and the point then replaces it.
        self.digits(1000 + value % 1000);
        if let Some(leading) = self.into.get_mut(point) {
            *leading = b'.';
        }
        self
    }
}

/// Cached text of the last second that was written, because most lines belong to the same second.
#[derive(Debug, Default)]
pub struct Stamp {
    second: u64,
    text: String,
}

impl Stamp {
    fn second(&mut self, since: Duration) -> &str {
        if self.second != since.as_secs() || self.text.is_empty() {
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs());
            self.text = humantime::format_rfc3339_seconds(at).to_string();
            self.text.truncate(self.text.trim_end_matches('Z').len());
            self.second = since.as_secs();
        }
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_json_whatever_the_strings() {
        let mut bytes = b"before".to_vec();
        let mut object = JsonObject::begin(&mut bytes);
        object
            .text(key!("plain"), "/v1/x?y=1")
            .text(key!("odd"), "a \"quote\"\n\\ \u{e9}\u{1b}[31m")
            .text_or_null(key!("none"), None)
            .text_if(key!("absent"), None)
            .number(key!("count"), 7)
            .number_or_null(key!("nothing"), None::<u8>)
            .hex(key!("zero"), 0, 0)
            .hex(key!("id"), 0xa, 0x1f0)
            .millis(key!("short"), Duration::from_micros(7))
            .millis(key!("took"), Duration::from_micros(1_002_030));
        object.end();
        let value: serde_json::Value = serde_json::from_slice(&bytes["before".len()..]).unwrap();
        assert_eq!(value["odd"], "a \"quote\"\n\\ \u{e9}\u{1b}[31m");
        assert_eq!(value["plain"], "/v1/x?y=1");
        assert_eq!(value["count"], 7);
        assert!(value["none"].is_null() && value.get("absent").is_none());
        assert!(value["nothing"].is_null());
        assert_eq!(value["zero"], "00000000-0");
        assert_eq!(value["id"], "0000000a-1f0");
        assert!(bytes.ends_with(b"\"short\":0.007,\"took\":1002.030}"));
    }

    #[test]
    fn an_object_without_members_is_one() {
        let mut bytes = Vec::new();
        JsonObject::begin(&mut bytes).end();
        assert_eq!(bytes, b"{}");
    }

    #[test]
    fn moments_are_right_also_when_the_clock_steps() {
        let mut stamp = Stamp::default();
        let then = 1_700_000_000_000;
        for millis in [0, 999, then + 1, then + 999, then + 1000, 5] {
            let at = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
            let mut bytes = Vec::new();
            let mut object = JsonObject::begin(&mut bytes);
            object.time(key!("time"), at, &mut stamp);
            object.end();
            let expected = format!("{{\"time\":\"{}\"}}", humantime::format_rfc3339_millis(at));
            assert_eq!(String::from_utf8(bytes).unwrap(), expected);
        }
    }
}
