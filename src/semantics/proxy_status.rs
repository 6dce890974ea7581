//! The `Proxy-Status` field (RFC 9209), which names the proxy that handled a response, and the
//! cause.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

/// Response field with the proxy and the cause (RFC 9209 section 2).
pub const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// Returns the value for a response that outpace made. It carries an RFC 9209 error type and the
/// reason. Characters that a quoted string cannot hold are dropped.
pub fn made_by_us(error: &str, reason: &str) -> HeaderValue {
    let details: String = reason
        .chars()
        .filter(|c| (' '..='~').contains(c) && *c != '"' && *c != '\\')
        .collect();
    HeaderValue::try_from(format!("outpace; error={error}; details=\"{details}\""))
        .unwrap_or(HeaderValue::from_static("outpace"))
}

/// Returns the value for an origin's refusal that is passed on, with the status received.
pub fn received(status: StatusCode) -> HeaderValue {
    HeaderValue::try_from(format!("outpace; received-status={}", status.as_u16()))
        .unwrap_or(HeaderValue::from_static("outpace"))
}

/// Removes the members of `Proxy-Status` in a response of an origin that claim to be from outpace.
/// Members of other proxies stay.
///
/// A line that ends inside a string is removed too. Recipients join the lines, so its string would
/// end in the next line and reveal a member there (RFC 9651 section 4.2).
pub(super) fn remove_our_status(headers: &mut HeaderMap) {
    let lines: Vec<HeaderValue> = headers.get_all(PROXY_STATUS).iter().cloned().collect();
    if lines.is_empty() {
        return;
    }
    headers.remove(PROXY_STATUS);
    for line in lines
        .into_iter()
        .filter(|line| is_complete(line.as_bytes()))
    {
        let foreign: Vec<&[u8]> = members(line.as_bytes())
            .filter(|member| !is_ours(member))
            .collect();
        if let Ok(line) = HeaderValue::from_bytes(&foreign.join(&b", "[..]))
            && !line.is_empty()
        {
            headers.append(PROXY_STATUS, line);
        }
    }
}

/// Splits a list at the commas outside of quoted strings (RFC 9651 section 3.3.3).
fn members(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut quotes = Quotes::default();
    let split = line.split(move |byte| !quotes.contain(*byte) && *byte == b',');
    split.map(<[u8]>::trim_ascii)
}

/// Returns true if every quoted string of the line ends in the line.
fn is_complete(line: &[u8]) -> bool {
    let mut quotes = Quotes::default();
    for byte in line {
        quotes.contain(*byte);
    }
    !quotes.is_open
}

/// Position in a line with quoted strings (RFC 9651 section 3.3.3).
#[derive(Default)]
struct Quotes {
    is_open: bool,
    is_escaped: bool,
}

impl Quotes {
    /// Takes the next byte, and returns true if it is inside a string.
    fn contain(&mut self, byte: u8) -> bool {
        match byte {
            _ if self.is_escaped => self.is_escaped = false,
            b'\\' if self.is_open => self.is_escaped = true,
            b'"' => self.is_open = !self.is_open,
            _ => {}
        }
        self.is_open
    }
}

/// Returns true for a member with our name, also for one that only looks like it to a reader.
fn is_ours(member: &[u8]) -> bool {
    let name = member
        .split(|byte| *byte == b';')
        .next()
        .unwrap_or_default();
    let unquoted: Vec<u8> = name.iter().copied().filter(|byte| *byte != b'"').collect();
    let mut words = unquoted.split(u8::is_ascii_whitespace);
    let first = words.find(|word| !word.is_empty()).unwrap_or_default();
    first.eq_ignore_ascii_case(b"outpace")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p11_one_truth_an_origin_cannot_speak_for_us() {
        let left = |lines: &[&str]| {
            let lines: Vec<_> = lines.iter().map(|line| ("proxy-status", *line)).collect();
            let mut map = crate::semantics::map(&lines);
            remove_our_status(&mut map);
            let left = map.get_all(PROXY_STATUS).iter();
            let left: Vec<_> = left.map(|line| line.to_str().unwrap().to_owned()).collect();
            left
        };
        let none: [&str; 0] = [];
        for forged in [
            "outpace; error=dns_error",
            "OUTPACE",
            "\"outpace\"; received-status=200",
            "outpace;details=\"a, b\"",
            "outpace, outpace; error=x",
            "\"OUTPACE \"",
            "\" outpace\"; error=x",
            "outpace error",
            "\"OUTPAC\"E ;details=x",
        ] {
            assert_eq!(left(&[forged]), none, "{forged}");
        }
        let other = "cdn; details=\"outpace, really\"";
        assert_eq!(left(&[other, "outpace"]), [other]);
        assert_eq!(left(&["outpace; a=1, cdn; b=2, outpace"]), ["cdn; b=2"]);
        assert_eq!(left(&["outpaced; error=x"]), ["outpaced; error=x"]);
        // The first line's string ends in the second line, which then names outpace.
        for open in ["a; x=\"\\\"", "a; x=\"", "cdn, b; y=\"z, outpace"] {
            assert_eq!(left(&[open, "\", outpace; error=e, b"]), none, "{open}");
            assert_eq!(
                left(&[open, "cdn; b=\"\\\"\""]),
                ["cdn; b=\"\\\"\""],
                "{open}"
            );
        }
    }

    #[test]
    fn the_value_is_a_structured_field() {
        assert_eq!(
            made_by_us("dns_error", "no \"such\" host\u{e9}\n"),
            "outpace; error=dns_error; details=\"no such host\""
        );
        assert_eq!(
            received(StatusCode::TOO_MANY_REQUESTS),
            "outpace; received-status=429"
        );
    }
}
