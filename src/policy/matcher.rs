//! Conditions that select the requests of a limit or lane.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, Method};

use super::path::{normal_path, normal_pattern};
use super::{Caller, RequestView};

/// A condition on a request. All parts that are set must match.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Matcher {
    /// Pattern for the path in its normal form, without the query. [`Glob::path`] creates it.
    pub path: Option<Glob>,
    /// Accepted methods. An empty list accepts every method.
    pub methods: Vec<Method>,
    /// Pattern for one field of the request.
    pub header: Option<HeaderPattern>,
    /// Patterns for decoded query parameters, by name. One value that matches is enough if a name is
    /// repeated.
    pub query: Vec<(Box<str>, Glob)>,
    /// Patterns for values of the JSON body, by pointer (RFC 6901).
    pub json: Vec<(Box<str>, Glob)>,
    /// Names of the accepted clients. An empty list accepts every client.
    pub clients: Vec<Arc<str>>,
    /// Group to which the client must belong.
    pub group: Option<Arc<str>>,
}

impl Matcher {
    /// Returns true if the request meets every condition that is set.
    pub fn matches(&self, asked: &RequestView<'_>) -> bool {
        self.conditions().all(|condition| condition.matches(asked))
    }

    /// Returns true if the matcher depends on nothing but the client and accepts it. Tunnels and
    /// `acquire` calls use this check, because they have no visible request.
    pub fn matches_tunnel(&self, client: Option<Caller<'_>>) -> bool {
        let mut conditions = self.conditions();
        conditions.all(|condition| condition.matches_client(client))
    }
}

/// A condition on a field, written as `name: value`. The value may be a glob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderPattern {
    /// Name of the field, in lower case.
    pub name: HeaderName,
    /// Pattern for the value. One matching line is enough if the field is repeated.
    pub value: Glob,
}

impl HeaderPattern {
    /// Returns true if one line of these fields matches.
    pub fn matches_fields(&self, headers: &HeaderMap) -> bool {
        let mut lines = headers.get_all(&self.name).iter();
        lines.any(|line| self.value.matches(line.as_bytes()))
    }
}

/// A pattern in which `*` matches any run of bytes, including an empty one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob(Box<str>);

impl Glob {
    /// Creates a pattern. Every text is a valid pattern.
    pub fn new(pattern: impl Into<Box<str>>) -> Self {
        Self(pattern.into())
    }

    /// Returns the pattern as text.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// Creates a pattern for paths in their normal form, so that every spelling of a path matches (RFC
    /// 3986 section 6.2.2).
    pub fn path(pattern: &str) -> Self {
        Self::new(normal_pattern(pattern))
    }

    /// Returns true if a pattern from [`Glob::path`] matches a path in any spelling.
    pub fn matches_path(&self, path: &str) -> bool {
        self.matches(normal_path(path).as_bytes())
    }

    /// Returns true if the pattern matches the whole `text`.
    pub fn matches(&self, text: &[u8]) -> bool {
        let mut parts = self.0.as_bytes().split(|b| *b == b'*');
        let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else {
            return false;
        };
        let Some(mut part) = parts.next() else {
            return rest.is_empty();
        };
        for next in parts {
            let Some(at) = find(rest, part) else {
                return false;
            };
            rest = rest.get(at + part.len()..).unwrap_or_default();
            part = next;
        }
        rest.ends_with(part)
    }
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    if part.is_empty() {
        return Some(0);
    }
    text.windows(part.len()).position(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_run() {
        let fits = |pattern: &str, text: &str| Glob::new(pattern).matches(text.as_bytes());
        assert!(fits("/v1/chat", "/v1/chat") && !fits("/v1/chat", "/v1/chat/x"));
        assert!(fits("/v1/*", "/v1/") && fits("/v1/*", "/v1/a/b") && !fits("/v1/*", "/v2/a"));
        assert!(fits("*/completions", "/v1/chat/completions") && fits("*", ""));
        assert!(fits("/a/*/c*", "/a/b/c/d") && !fits("/a/*/c", "/a/b/d"));
        assert!(!fits("ab*ba", "aba"));
    }

    #[test]
    fn every_part_must_match() {
        let (request, ()) = http::Request::post("http://h/v1/x?y")
            .header("x-lane", "batch")
            .body(())
            .unwrap()
            .into_parts();
        let matcher = Matcher {
            path: Some(Glob::path("/v1/*")),
            methods: vec![Method::POST],
            header: Some(HeaderPattern {
                name: HeaderName::from_static("x-lane"),
                value: Glob::new("batch"),
            }),
            ..Matcher::default()
        };
        let request = RequestView::of_head(&request);
        assert!(matcher.matches(&request));
        let mut other = matcher.clone();
        other.methods = vec![Method::GET];
        assert!(!other.matches(&request));
        let mut other = matcher;
        other.path = Some(Glob::path("/v2/*"));
        assert!(!other.matches(&request));
    }

    #[test]
    fn p1_pace_no_spelling_of_a_path_passes_a_limit() {
        for (pattern, uri, expected) in [
            ("/search*", "http://h/%73earch?q=1", true),
            ("/search*", "http://h/./search", true),
            ("/search*", "http://h//search", true),
            ("/search*", "http://h/a/../search", true),
            ("/search*", "http://h/a/%2e%2E//%53earch", false),
            ("/%73earch*", "http://h/search/x", true),
            (
                "/v1//models/*:generate",
                "http://h/v1/models/m%3Agenerate",
                true,
            ),
            ("/search", "http://h/search%2Fx", false),
            ("*/search", "http://h/x//./%73earch", true),
            ("/", "http://h", true),
        ] {
            let (head, ()) = http::Request::get(uri).body(()).unwrap().into_parts();
            let matcher = Matcher {
                path: Some(Glob::path(pattern)),
                ..Matcher::default()
            };
            let request = RequestView::of_head(&head);
            assert_eq!(matcher.matches(&request), expected, "{pattern} {uri}");
        }
    }
}
