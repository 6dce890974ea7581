//! Normal form of paths, so that two spellings of one path meet the same limits (RFC 3986 section
//! 6.2.2).
//!
//! The form is for comparisons only. The request keeps its own spelling.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Returns the normal form of a request's path.
///
/// Percent-encoded characters that need no encoding in a path segment are decoded, and all other
/// characters are encoded with upper-case digits. Repeated slashes become one, and dot segments are
/// removed. A path that does not begin with `/`, such as `*`, has no segments to normalise.
pub(super) fn normal_path(path: &str) -> Cow<'_, str> {
    if is_normal(path) {
        return Cow::Borrowed(path);
    }
    Cow::Owned(without_dot_segments(&recoded(path, is_plain)))
}

/// Returns the normal form of a pattern, in which `*` stays a wildcard.
pub(super) fn normal_pattern(pattern: &str) -> String {
    without_dot_segments(&recoded(pattern, |byte| is_plain(byte) || byte == b'*'))
}

/// Returns true for a path that is its own normal form. Most paths are, so this saves a copy.
fn is_normal(path: &str) -> bool {
    let plain = |byte: u8| is_plain(byte) || byte == b'/';
    path.bytes().all(plain) && !path.contains("//") && !path.contains("/.")
}

/// Returns true for a character that may stand in a path segment without an encoding (`pchar` in RFC
/// 3986 section 3.3). `*` is missing, because it is the wildcard of patterns.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:@!$&'()+,;=".contains(&byte)
}

/// Decodes and encodes a path so that each character has one spelling.
fn recoded(path: &str, raw: impl Fn(u8) -> bool) -> String {
    let mut text = String::with_capacity(path.len());
    let mut bytes = path.as_bytes();
    while let [first, rest @ ..] = bytes {
        let decoded = match rest {
            [high, low, ..] if *first == b'%' => hex(*high).zip(hex(*low)),
            _ => None,
        };
        let (byte, escaped) = match decoded {
            Some((high, low)) => (high << 4 | low, true),
            None => (*first, false),
        };
        bytes = rest.get(if escaped { 2 } else { 0 }..).unwrap_or_default();
        let plain = if escaped {
            is_plain(byte)
        } else {
            raw(byte) || byte == b'/'
        };
        if plain {
            text.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            write!(text, "%{byte:02X}").unwrap_or_default();
        }
    }
    text
}

fn hex(digit: u8) -> Option<u8> {
    let value = char::from(digit).to_digit(16)?;
    u8::try_from(value).ok()
}

/// Removes empty segments and dot segments (RFC 3986 section 5.2.4).
fn without_dot_segments(path: &str) -> String {
    // A pattern may begin with a wildcard, which is no segment.
    let Some((head, inner)) = path.split_once('/') else {
        return path.to_owned();
    };
    let mut kept: Vec<&str> = Vec::new();
    // A path that ends with a slash or a dot segment names a directory.
    let mut directory = false;
    for segment in inner.split('/') {
        directory = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => {
                kept.pop();
            }
            other => kept.push(other),
        }
    }
    let mut normal = head.to_owned();
    for segment in &kept {
        normal.push('/');
        normal.push_str(segment);
    }
    if directory {
        normal.push('/');
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_path_has_one_normal_form() {
        for (normal, spellings) in [
            (
                "/search",
                &[
                    "/search",
                    "/%73earch",
                    "/%73%65%61%72%63%68",
                    "/./search",
                    "//search",
                    "///search",
                    "/a/../search",
                    "/../search",
                    "/%2e/search",
                    "/a/%2E%2e/search",
                    "/a/.%2E/search",
                    "/a//../search",
                    "/a/b/../../search",
                    "/.//search",
                    "/a/./../search",
                ][..],
            ),
            ("/a%2Fb", &["/a%2fb", "/%61%2Fb", "//a%2fb"]),
            (
                "/models/x:generate",
                &["/models/x%3Agenerate", "/models//x%3agenerate"],
            ),
            ("/caf%C3%A9", &["/café", "/caf%c3%a9"]),
            ("/a%20b%7Bc%7D", &["/a%20b{c}", "/a%20b%7bc%7d"]),
            ("/a%25b", &["/a%b", "/a%25b"]),
            ("/%252e", &["/%252e", "/%25%32%65"]),
            ("/a%2A", &["/a*", "/a%2a"]),
            (
                "/a/",
                &["/a/", "/a//", "/a/.", "/a/b/..", "/a/b/%2e%2e", "/a/./"],
            ),
            ("/", &["/", "//", "/.", "/..", "/../..", "/a/.."]),
            ("/...", &["/...", "/%2e%2E."]),
            ("/.well-known/a", &["/.well-known/a", "/%2ewell-known//a"]),
        ] {
            for spelling in spellings {
                assert_eq!(normal_path(spelling), normal, "{spelling}");
                assert_eq!(normal_path(&normal_path(spelling)), normal, "{spelling}");
            }
        }
    }

    #[test]
    fn different_paths_stay_different() {
        for (one, other) in [
            ("/a/b", "/a%2Fb"),
            ("/a?", "/a"),
            ("/a", "/A"),
            ("/a/", "/a"),
            ("/%2525", "/%25"),
        ] {
            assert_ne!(normal_path(one), normal_path(other));
        }
        assert_eq!(normal_path("*"), "%2A");
        assert_eq!(normal_path(""), "");
    }

    #[test]
    fn a_pattern_keeps_its_wildcards() {
        for (pattern, normal) in [
            ("/v1/*", "/v1/*"),
            ("/%76%31//*", "/v1/*"),
            ("/./v1/*.json", "/v1/*.json"),
            ("*/search", "*/search"),
            ("*//a/./search", "*/a/search"),
            ("/a%2a", "/a%2A"),
            ("/caf\u{e9}*", "/caf%C3%A9*"),
            ("/*", "/*"),
            ("*", "*"),
        ] {
            assert_eq!(normal_pattern(pattern), normal);
        }
    }
}
