//! Sources of keys and costs, such as `header:NAME` or `json:/POINTER`.

use super::{Violation, Violations};
use crate::bounds::{KEY_PARTS_MAX, PATH_SEGMENT_MAX};
use crate::json::JsonPointers;
use crate::policy::{LimitKey, Source};

/// Builds the key of a limit from its parts.
pub(super) fn limit_key(p: &mut Violations, key: &str, parts: &[String]) -> Option<LimitKey> {
    if parts.len() > KEY_PARTS_MAX {
        report!(p, "{key}" => "a key has at most {KEY_PARTS_MAX} parts");
        return None;
    }
    let mut sources = Vec::with_capacity(parts.len());
    for text in parts {
        let source = source(p, key, text)?;
        if sources.contains(&source) {
            report!(p, "{key}" => "`{text}` is a part of the key twice; remove one");
        }
        sources.push(source);
    }
    let built = LimitKey::of_parts(sources);
    if built.is_none() {
        report!(p, "{key}" => "the list is empty; name a part of the request, or remove `key`");
    }
    built
}

/// Parses the source of a key or cost.
pub(super) fn source(p: &mut Violations, key: &str, text: &str) -> Option<Source> {
    let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
    let source = match (kind, rest.trim()) {
        ("client", "") => Some(Source::Client),
        ("client_ip", "") => Some(Source::ClientIp),
        ("host", "") => Some(Source::Host),
        ("path", "") => Some(Source::Path),
        ("path", number) => segment(number).map(Source::PathSegment),
        ("header", name) if name.eq_ignore_ascii_case("host") => {
            report!(p, "{key}" =>
                "HTTP/2 requests have no field `host`; write \"host\", which is the origin's host in every HTTP version");
            return None;
        }
        ("header", name) => name.parse().ok().map(Source::Header),
        ("query", name) if !name.is_empty() => Some(Source::Query(name.into())),
        ("json", pointer) if is_member(pointer) => Some(Source::Json(pointer.into())),
        _ => None,
    };
    if source.is_none() {
        report!(p, "{key}" =>
            "`{text}` names no part of a request; write \"host\", \"client\", \"client_ip\", \"path\", \"path:2\", \"header:authorization\", \"query:user\" or \"json:/model\"");
    }
    source
}

/// Returns true for a JSON pointer to a part of a document.
pub(super) fn is_member(pointer: &str) -> bool {
    !pointer.is_empty() && JsonPointers::is_pointer(pointer)
}

/// Parses the number of a path segment, which has no sign and no leading zero.
fn segment(text: &str) -> Option<usize> {
    let number = text.parse().ok()?;
    let written = text.starts_with(|first: char| matches!(first, '1'..='9'));
    (written && number <= PATH_SEGMENT_MAX).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(parts: &[&str]) -> (Option<LimitKey>, usize) {
        let mut problems = Violations::default();
        let parts: Vec<String> = parts.iter().map(ToString::to_string).collect();
        let key = limit_key(&mut problems, "key", &parts);
        (key, problems.len())
    }

    /// Reaches the bound `KEY_PARTS_MAX`.
    /// Reaches the bound `PATH_SEGMENT_MAX`.
    #[test]
    fn p14_the_parts_of_a_key_are_bounded() {
        let parts = ["host", "client", "client_ip", "path:64", "path:1"];
        let (key, problems) = parsed(&parts[..KEY_PARTS_MAX]);
        let written = key.unwrap().to_string();
        assert_eq!(
            (written.as_str(), problems),
            ("host + client + client_ip + path:64", 0)
        );
        assert_eq!(parsed(&parts), (None, 1));
        for wrong in [
            "path:65",
            "path:0",
            "path:+1",
            "path:01",
            "path:x",
            "path:99999999999999999999",
        ] {
            assert_eq!(parsed(&[wrong]), (None, 1), "{wrong}");
        }
    }
}
