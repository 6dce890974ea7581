//! Fuzz targets: each takes arbitrary bytes and panics if a parser breaks one of its rules.
//!
//! The test binary `fuzz` runs them on known inputs, and the program in `fuzz/` under libFuzzer.

mod calls;
mod client;
mod config;
mod fields;
mod files;
mod hello;
mod json;
mod paths;
mod request_target;
mod rows;
mod signals;
mod stored;
mod units;
mod usage;

use http::{HeaderMap, HeaderName, HeaderValue};

/// One parser or a family of parsers, with the bytes from which a fuzzer begins.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) seeds: &'static [&'static [u8]],
    /// Function that panics if the bytes break a rule.
    pub(crate) run: fn(&[u8]),
}

/// All targets, in the order in which they run.
pub(crate) const TARGETS: [&Target; 14] = [
    &calls::TARGET,
    &client::TARGET,
    &config::TARGET,
    &fields::TARGET,
    &files::TARGET,
    &hello::TARGET,
    &json::TARGET,
    &paths::TARGET,
    &request_target::TARGET,
    &rows::TARGET,
    &signals::TARGET,
    &stored::TARGET,
    &units::TARGET,
    &usage::TARGET,
];

/// Returns the fields that the lines `name: value` hold. Other lines are ignored.
fn fields(lines: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n') {
        let colon = line.iter().position(|byte| *byte == b':');
        let Some((name, value)) = colon.map(|colon| line.split_at(colon)) else {
            continue;
        };
        let name = HeaderName::from_bytes(name);
        let value = HeaderValue::from_bytes(value[1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            // A map has room for a bounded number of names.
            let _full = headers.try_append(name, value);
        }
    }
    headers
}

/// Splits the bytes at the first empty line.
fn halves(data: &[u8]) -> (&[u8], &[u8]) {
    let at = data.windows(2).position(|pair| pair == b"\n\n");
    at.map_or((data, &[]), |at| (&data[..at], &data[at + 2..]))
}

/// Returns the bytes as text, or `None` if they are not UTF-8.
fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}

/// Returns all lines of a field as one value (RFC 9110 section 5.3).
fn joined(headers: &HeaderMap, name: &str) -> Vec<u8> {
    let lines: Vec<_> = headers
        .get_all(name)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    lines.join(&b", "[..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_fields() {
        let headers = fields(b"A: b\nno field\nA:\tc \n\xff: d\ne:");
        let lines: Vec<_> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value))
            .collect();
        let value = HeaderValue::from_static;
        assert_eq!(
            lines,
            [("a", &value("b")), ("a", &value("c")), ("e", &value(""))]
        );
        assert_eq!(joined(&headers, "a"), b"b, c");
        assert_eq!(halves(b"a\n\nb\n\nc"), (&b"a"[..], &b"b\n\nc"[..]));
    }
}
